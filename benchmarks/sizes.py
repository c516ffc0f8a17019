"""Sizes with free dimensions, and the least memory: how much is known (decision 9, docs/memory.md).

    python -m benchmarks.export_models MODELS          # needs torch; see there
    pip install onnx-shape-inference                   # the one that is compared
    python -m benchmarks.sizes MODELS

Counts, over the corpus and the exports in MODELS: tensors of models with free dimensions that each tool does not size
in the inputs' symbols, processor seconds, and for how many files the peak of memory is proven to be the least.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from edgec import analyze, load
from edgec.compiler.cost.polynomial import symbols
from edgec.compiler.cost.sizes import Sizes
from edgec.compiler.errors import EdgecError
from tests.corpus.fetch import entries, fetch

FUNCTIONS = {"floor", "ceiling", "Max", "Min", "Mod"}
SMALL = 1024
"""Elements up to which a constant may take part in the arithmetic of shapes."""


def files(folder: Path) -> Iterator[Path]:
    """The ONNX files of the corpus and of the folder."""
    yield from (fetch(name) for name, e in entries().items() if e.path.endswith(".onnx"))
    yield from sorted(folder.glob("*.onnx"))


def free(model: ir.Model) -> set[str]:
    """The symbols of the inputs' shapes."""
    dims = (d for v in model.graph.inputs for d in v.shape or ())
    return {str(d.value) for d in dims if not isinstance(d, int)}


def by_edgec(model: ir.Model) -> dict[str, bool]:
    sizes, names = Sizes(model), free(model)
    known = {}
    for value in (o for node in model.graph for o in node.outputs if o.name):
        dims = sizes.dims(value)
        known[str(value.name)] = dims is not None and {s for d in dims for s in symbols(d)} <= names
    return known


def by_onnx(model: ir.Model) -> dict[str, bool]:
    proto = ir.to_proto(bare(model))
    found = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return _in_symbols(ir.from_proto(found), free(model))


def by_onnx_shape_inference(model: ir.Model) -> dict[str, bool]:
    from onnx_shape_inference import infer_symbolic_shapes

    return _in_symbols(infer_symbolic_shapes(bare(model)), free(model))


def bare(model: ir.Model) -> ir.Model:
    """The model without the shapes that are declared inside it, and without its big weights: inputs stand for them."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > SMALL:
            copy.graph.initializers.pop(name)
            value.shape, value.const_value = ir.Shape(value.const_value.shape), None
            copy.graph.inputs.append(value)
    for node in copy.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return copy


def _in_symbols(model: ir.Model, names: set[str]) -> dict[str, bool]:
    def known(value: ir.Value) -> bool:
        if value.shape is None:
            return False
        text = [str(d.value) for d in value.shape if not isinstance(d, int)]
        return all(_symbols(t) <= names for t in text)

    return {str(o.name): known(o) for node in model.graph for o in node.outputs if o.name}


def _symbols(text: str) -> set[str]:
    """The names in an expression; names with other characters in them are one."""
    names = set(re.findall(r"[A-Za-z_.][\w.]*", text)) - FUNCTIONS
    return names if re.fullmatch(r"[\w.\s()+*/,-]*", text) else {text}


TOOLS: dict[str, Callable[[ir.Model], dict[str, bool]]] = {
    f"onnx {onnx.__version__}": by_onnx,
    "onnx-shape-inference": by_onnx_shape_inference,
    "edgec": by_edgec,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    unknown: Counter[str] = Counter()
    models: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    tensors = with_free = proven = every = better = 0
    for path in files(parser.parse_args().folder):
        try:
            model = load(path)
            memory = analyze(path).memory
        except EdgecError as e:
            print(f"{path.name}: {e}")
            continue
        every += 1
        proven += memory.optimal
        better += memory.peak != memory.peak_given
        if not free(model):
            continue
        with_free += 1
        tensors += sum(1 for node in model.graph for o in node.outputs if o.name)
        for name, tool in TOOLS.items():
            start = time.process_time()
            left = sum(not known for known in tool(model).values())
            seconds[name] += time.process_time() - start
            unknown[name] += left
            models[name] += left > 0
            print(f"{path.name}, {name}: {left}", flush=True)
    print(f"\n{with_free} models with free dimensions, {tensors:,} tensors\n")
    print("| | tensors not sized in the inputs' symbols | models with such | CPU seconds for all |\n|---|---|---|---|")
    for name in TOOLS:
        print(f"| {name} | {unknown[name]:,} | {models[name]} | {seconds[name]:.2f} |")
    print(f"\npeak proven to be the least: {proven} of {every} files; lower in another order than the file's: {better}")


if __name__ == "__main__":
    main()

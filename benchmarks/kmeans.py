"""Tables of weights: processor seconds and square errors beside coremltools, time and memory of 100 million parameters.

    python -m benchmarks.export_models MODELS          # needs torch; see there
    python -m benchmarks.kmeans MODELS/resnet18.dynamo.onnx

For each number of bits, weights of at least 10,000 elements get a table each (`round-weights{bits=…,per=tensor}`, and
`coremltools.optimize.coreml.palettize_weights` in mode kmeans on a float16 mlprogram of the same weights): processor
seconds of choosing tables and rounding, without loading or saving, and the ratio of the square errors on the numbers
as float16 holds them. Then a model of 24 matrices of 2048 × 2048 is rounded to 4 bits in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec import load
from edgec.compiler.passbase import Context
from edgec.compiler.quantization.gridfit import GridSpec, fit
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes import weight_grid
from edgec.passes.round_weights import RoundWeights

BITS = (8, 6, 4, 3, 2)
MATRICES, SIDE = 24, 2048


def weights(path: Path) -> dict[str, np.ndarray]:
    """The weights of linear operators, as float16 holds them; those for which coremltools' k-means is exact."""
    found = weight_grid.weights(load(path), 10_000)
    arrays = {w.value.name: w.value.const_value.numpy() for w in found}  # type: ignore[union-attr]
    return {str(n): a.astype(np.float16).astype(np.float32) for n, a in arrays.items()}


def by_edgec(arrays: dict[str, np.ndarray], bits: int) -> tuple[float, float]:
    """Processor seconds, and the sum of square errors as a share of the sum of squares."""
    start = time.process_time()
    rounded = {n: fit(a, 0, GridSpec("table", bits, per="tensor")).round(a) for n, a in arrays.items()}
    return time.process_time() - start, _lost(arrays, rounded)


def by_coremltools(arrays: dict[str, np.ndarray], bits: int) -> tuple[float, float]:
    """The same of coremltools, on a float16 mlprogram that holds these weights."""
    import coremltools as ct
    import coremltools.optimize.coreml as cto
    from coremltools.converters.mil import Builder as mb

    where = ct.target.iOS18 if bits == 3 else ct.target.iOS16  # Which has no tables of 8.

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=where)
    def program(x):  # type: ignore[no-untyped-def]
        return tuple(mb.mul(x=x, y=mb.const(val=a, name=_name(n))) for n, a in arrays.items())

    model = ct.convert(
        program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT16, skip_model_load=True,
        minimum_deployment_target=where,
    )  # fmt: skip
    how = cto.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=0)
    start = time.process_time()
    found = cto.palettize_weights(model, cto.OptimizationConfig(global_config=how))
    seconds = time.process_time() - start
    rounded = {}
    for op in found._mil_program.functions["main"].operations:
        if op.op_type == "constexpr_lut_to_dense":
            rounded[op.name] = op.materialized_val_inference()
    by_name = {n: next(a for o, a in rounded.items() if o.startswith(_name(n) + "_")) for n in arrays}
    return seconds, _lost(arrays, by_name)


def _name(name: str) -> str:
    return "w_" + "".join(c if c.isalnum() else "_" for c in name)


def _lost(arrays: dict[str, np.ndarray], rounded: dict[str, np.ndarray]) -> float:
    noise = sum(np.square(rounded[n].astype(np.float64) - a).sum() for n, a in arrays.items())
    return float(noise / sum(np.square(a, dtype=np.float64).sum() for a in arrays.values()))


def large(folder: Path) -> Path:
    """A model of 100 million parameters whose weights lie beside it."""
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", shape=ir.Shape([1, SIDE]), type=ir.TensorType(ir.DataType.FLOAT))
    made, nodes, last = [], [], x
    with (folder / "large.bin").open("wb") as f:
        for i in range(MATRICES):
            array = rng.standard_t(6, (SIDE, SIDE)).astype(np.float32) * np.float32(0.02)
            f.write(array.tobytes())
            w = ir.Value(name=f"w{i}", shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
            w.const_value = ir.ExternalTensor(
                "large.bin", i * array.nbytes, array.nbytes, ir.DataType.FLOAT, shape=w.shape, name=w.name,
                base_dir=folder,
            )  # fmt: skip
            node = ir.node("MatMul", [last, w], name=f"m{i}")
            last = node.outputs[0]
            last.shape, last.type, last.name = x.shape, x.type, f"y{i}"
            made.append(w)
            nodes.append(node)
    graph = ir.Graph([x], [last], nodes=nodes, initializers=made, opset_imports={"": 21}, name="g")
    ir.save(ir.Model(graph, ir_version=10), folder / "large.onnx")
    return folder / "large.onnx"


def round_large(path: Path, options: str) -> None:
    """Round the large model and print seconds, processor seconds, and the peak of memory while rounding, in MB."""
    model = load(path)
    p = RoundWeights(bits=4, min_snr=0) if not options else RoundWeights(bits=4, scheme=options, min_snr=0)
    fit(np.ones((4, 4), np.float32), 0, GridSpec("table", 4))  # What is made once is not rounding.
    with Scratch() as scratch:
        before = _memory()
        start, cpu = time.perf_counter(), time.process_time()
        count = p.run(model, Context(find_target("ios18"), scratch))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert count == MATRICES
    print(f"{seconds:.2f} s, {cpu:.2f} CPU s, {(_memory() - before) / 1e3:.0f} MB more than before rounding")


def _memory() -> int:
    """The peak of resident memory so far, in kilobytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--bits", type=int, nargs="*", default=BITS)
    parser.add_argument("--large", type=Path, help="round the large model in this process")
    parser.add_argument("--scheme", default="")
    args = parser.parse_args()
    if args.large:
        round_large(args.large, args.scheme)
        return
    if args.model:
        arrays = weights(args.model)
        print(
            f"{args.model.name}: {len(arrays)} weights, {sum(a.size for a in arrays.values()) / 1e6:.1f} M parameters"
        )
        print("| bits | edgec, CPU s | coremltools, CPU s | ratio | square error, edgec / coremltools |")
        print("|---|---|---|---|---|")
        for bits in args.bits:
            ours, theirs = by_edgec(arrays, bits), by_coremltools(arrays, bits)
            print(
                f"| {bits} | {ours[0]:.2f} | {theirs[0]:.2f} | {theirs[0] / ours[0]:.1f} | {ours[1] / theirs[1]:.5f} |"
            )
    with tempfile.TemporaryDirectory() as folder:
        path = large(Path(folder))
        for scheme in ("", "affine"):
            command = [sys.executable, "-m", "benchmarks.kmeans", "--large", str(path), "--scheme", scheme]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            print(f"{MATRICES * SIDE * SIDE / 1e6:.0f} M parameters, 4 bits, {scheme or 'table'}: {text}")


if __name__ == "__main__":
    main()

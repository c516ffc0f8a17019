"""`edgec analyze` beside onnx-tool: the MACs that each reports, seconds and memory.

    python -m venv ANALYZERS && ANALYZERS/bin/pip install onnx-tool==1.0.1 onnx==1.23.2
    python -m benchmarks.export_models MODELS          # needs torch; see there
    python -m benchmarks.analyze ANALYZERS MODELS [--models bert12.legacy ...] [--repeats 5] [--out docs/analyzers]

Run from the repository root with the Python that edgec is installed in. Each figure is the median over whole processes,
imports included, in rounds over the tools; "analysis" is the part on top of loading, in processor time. `chain10000`
has 10,000 small nodes; `sparse7` has 7 GB of weights in a file beside it, of which nothing is on the disk, so that
reading them shows in the memory (only edgec is run on it).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from . import harness
from .optimize import locate

PACKAGES = ("onnx", "onnx-tool", "onnx-ir", "numpy", "edgec")
DEFAULT_MODELS = [
    "bert12.legacy", "vit_b_16.legacy", "resnet18.legacy", "light:shufflenet", "gpt.legacy", "bert12.dynamo_dyn",
    "chain10000", "sparse7",
]  # fmt: skip
COUNT = """
import json, sys
import edgec
from edgec.compiler.cost.polynomial import text
t = edgec.analyze(sys.argv[1]).totals
print(json.dumps({"macs": text(t.macs), "parameters": t.parameters}))
"""
INSIDE = """
import sys, time
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.driver import load
model = load(sys.argv[1])
best = []
for _ in range(3):
    start = time.process_time()
    analyze(model)
    best.append(time.process_time() - start)
print(sorted(best)[1])
"""


def sparse(gigabytes: int, folder: Path) -> Path:
    """A chain of matrix products whose weights, of that size, are one hole in a file."""
    import onnx

    side = 1 << 14
    count = round(gigabytes * 1e9 / (4 * side**2))
    nodes = [onnx.helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(count)]
    ports = [onnx.helper.make_tensor_value_info(name, 1, [1, side]) for name in ("h0", f"h{count}")]
    graph = onnx.helper.make_graph(nodes, "sparse", ports[:1], ports[1:])
    for i in range(count):
        entry = graph.initializer.add(name=f"w{i}", data_type=1, dims=[side, side])
        entry.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", i * 4 * side**2), ("length", 4 * side**2)):
            entry.external_data.add(key=key, value=str(value))
    with (folder / "w.bin").open("wb") as file:
        file.truncate(4 * side**2 * count)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), folder / "sparse.onnx")
    return folder / "sparse.onnx"


def find(name: str, models: Path, folder: Path) -> Path:
    """The model's file, made in `folder` where it is a synthetic one."""
    if name.startswith("chain"):
        from .models import chain

        path = folder / f"{name}.onnx"
        path.write_bytes(chain(int(name[5:])).SerializeToString())
        return path
    if name.startswith("sparse"):
        return sparse(int(name[6:]), folder)
    return locate(name, models)[0]


def rows(name: str, source: Path, analyzers: Path, repeats: int) -> list[harness.Row]:
    """A row per tool."""
    python = str(analyzers / "bin" / "python")
    script = str(Path(__file__).with_name("analyzers.py"))
    program = str(Path(sys.executable).with_name("edgec"))
    jobs = {"edgec": [program, "analyze", str(source), "-q"]}
    counters = {"edgec": [sys.executable, "-c", COUNT, str(source)]}
    if not name.startswith("sparse"):
        jobs["onnx-tool"] = counters["onnx-tool"] = [python, script, "onnx-tool", str(source)]
    found: list[harness.Row] = []
    for tool, runs in harness.measure(jobs, repeats).items():
        row: harness.Row = {"model": name, "tool": tool, **harness.summary(runs)}
        if not row.get("failed"):
            row |= json.loads(harness.run(counters[tool]).tail.strip().splitlines()[-1])
        if tool == "edgec":
            row["analysis CPU s"] = round(float(harness.run([sys.executable, "-c", INSIDE, str(source)]).tail), 2)
        found.append(row)
    return found


def ordered(row: harness.Row) -> harness.Row:
    """The columns that are shown, numbers with their thousands apart."""
    names = "model,tool,macs,parameters,s,min-max s,CPU s,MB,analysis CPU s,failed"
    shown = {c: row.get(c) for c in names.split(",")}
    return {c: f"{v:,}" if isinstance(v, int) and c in ("macs", "parameters") else v for c, v in shown.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("analyzers", type=Path, help="the virtual environment of the other tool")
    parser.add_argument("folder", type=Path, help="where benchmarks.export_models wrote")
    parser.add_argument("--models", nargs="+", metavar="NAME.MODE|PACKAGE:FILE|chainN|sparseGB", default=DEFAULT_MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/analyzers"), help="write OUT.md and OUT.json")
    options = parser.parse_args()
    found = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            source = find(name, options.folder.absolute(), Path(folder))
            for row in rows(name, source, options.analyzers.absolute(), options.repeats):
                found.append(ordered(row))
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    tools = {
        "edgec": harness.versions(sys.executable, PACKAGES),
        "onnx-tool": harness.versions(str(options.analyzers / "bin" / "python"), PACKAGES),
    }
    harness.report(f"edgec analyze beside onnx-tool, medians of {options.repeats}", found, tools, options.out)


if __name__ == "__main__":
    main()

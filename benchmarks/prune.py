"""mask-channels and remove-channels beside torch-pruning and onnxsim: half of the channels of every group, by L2 norm.

    python -m venv PEERS && PEERS/bin/pip install onnx==1.23.2 onnxruntime==1.32.0 onnxsim==0.8.1
    python -m venv TORCH && TORCH/bin/pip install torch==2.14.1 torchvision onnx onnxscript torch-pruning==1.6.1
    TORCH/bin/python -m benchmarks.export_models MODELS
    python -m benchmarks.prune PEERS TORCH MODELS [MORE ...] [--models resnet18.legacy ...] [--out docs/prune]

Run from the repository root with the Python that edgec is installed in. What OUT.json holds is not run again, unless
its model is named, so that a run that was interrupted goes on. OUT.md and the tables in docs/pruning.md are written
anew after every model.

`prune s` is the pruning itself, `s` and `MB` the whole process: imports, loading, writing, and for edgec running the
model before and after each pass; `removed vs masked` is what it finds then. Parameters and MACs are counted by edgec
for all tools. `ms` is onnxruntime's time before and after, one thread. All take half of the channels of every group;
"at half the MACs" are edgec's defaults: half of the MACs, lengths in multiples of 8. Of files by other exporters than
the legacy one only the first row is made, and their time is not taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import harness, prune_tables
from .optimize import locate

HALF = "mask-channels{ratio=0.5,of=channels,align=1%s}"
ALL = {"edgec": HALF % "", "edgec, at half the MACs": "mask-channels{ratio=0.5}"}
PARTS = {"edgec, whole heads": HALF % ",grain=heads,width=none", "edgec, heads and hidden units": HALF % ",width=none"}
PADDED = {"edgec, width=padded": HALF % ",width=padded"}
ONCE = {"edgec, equal tables stored once": "merge-common-subexpressions " + HALF % ""}
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "vit_b_16": ALL | PARTS, "gpt": ALL | PARTS | ONCE, "llama": ALL | PARTS,
    "bert12": ALL | PARTS | PADDED, "minilm": ALL | PARTS | PADDED, "swin_t": ALL | PARTS | PADDED,
    "convnext_tiny": ALL | PADDED,
}  # fmt: skip
NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0",
    "convnext_tiny", "swin_t", "vit_b_16", "bert12", "gpt", "llama", "lstm", "unet", "yolov8n", "minilm", "crepe",
)  # fmt: skip
FILES = (
    "light:inception_v1", "light:inception_v2", "light:squeezenet", "light:shufflenet", "efficientnet-lite0",
    "rapidocr-onnxruntime:ch_PP-OCRv4_det_infer.onnx", "ddddocr:common_det.onnx",
    "silero-vad:silero_vad_16k_sequence.onnx",
)  # fmt: skip
MODES = ("dynamo", "legacy_dyn", "dynamo_dyn")
DEFAULT_MODELS = (
    *(f"{name}.legacy" for name in NETWORKS), *FILES, *(f"{name}.{mode}" for mode in MODES for name in NETWORKS),
)  # fmt: skip
PATIENCE = 120
"""Seconds for a peer."""


def edgec_row(source: Path, shapes: str, mask: str, folder: Path, timed: bool) -> harness.Row:
    """One run of edgec, what its report says of it, and what `benchmarks.prune_check` sees in the file."""
    result, report = folder / "removed.onnx", folder / "report.json"
    program = Path(sys.executable).with_name("edgec")
    command = [str(program), str(source), "-O0", "--target", "onnx", "-q", "--no-latency", "-o", str(result)]
    command += [a for p in (*mask.split(), "remove-channels") for a in ("--pass", p)] + ["--report", str(report)]
    row = harness.summary([harness.run(command)])
    if row.get("failed"):
        return row
    said: Mapping[str, Any] = {r["spec"].split("{")[0]: r for r in json.loads(report.read_text())["passes"]}
    masking, removal = said["mask-channels"], said["remove-channels"]
    row["prune s"] = round(masking["seconds"] + removal["seconds"], 2)
    if removal["exact"] is not None:
        row["removed vs masked"] = f"{float(removal['exact']['max_rel']):.0e}"
    row |= checked(source, result, shapes, timed)
    undone = next((p["why"] for p in (masking, removal) if p["status"] == "undone"), None)
    return row | ({"failed": undone[:160]} if undone else {})


def peer_row(command: Sequence[str], source: Path, shapes: str, result: Path) -> harness.Row:
    done = harness.run(command, timeout=PATIENCE)
    row = harness.summary([done])
    if row.get("failed"):
        return row | ({"failed": f"no end in {PATIENCE} s"} if done.seconds > PATIENCE else {})
    row["prune s"] = round(json.loads(done.tail.strip().splitlines()[-1])["seconds"], 2)
    return row | checked(source, result, shapes)


def checked(source: Path, result: Path, shapes: str, timed: bool = True) -> harness.Row:
    """What benchmarks.prune_check finds, or why it could not look."""
    command = [sys.executable, "-m", "benchmarks.prune_check", str(source), str(result), shapes]
    done = harness.run([*command, *([] if timed else ["untimed"])])
    return {"failed": done.reason} if done.code else dict(json.loads(done.tail.strip().splitlines()[-1]))


def rows(name: str, peers: Path, torch: Path, folders: Sequence[Path]) -> list[harness.Row]:
    """One per tool, and for edgec per variant."""
    found = _located(name, folders)
    if found is None:
        return [{"model": name, "tool": "edgec", "failed": "not exported"}]
    source, sizes = found
    shapes, script = json.dumps(sizes), str(Path(__file__).with_name("prune_peers.py"))
    network, _, mode = name.partition(".") if ":" not in name else (name, "", "")
    first = mode in ("legacy", "")
    variants = dict(VARIANTS.get(network, ALL).items() if first else [("edgec", ALL["edgec"])])
    if network in ("bert12", "minilm", "swin_t", "convnext_tiny") and not first:
        variants |= PADDED
    made: list[harness.Row] = []
    with tempfile.TemporaryDirectory(prefix="edgec-bench-") as scratch:
        folder = Path(scratch)
        for tool, mask in variants.items():
            made.append({"model": name, "tool": tool, **edgec_row(source, shapes, mask, folder, first)})
        if first:
            out = folder / "onnxsim.onnx"
            command = [str(peers / "bin" / "python"), script, "onnxsim", str(source), str(out)]
            made.append({"model": name, "tool": "onnxsim", **peer_row(command, source, shapes, out)})
        if mode == "legacy":
            out = folder / "torch-pruning.onnx"
            command = [str(torch / "bin" / "python"), "-W", "ignore", script, "torch-pruning", network, str(out)]
            made.append({"model": name, "tool": "torch-pruning", **peer_row(command, source, shapes, out)})
    return made


def _located(name: str, folders: Sequence[Path]) -> tuple[Path, dict[str, list[int]]] | None:
    """The file of a model in the first of the folders that has it, and the shapes of its inputs."""
    if ":" in name:
        return locate(name, folders[0])
    found = next((p for f in folders if (p := f / f"{name}.onnx").exists()), None)
    return None if found is None else (found, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="the virtual environment of onnxsim")
    parser.add_argument("torch", type=Path, help="the virtual environment of torch-pruning")
    parser.add_argument("folders", type=Path, nargs="+", help="where benchmarks.export_models wrote")
    parser.add_argument("--models", nargs="+", metavar="NAME.MODE|PACKAGE:FILE", help="run these, and run them anew")
    parser.add_argument("--out", type=Path, default=Path("docs/prune"), help="(default: docs/prune)")
    parser.add_argument("--page", type=Path, default=Path("docs/pruning.md"), help="whose tables are written anew")
    o = parser.parse_args()
    packages = ("edgec", "onnx", "onnxruntime", "onnxsim", "torch", "torchvision", "torch-pruning")
    tools = {
        "edgec": harness.versions(sys.executable, packages),
        "onnxsim": harness.versions(str(o.peers / "bin" / "python"), packages),
        "torch-pruning": harness.versions(str(o.torch / "bin" / "python"), packages),
    }
    stored = o.out.with_suffix(".json")
    found: list[harness.Row] = json.loads(stored.read_text())["rows"] if stored.exists() else []
    found = [r for r in found if r["model"] not in (o.models or ())]
    done = {r["model"] for r in found}
    for name in [n for n in o.models or DEFAULT_MODELS if n not in done]:
        for row in rows(name, o.peers.absolute(), o.torch.absolute(), [f.absolute() for f in o.folders]):
            found.append({c: row[c] for c in ("model", "tool", *prune_tables.COLUMNS) if c in row})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        prune_tables.write(found, tools, o.out, o.page, DEFAULT_MODELS)
    prune_tables.write(found, tools, o.out, o.page, DEFAULT_MODELS)


if __name__ == "__main__":
    main()

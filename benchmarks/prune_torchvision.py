"""All classifiers, segmenters and detectors' backbones of torchvision: half of the channels, beside torch-pruning.

    python -m venv TORCH && TORCH/bin/pip install torch==2.14.1 torchvision==0.29.1 onnx onnxscript torch-pruning==1.6.1
    python -m benchmarks.prune_torchvision TORCH [--models resnet18 ...] [--out docs/prune_torchvision]

Run from the repository root with the Python that edgec is installed in. Each network is exported (by the legacy
exporter, or the new one where that fails), pruned by both, and deleted. What OUT.json holds already is not run again:
a run that was interrupted goes on. edgec compares its result with the masked model, and it runs in onnxruntime
(`ms`, before and after); its ratios are counted on the ONNX file. torch-pruning's are counted by itself on the
module, after one forward pass; of the backbones it also takes channels of the outputs, which edgec keeps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import harness
from .prune import checked

MASK = ("mask-channels{ratio=0.5,of=channels,align=1}",)
WITHIN = tuple(f"mask-channels{{ratio=0.5,of=channels,align=1,grain={grain}}}" for grain in ("channels", "dims"))
PADDED = ("mask-channels{ratio=0.5,of=channels,align=1,width=padded}",)
POST_NORM = ("convnext", "swin")
"""Networks whose stages' width goes only where normalisations are padded, as docs/pruning.md says."""
GROUPED = ("regnet", "resnext")
"""Networks of grouped convolutions: half of the channels of every group go, as torch-pruning does it, not half of the
groups. What is left is a quarter of the work, not half of it."""
TITLE = "Half of the channels of torchvision's networks"
PATIENCE = 1800
"""Seconds for an export and torch-pruning together, and for edgec."""
COLUMNS = {
    "model": "model", "mode": "exporter", "parameters": "parameters", "MACs": "MACs",
    "removed vs masked": "removed vs masked", "ms": "ms", "prune s": "prune s", "failed": "failed",
    "tp parameters": "torch-pruning: parameters", "tp MACs": "MACs ",
    "tp prune s": "prune s ", "tp failed": "failed ",
}  # fmt: skip


def row(name: str, torch: Path) -> harness.Row:
    script = str(Path(__file__).with_name("torchvision_nets.py"))
    with tempfile.TemporaryDirectory(prefix="edgec-bench-") as folder:
        source = Path(folder) / f"{name}.onnx"
        done = harness.run([str(torch / "bin" / "python"), "-W", "ignore", script, name, str(source)], timeout=PATIENCE)
        lines = [json.loads(line) for line in done.tail.splitlines() if line.startswith("{")]
        exported = lines[0] if lines else {"failed": done.reason or "no export"}
        found: harness.Row = {"model": name, **exported}
        peer = lines[1] if len(lines) > 1 else {"failed": f"no end in {PATIENCE} s" if lines else "no export"}
        found |= {f"tp {key}": value for key, value in peer.items()}
        if "failed" not in exported:
            masks = WITHIN if name.startswith(GROUPED) else PADDED if name.startswith(POST_NORM) else MASK
            found |= edgec(source, Path(folder), masks)
    return found


def edgec(source: Path, folder: Path, masks: Sequence[str]) -> harness.Row:
    """Ratios, seconds of the two passes, and how far the result is from the masked model, all from its report."""
    report, result = folder / "report.json", folder / "removed.onnx"
    program = str(Path(sys.executable).with_name("edgec"))
    command = [program, str(source), "-O0", "--target", "onnx", "-q", "-o", str(result), "--report", str(report)]
    command.append("--no-latency")
    passes = [*masks, "remove-channels"]
    done = harness.run([*command, *(a for p in passes for a in ("--pass", p))], timeout=PATIENCE)
    if done.code:
        return {"failed": done.reason}
    said: dict[str, Any] = json.loads(report.read_text())
    removed = next(p for p in said["passes"] if p["spec"] == "remove-channels")
    seconds = sum(p["seconds"] for p in said["passes"] if p["spec"].startswith(("mask-", "remove-channels")))
    found: harness.Row = {
        "prune s": round(seconds, 2),
        "CPU s": round(done.cpu, 1), "MB": round(done.peak_mb), **checked(source, result, "{}"),
    }  # fmt: skip
    if removed["exact"] is not None:
        found["removed vs masked"] = f"{float(removed['exact']['max_rel']):.0e}"
    if removed["status"] != "ok":
        found["failed"] = removed["why"] or f"remove-channels: {removed['status']}"
    return found


def listed(torch: Path) -> list[str]:
    script = str(Path(__file__).with_name("torchvision_nets.py"))
    done = subprocess.run([str(torch / "bin" / "python"), script], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def render(rows: Sequence[harness.Row], tools: dict[str, dict[str, str]], out: Path) -> None:
    """OUT.json, that the next run goes on from, and OUT.md."""
    ordered = sorted(rows, key=lambda r: r["model"])
    exported = [r for r in ordered if r.get("mode")]
    fine, other = ([r for r in exported if not r.get(key)] for key in ("failed", "tp failed"))
    summary = f"{len(ordered)} networks, {len(exported)} export; edgec prunes {len(fine)}, torch-pruning {len(other)}."
    table = [{title: _cell(key, r.get(key)) for key, title in COLUMNS.items()} for r in ordered]
    head = [f"# {TITLE}", "", harness.machine(), ""]
    head += [f"- {name}: " + ", ".join(f"{p} {v}" for p, v in found.items()) for name, found in tools.items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join([*head, "", summary, "", harness.markdown(table), ""]))
    result = {"title": TITLE, "machine": harness.machine(), "tools": tools, "rows": ordered}
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def _cell(key: str, value: object) -> object:
    return f"{value:.2f}x" if isinstance(value, float) and key in ("tp MACs", "tp parameters") else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", type=Path, help="the virtual environment of torch, torchvision and torch-pruning")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all that torchvision lists")
    parser.add_argument("--again", action="store_true", help="run what OUT.json holds as failed by edgec once more")
    parser.add_argument("--out", type=Path, default=Path("docs/prune_torchvision"))
    o = parser.parse_args()
    torch = o.torch.absolute()
    packages = ("edgec", "onnx", "onnxruntime", "torch", "torchvision", "torch-pruning")
    tools = {
        "edgec": harness.versions(sys.executable, packages),
        "torch-pruning": harness.versions(str(torch / "bin" / "python"), packages),
    }
    stored = o.out.with_suffix(".json")
    rows: list[harness.Row] = json.loads(stored.read_text())["rows"] if stored.exists() else []
    asked = set(o.models or ())
    rows = [r for r in rows if not (r["model"] in asked or (o.again and r.get("failed")))]
    done = {r["model"] for r in rows}
    for name in o.models or listed(torch):
        if name not in done:
            rows.append(row(name, torch))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            render(rows, tools, o.out)
    render(rows, tools, o.out)


if __name__ == "__main__":
    main()

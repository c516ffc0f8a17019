"""Whole residual blocks masked and removed, model by model: the table in docs/pruning.md.

    python -m benchmarks.export_models MODELS          # needs torch; see there
    python -m benchmarks.prune_blocks MODELS [resnet18.legacy ...]

Runs `mask-blocks{ratio=0.25}` and `remove-channels` at -O0, on exports of fixed sizes.
The figures are those of edgec's own report.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NAMES = (
    "resnet18.legacy", "resnet50.dynamo", "mobilenet_v3_small.legacy", "vit_b_16.dynamo", "bert12.legacy",
    "gpt.dynamo", "convnext_tiny.dynamo",
)  # fmt: skip
PASSES = ("mask-blocks{ratio=0.25}", "remove-channels", "remove-dead-code")


def reported(source: Path, folder: Path) -> dict[str, Any]:
    """The report of one run."""
    out, report = folder / "out.onnx", folder / "report.json"
    command = [str(Path(sys.executable).with_name("edgec")), str(source), "-O0", "--target", "onnx", "-q"]
    command += ["--no-latency", "-o", str(out), "--report", str(report)]
    subprocess.run([*command, *(a for p in PASSES for a in ("--pass", p))], check=True)
    return dict(json.loads(report.read_text()))


def row(name: str, report: dict[str, Any]) -> str:
    passes = {p["spec"].split("{")[0]: p for p in report["passes"]}
    said = re.match(r"(\d+) of (\d+) blocks", passes["mask-blocks"]["notes"][0])
    assert said is not None
    gone, blocks = said.groups()
    before, after = report["before"], report["after"]
    left = [f"{after[k] / before[k]:.1%}" for k in ("macs", "parameters")]
    error = f"{float(passes['remove-channels']['exact']['max_rel']):.0e}"
    nodes = f"{before['nodes']} → {after['nodes']}"
    return "| " + " | ".join([name, blocks, gone, *left, nodes, error]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=NAMES)
    o = parser.parse_args()
    print("| model | blocks | that go | MACs left | parameters left | nodes | removed vs masked |")
    print("|---|---|---|---|---|---|---|")
    for name in o.models:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, reported(o.folder / f"{name}.onnx", Path(folder))), flush=True)


if __name__ == "__main__":
    main()

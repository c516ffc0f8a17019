"""edgec's Core ML compiler, with its proof, beside onnx2coreml and onnxsim's exporter, which do not check numbers.

    python -m venv PEERS && PEERS/bin/pip install onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 \\
        onnxsim==0.8.1 onnxslim==0.1.98 onnx2coreml==1.1.0 coremltools==9.0 sympy packaging
    python -m benchmarks.export_models MODELS          # needs torch; see there
    python -m benchmarks.compile PEERS MODELS [--repeats 5] [--parts models chains weights] [--out docs/speed]

Run from the repository root with the Python that edgec is installed in. Each figure is the median over whole processes,
imports included, in rounds over the tools, all in half precision. `chains` and `weights` show that edgec's time grows
linearly with nodes (100 to 10,000) and with bytes (0.1 to 1.5 GB).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.corpus.fetch import fetch

from . import harness

EDGEC_FLAGS = ("-O1", "--precision", "fp16", "--verify", "end", "-q")
PACKAGES = ("onnx", "onnxruntime", "onnx-ir", "onnxscript", "coremltools", "onnx2coreml", "onnxsim", "numpy", "edgec")
NODES = (100, 1_000, 10_000)
GIGABYTES = (0.1, 0.5, 1.5)


def edgec(source: Path, folder: Path) -> list[str]:
    program = Path(sys.executable).with_name("edgec")
    return [str(program), str(source), *EDGEC_FLAGS, "-o", str(folder / "edgec.mlpackage")]


def onnx2coreml(peers: Path, source: Path, folder: Path) -> list[str]:
    return [str(peers / "bin" / "onnx2coreml"), "convert", str(source), "-o", str(folder / "onnx2coreml.mlpackage")]


def onnxsim(peers: Path, source: Path) -> list[str]:
    """Run in `folder` with bare names: given paths, its exporter does not find its own external data again."""
    results = ["onnxsim.onnx", "--emit-coreml", "onnxsim.mlpackage"]
    return [str(peers / "bin" / "onnxsim"), str(source), *results]


def size_mb(path: Path) -> float | None:
    """Bytes of a written package in MB; None if there is none."""
    files = [f for f in path.rglob("*") if f.is_file()]
    return round(sum(f.stat().st_size for f in files) / 1e6, 1) if files else None


def compared(source: Path, label: str, peers: Path, repeats: int) -> list[harness.Row]:
    """One row per tool on one model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = {
            "edgec": edgec(source, folder),
            "onnx2coreml": onnx2coreml(peers, source, folder),
            "onnxsim": onnxsim(peers, source),
        }
        measured = harness.measure(jobs, repeats, cwd=folder)
        return [
            {"model": label, "tool": tool, **harness.summary(runs), "package MB": size_mb(folder / f"{tool}.mlpackage")}
            for tool, runs in measured.items()
        ]


def models(options: argparse.Namespace) -> Iterator[harness.Row]:
    sources = {f"{name}.{options.mode}": options.folder / f"{name}.{options.mode}.onnx" for name in options.names}
    made = [sys.executable, "-m", "tests.corpus.fetch", "light:densenet121"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)  # apart: making it imports onnxruntime
    sources["densenet121 (light)"] = fetch("light:densenet121")
    for label, source in sources.items():
        yield from compared(source, label, options.peers, options.repeats)


def synthetic(kind: str, size: float, unit: str, options: argparse.Namespace) -> harness.Row:
    """edgec alone on one synthetic model."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / f"{kind}.onnx"
        subprocess.run([sys.executable, "-m", "benchmarks.models", kind, str(size), str(source)], check=True)
        runs = harness.measure({"edgec": edgec(source, Path(name))}, options.repeats)["edgec"]
        row: harness.Row = {"model": f"{kind}, {size:,} {unit}", "tool": "edgec", **harness.summary(runs)}
        if not row.get("failed"):
            row[f"ms / {'node' if unit == 'nodes' else 'MB'}"] = round(
                row["s"] / size * (1e3 if unit == "nodes" else 1), 2
            )
        return row


def chains(options: argparse.Namespace) -> Iterator[harness.Row]:
    for count in NODES:
        yield synthetic("chain", count, "nodes", options)


def weights(options: argparse.Namespace) -> Iterator[harness.Row]:
    for gigabytes in GIGABYTES:
        yield synthetic("heavy", gigabytes, "GB", options)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[harness.Row]]] = {
    "models": models,
    "chains": chains,
    "weights": weights,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="the virtual environment of the other tools")
    parser.add_argument("folder", type=Path, help="where benchmarks.export_models wrote")
    parser.add_argument("--names", nargs="*", default=["resnet18", "vit_b_16", "convnext_tiny"])
    parser.add_argument("--mode", default="legacy", help="which export of them (default: legacy)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/speed"), help="write OUT.md and OUT.json (default: docs/speed)"
    )
    options = parser.parse_args()
    options.peers, options.folder = options.peers.absolute(), options.folder.absolute()
    rows = []
    for part in options.parts:
        for row in PARTS[part](options):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    tools = {
        "edgec": harness.versions(sys.executable, PACKAGES),
        "peers": harness.versions(str(options.peers / "bin" / "python"), PACKAGES),
    }
    flags = " ".join(EDGEC_FLAGS[:-1])
    harness.report(f"edgec {flags} beside convert-only tools, medians of {options.repeats}", rows, tools, options.out)


if __name__ == "__main__":
    main()

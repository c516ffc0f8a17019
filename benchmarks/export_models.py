"""Export the full-size networks that the benchmarks measure: torchvision's where it imports, else our definitions.

They are those of benchmarks/networks.py.

    pip install torch torchvision onnx onnxscript        # in an environment of its own
    python -m benchmarks.export_models OUT [NAME ...] [--modes dynamo legacy dynamo_dyn legacy_dyn]

Run from the repository root. Writes OUT/<name>.<mode>.onnx, and a line per file (seconds, nodes, MB) to OUT/READY.txt.
Weights are random; tests/corpus/exports.py says how they are kept from being degenerate.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import onnx

from tests.corpus.exports import MODES, write

from .networks import NETS, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(NETS)}")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["dynamo", "legacy", "dynamo_dyn", "legacy_dyn"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for mode in options.modes:
        for name in options.names or NETS:
            net = NETS[name]
            model = made(name)
            scratch = options.out / f".{name}.{mode}.onnx"
            start = time.perf_counter()
            write(model, net, mode, scratch)
            seconds = time.perf_counter() - start
            nodes, megabytes = len(onnx.load(scratch).graph.node), scratch.stat().st_size / 1e6
            scratch.rename(options.out / f"{name}.{mode}.onnx")
            line = f"{name}.{mode}.onnx  {seconds:.1f} s  {nodes} nodes  {megabytes:.1f} MB"
            print(line, flush=True)
            with (options.out / "READY.txt").open("a") as ready:
                ready.write(line + "\n")


if __name__ == "__main__":
    main()

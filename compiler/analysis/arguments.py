"""What `edgec analyze` takes. Nothing heavy is imported here: its help answers at once."""

from __future__ import annotations

import argparse

from ..argtypes import count
from ..arguments import SHAPE

SORT = (
    "macs", "flops", "parameters", "weights", "bytes", "special", "int_ops", "effective_macs", "bops", "time", "rate",
    "bound",
)  # fmt: skip


def declare(p: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    p.add_argument("model", metavar="MODEL", nargs="?", help="the model: .onnx, .mlpackage")
    p.add_argument("--shape", action="append", default=[], metavar="NAME:1,3,224,224", help=SHAPE)
    p.add_argument("--zeros", action="store_true", help="read the weights and count zeros: effective MACs, sparsity")
    p.add_argument("--device", metavar="NAME", help="the least time on a device; --device list shows them")
    p.add_argument("--measure", action="store_true", help="time each layer and the whole in onnxruntime, here")
    p.add_argument(
        "--range", metavar="T=16:512", help="totals over sizes of a free dimension: doubling, or T=16:512:16 in steps"
    )
    p.add_argument("--compare", metavar="B", help="set another model beside it: what became of each figure")
    g = p.add_argument_group("table")
    g.add_argument("--sort", choices=SORT, metavar="FIGURE", default="macs", help=f"{', '.join(SORT)} (default: macs)")
    g.add_argument("--top", type=count, default=20, metavar="N", help="rows of the table (default: 20)")
    g.add_argument("--depth", type=count, metavar="N", help="levels of modules")
    g.add_argument("--flat", action="store_true", help="layers, not modules")
    g = p.add_argument_group("output")
    g.add_argument("--csv", metavar="FILE.csv", help="write a row per layer")
    g.add_argument("--html", metavar="FILE.html", help="write a page: maps, plots and all layers; opens offline")
    g.add_argument("-q", dest="quiet", action="store_true", help="print nothing but errors")

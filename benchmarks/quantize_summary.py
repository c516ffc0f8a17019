"""What the rows of benchmarks.quantize say together: edgec beside the best of coremltools, by bits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from .harness import Row
from .quantize_edgec import BLOCKS, GIVEN, MIXED, TABLE

SLACK = 1.02
"""Times edgec's bytes that a row of coremltools may have and be compared with it."""


def summary(rows: Sequence[Row], given: bool = False) -> list[Row]:
    """For each number of bits and way of edgec: gains over coremltools on all models, in dB and bytes; medians.

    coremltools without data, or `given` inputs: its GPTQ.
    """
    models = list(dict.fromkeys(r["model"] for r in rows))
    found = []
    for bits in sorted({r["bits"] for r in rows if "bits" in r}, reverse=True):
        for tool in (TABLE, BLOCKS, MIXED):
            line: Row = {"bits": bits, "edgec": tool.removeprefix("edgec, ").removesuffix(", given inputs")}
            line |= dict.fromkeys(models, "")
            gains, savings = [], []
            for model in models:
                own = next((r for r in rows if (r["model"], r.get("bits"), r["tool"]) == (model, bits, tool)), None)
                best = best_peer(rows, own, given) if own and "SNR dB" in own else None
                if own is None or best is None:
                    continue
                gains.append(own["SNR dB"] - best["SNR dB"])
                line[model] = f"{own['SNR dB']} / {best['SNR dB']}"
                savings.append(1 - own["kB"] / equal(rows, own, given))
            if gains:
                line["median gain, dB"] = round(statistics.median(gains), 1)
                line["least"] = round(min(gains), 1)
                line["median of bytes saved at equal SNR"] = f"{100 * statistics.median(savings):.0f} %"
                found.append(line)
    return found


def best_peer(rows: Sequence[Row], own: Row, given: bool = False) -> Row | None:
    """The row of coremltools, at any bits, with the best SNR in no more bytes (but for `SLACK`)."""
    peers = [r for r in _peers(rows, own, given) if r["kB"] <= own["kB"] * SLACK]
    return max(peers, key=lambda r: r["SNR dB"], default=None)


def _peers(rows: Sequence[Row], own: Row, given: bool) -> list[Row]:
    peers = [r for r in rows if r["model"] == own["model"] and r["tool"].startswith("coremltools") and "SNR dB" in r]
    return [r for r in peers if r["tool"].endswith(GIVEN) == given]


def equal(rows: Sequence[Row], own: Row, given: bool = False) -> float:
    """The kB that coremltools needs for as good an SNR: between its rows that nothing smaller beats, linear in log kB.

    Beyond its best and worst rows the nearest two are prolonged.
    """
    front: list[tuple[float, float]] = []
    for r in sorted(_peers(rows, own, given), key=lambda r: (r["kB"], -r["SNR dB"])):
        if not front or r["SNR dB"] > front[-1][0]:
            front.append((r["SNR dB"], math.log(r["kB"])))
    if len(front) < 2:
        return float(own["kB"])
    i = next((i for i in range(1, len(front)) if front[i][0] >= own["SNR dB"]), len(front) - 1)
    (a, low), (b, high) = front[i - 1], front[i]
    return math.exp(low + (own["SNR dB"] - a) * (high - low) / (b - a))

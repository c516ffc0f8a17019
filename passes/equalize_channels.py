"""Even out the ranges of channels: what one layer makes larger the next reads with smaller weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.passbase import Context, Pass
from .channel_gains import Network, Use, of_ids
from .channel_ranges import even, largest_by, ranges_of, sets_of
from .gain_rules import network

SWEEPS = 20
"""Times that all factors are chosen anew at most: each weight is read by one set of channels and makes another."""
STEADY = 0.01
"""Change of all factors, in octaves, below which they are left as they are."""


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Scale channels so that weights have similar ranges in all of them; the outputs stay as they are.

    Before:  `y = Relu(Conv(x, w, b))   z = Conv(y, v)`

    After:   `y = Relu(Conv(x, w · s, b · s))   z = Conv(y, v / s)`, s > 0 a number for each channel

    A grid with one scale for a whole weight, or a whole activation, is as coarse in small channels as in large ones.
    With s = sqrt(range of v / range of w), by channel, both weights have the same range in it (cross-layer
    equalization: Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.1).

    Factors pass what is positively homogeneous (Relu, LeakyRelu, PRelu, pooling), reshaping, sums, whose operands get
    the same factors, and attention: those of values up to the output, those of queries are inverse to those of keys.
    A normalisation's scale and bias take them as well. They don't pass other activations (Sigmoid, Gelu) or a Clip: it
    has one bound for all channels. With weights that have a scale for each channel there is little to gain.
    """

    name: ClassVar[str] = "equalize-channels"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. Returns the number of constants that changed. Reads each weight some 20 times."""
        net = network(model, ctx)
        return net.write(factors(net), ctx) if net.count > 1 else 0


def factors(net: Network) -> np.ndarray:
    """By number, the factors with which what is multiplied and what is divided by them have the same ranges."""
    weights = [u for u in net.uses if u.role != "shift"]
    together: dict[tuple[ir.Node, int], list[Use]] = {}
    for use in weights:
        together.setdefault((use.node, use.at), []).append(use)
    ranges = {place: ranges_of(uses[0]) for place, uses in together.items()}
    found = np.ones(net.count)
    sets = sets_of(weights, net.count)
    for _ in range(SWEEPS):
        before = found.copy()
        for numbers, uses in sets:
            sides = np.zeros((2, net.count))
            for use in uses:
                now = ranges[use.node, use.at]
                for each in together[use.node, use.at]:
                    now = now * of_ids(each.ids, found).astype(np.float32)
                largest_by(use.ids, now, sides)
            found[numbers] *= even(sides[0, numbers], sides[1, numbers])
        if np.abs(np.log2(found / before)).max() < STEADY:
            break
    return found

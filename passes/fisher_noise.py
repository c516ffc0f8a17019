"""What the rounding of each weight costs the outputs, told from gradients: one run back for each sample, not weight.

Targets are drawn from what the outputs say. The mean square of the product of a weight's error with the gradient of
their log-likelihood is the change of the outputs' distribution in second order: the Fisher information in the direction
of the error (Theis et al. 2018, arXiv 1801.05787, for pruning). Of classes a quarter of it is the square of Hellinger's
distance, of numbers it is noise over signal: what a run of the rounded model would measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.batching import portions
from ..compiler.calibration.streaming import Feeds
from ..compiler.channels.sensitivity import samples
from ..compiler.gradients.likelihood import TARGET, Head, attach, heads
from ..compiler.gradients.reverse import SUFFIX, gradient
from ..compiler.graph import const
from ..compiler.session import Session
from ..compiler.weights import release
from .probe import Probe
from .round_weights import Rounded

DRAWS = 128
"""Targets that are drawn at least, all samples together: the figure is then right to half a decibel."""
GROUP = 1 << 26
"""Bytes of gradients that are held at once; those of one weight at least."""
CHUNK = 1 << 20
"""Elements whose errors are worked out at once."""
Errors = Mapping[str, Mapping[int, Rounded]]
Progress = Callable[[str, int, int], None]


def fisher_noise(probe: Probe, errors: Errors, seed: int, progress: Progress) -> dict[str, dict[int, float]]:
    """By weight and bits, the noise power over signal power that is to be expected when it alone is rounded so.

    Raises UnsupportedOp, listing all nodes, where the model can't be differentiated.
    """
    model = probe.model
    used = [_as_compared(h, probe) for h in heads(model)]
    found = {name: dict.fromkeys(by_bits, 0.0) for name, by_bits in errors.items()}
    each = list(samples(model, probe.runs, None))
    draws = math.ceil(DRAWS / len(each))
    done, weight = 0, 1 / (len(each) * draws)
    sizes = ((name, next(iter(by_bits.values())).tensor.nbytes) for name, by_bits in errors.items())
    for group in portions(sizes, GROUP):
        rng = np.random.default_rng(seed)
        changed = {n: [n, *sorted({b for r in errors[n].values() for b in r.biases})] for n in group}
        every = [n for names in changed.values() for n in names]
        made = model.clone()
        loss = attach(made, used)
        back, forward = Session(gradient(made, [loss], every)), Session(model)
        for feeds, _ in each:
            outputs = forward.run(feeds, [h.output for h in used])
            unit = weight / sum(_size(h, outputs[h.output]) for h in used)
            for _ in range(draws):
                targets = {
                    h.output + TARGET: h.target(a, "drawn", rng).astype(a.dtype)
                    for h, a in ((h, outputs[h.output]) for h in used)
                }
                slopes = back.run({**feeds, **targets}, [n + SUFFIX for n in every])
                for name in group:
                    for bits, rounded in errors[name].items():
                        found[name][bits] += unit * _product(model, name, rounded, slopes) ** 2
        release(model)
        done += len(group)
        progress("measuring weights by gradients", done, len(errors))
    return found


def _as_compared(head: Head, probe: Probe) -> Head:
    """The output as classes where it is compared as scores of classes."""
    scores = head.kind == "numbers" and probe.views.get(head.output) == "softmax"
    return Head(head.output, "classes", head.output) if scores else head


def _size(head: Head, output: np.ndarray) -> float:
    """What the mean square is divided by, for noise over signal: the signal is 1 for each row, or number."""
    rows = output.size / output.shape[head.axis] if head.kind == "classes" else output.size
    return 4 * rows if head.kind in ("classes", "bits") else rows


def _product(model: ir.Model, name: str, rounded: Rounded, slopes: Feeds) -> float:
    """The error of a weight, and of the biases that change with it, times their gradients."""
    total = 0.0
    for n, tensor in ((name, rounded.tensor), *rounded.biases.items()):
        plain = const(model.graph.initializers[n])
        assert plain is not None
        a, b, slope = plain.reshape(-1), tensor.numpy().reshape(-1), slopes[n + SUFFIX].reshape(-1)
        for i in range(0, a.size, CHUNK):
            total += float((b[i : i + CHUNK] - a[i : i + CHUNK]) @ slope[i : i + CHUNK])
    return total

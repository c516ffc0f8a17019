"""Activations at linear layers, streamed through onnxruntime: what each channel contributes, and who could make up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..calibration.batching import portions
from ..calibration.streaming import Fetcher, Runs, places, windows
from ..graph import attr, const, is_const, rank, sole_user
from .coupling import Coupling
from .importance import add_relative
from .solve import Solution

ROWS = 8192
"""Places in the output of a layer that are looked at, all runs together."""
HELD = 1 << 26
"""Elements of activations that are fetched at once."""
DAMPING = 1e-2
"""Of a covariance's diagonal, relative to its mean: what few samples leave open costs something, too."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that multiplies each place of its input with a constant matrix: Conv, MatMul, Gemm.

    Attributes:
        depthwise: whether it is a Conv that sees each channel by itself.
        weight, bias: their initializers, read by nothing else; no bias where there is none that can be changed.
        turned: whether the weight's first axis is the contracted one (MatMul).
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    turned: bool
    depthwise: bool = False

    @property
    def x(self) -> ir.Value:
        found = self.node.inputs[0]
        assert found is not None
        return found

    @property
    def y(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def axis(self) -> int:
        """The contracted axis of the input."""
        return 1 if self.node.op_type == "Conv" else (rank(self.x) or 0) - 1

    def matrix(self) -> np.ndarray:
        """The weight as outputs x input channels x elements of the kernel."""
        array = const(self.weight)
        assert array is not None
        array = array.T if self.turned else array
        return array.reshape(*array.shape[:2], -1)

    def shaped(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`."""
        array = matrix.reshape(matrix.shape[0], matrix.shape[1]) if self.node.op_type != "Conv" else matrix
        return np.ascontiguousarray((array.T if self.turned else array).reshape(self.weight.shape.numpy()))  # type: ignore[union-attr]

    def rows(self, x: np.ndarray, y: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to `count` places, the same for the same seed and sizes: inputs (places x channels x kernel), outputs."""
        if self.node.op_type != "Conv":
            at = places(int(np.prod(x.shape[:-1])), count, seed)
            return x.reshape(-1, x.shape[-1])[at][..., None], y.reshape(-1, y.shape[-1])[at]
        spatial = y.shape[2:]
        at = places(y.shape[0] * int(np.prod(spatial)), count, seed)
        index = np.unravel_index(at, (y.shape[0], *spatial))
        outputs = np.moveaxis(y, 1, -1)[index]
        return windows(self.node, x, index, self.weight.shape.numpy()[2:]), outputs  # type: ignore[union-attr]


def readers(model: ir.Model, depthwise: bool = False) -> list[Reader]:
    """The linear layers of the main graph whose weights are theirs alone, in the order in which they run.

    Convolutions are of one group, or, if asked for, depthwise.
    """
    found = []
    for node in model.graph:
        if node.domain or node.op_type not in ("Conv", "MatMul", "Gemm") or node.inputs[0] is None:
            continue
        weight = node.inputs[1]
        if weight is None or not _own(weight) or is_const(node.inputs[0]):
            continue
        each = False
        if node.op_type == "Conv":
            groups, turned = attr(node, "group", 1), False
            each = depthwise and groups > 1 and tuple(weight.shape.numpy()[:2]) == (groups, 1)  # type: ignore[union-attr]
            usual = (groups == 1 or each) and attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        elif node.op_type == "Gemm":
            usual = not attr(node, "transA", 0) and attr(node, "alpha", 1.0) == attr(node, "beta", 1.0) == 1.0
            turned = not attr(node, "transB", 0)
        else:
            usual, turned = rank(weight) == 2, True
        if usual:
            found.append(Reader(node, weight, _bias(node), turned, each))
    return found


def _own(value: ir.Value | None) -> bool:
    return value is not None and is_const(value) and len(value.uses()) == 1 and value.dtype == ir.DataType.FLOAT


def _bias(node: ir.Node) -> ir.Value | None:
    """The constant that is added to each output channel: the node's own, or that of an Add behind a MatMul."""
    if node.op_type != "MatMul":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return bias if _own(bias) and rank(bias) == 1 else None
    add = sole_user(node.outputs[0], "Add")
    other = next((v for v in add.inputs if v is not node.outputs[0]), None) if add is not None else None
    return other if _own(other) and rank(other) == 1 else None


class Seen:
    """Inputs and outputs of these layers, for one run after the other: getting ready takes longer than a run."""

    def __init__(self, model: ir.Model, layers: Sequence[Reader]) -> None:
        self._fetcher = Fetcher(model, [v for r in layers for v in (r.x, r.y)])

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What they read and give for these inputs, by name."""
        return {str(v.name): a for v, a in self._fetcher.run(feeds).items()}


def parts(layers: Sequence[Reader], feeds: Mapping[str, np.ndarray], most: int = 1 << 30) -> Iterator[list[Reader]]:
    """The layers in order, in parts whose activations fit into memory together; `most` layers at once."""
    batch = max((a.shape[0] for a in feeds.values() if a.ndim), default=1)
    sizes = ((layer, sum(_elements(v, batch) for v in (layer.x, layer.y))) for layer in layers)
    return portions(sizes, HELD, most)


def _elements(value: ir.Value, batch: int) -> int:
    return int(np.prod([d if isinstance(d, int) else batch for d in value.shape or ()], dtype=np.int64))


def activation_scores(
    model: ir.Model, coupling: Coupling, found: Solution, kind: str, runs: Runs, plain: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Per class, what the layers that read it would lose, relative to their mean; `plain` where no layer reads it.

    `activation`: the energy of what the channel contributes, E|W_c x_c|^2 (Wanda, Sun et al. 2023, per channel).
    `reconstruction`: what is left of that when all other channels make up for it by least squares,
    tr W_c ((H^-1)_cc)^-1 W_c' with H = E[x x'] (the saliency of the optimal brain surgeon, for a block).
    """
    scores, has = np.zeros(found.count), np.zeros(found.count, bool)
    named = {r: classes for r in readers(model) if (classes := _classes(coupling, found, r)) is not None}
    for layers in parts(list(named), runs[0]):
        sums: dict[Reader, np.ndarray] = {}
        source = Seen(model, layers)
        for k, feeds in enumerate(runs):
            seen = source.run(feeds)
            for r in layers:
                x, _ = r.rows(seen[str(r.x.name)], seen[str(r.y.name)], -(-ROWS // len(runs)), seed + k)
                sums[r] = sums.get(r, 0.0) + _gram(x, kind)
        for r, gram in sums.items():
            amounts = np.sqrt(np.maximum(_lost(r.matrix(), gram, kind), 0))
            add_relative(scores, named[r], amounts)
            has[named[r]] = True
    return np.where(has, scores, plain)


def _classes(coupling: Coupling, found: Solution, r: Reader) -> np.ndarray | None:
    """The classes of a layer's input channels; None where they have none of their own."""
    for g in coupling.labels.get(r.x, ()):
        if g.axes == (r.axis,):
            classes = found.of[g.ids]
            return classes if classes.any() else None
    return None


def _gram(x: np.ndarray, kind: str) -> np.ndarray:
    """Sums of products of inputs: within each channel, or of all with all."""
    if kind == "activation":
        each = np.ascontiguousarray(x.transpose(1, 2, 0))
        return np.asarray(each @ each.transpose(0, 2, 1), np.float64)
    flat = x.reshape(len(x), -1)
    return np.asarray(flat.T @ flat, np.float64)


def _lost(weight: np.ndarray, gram: np.ndarray, kind: str) -> np.ndarray:
    """Per input channel of a weight (outputs x channels x kernel)."""
    channels, kernel = weight.shape[1:]
    if kind == "reconstruction":
        damped = gram + DAMPING * max(float(np.trace(gram)) / len(gram), 1e-30) * np.eye(len(gram))
        inverse = np.linalg.inv(damped).reshape(channels, kernel, channels, kernel)
        gram = np.linalg.inv(inverse[np.arange(channels), :, np.arange(channels)])
    per = weight.transpose(1, 0, 2).astype(np.float64)
    return np.asarray(np.einsum("cok,cok->c", per @ gram, per))

"""Normalisations over the channels, operators or written out: where they look at all channels, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, initializer, ints, is_const, rank, scalar, shape, sole_user
from ..norm_forms import NORMALISED, ROOT_MEAN_SQUARE
from ..patterns import Match
from ..rewriting import Index, find
from ..weights import Scratch
from .shrink import replace_tensor

EPSILON = 1e-5
"""Where the attribute is left out (ONNX, LayerNormalization and RMSNormalization)."""


@dataclass(frozen=True, eq=False)
class Norm:
    """`scale * (x - mean) / sqrt(mean((x - mean)²) + eps)` over one axis of x, the mean left out where not `centred`.

    Attributes:
        node: the operator, or the last node of what is written out.
        looks: the nodes that look at the whole axis.
        scale: a constant of one number per channel that nobody else reads.
        eps: the node and input that add it; None where it is an attribute.
        powers: values inside of what is written out, which hold the mean square to this power, once or times others.
    """

    node: ir.Node
    looks: tuple[ir.Node, ...]
    x: ir.Value
    axis: int
    centred: bool
    scale: ir.Value
    eps: tuple[ir.Node, int] | None = None
    powers: Mapping[ir.Value, float] = field(default_factory=dict)

    @property
    def written(self) -> bool:
        """Whether it is several operators."""
        return self.eps is not None

    def rescale(self, factor: float, scratch: Scratch | None = None) -> None:
        """Let the same come out where the mean of squares is smaller by `factor`: scale and eps follow."""
        old = const(self.scale)
        assert old is not None
        replace_tensor(self.scale, (old.astype(np.float64) * np.sqrt(factor)).astype(old.dtype), scratch)
        if self.eps is None:
            eps = attr(self.node, "epsilon", EPSILON)
            self.node.attributes["epsilon"] = ir.AttrFloat32("epsilon", eps * factor)
            return
        node, at = self.eps
        eps = const(node.inputs[at])
        assert eps is not None and isinstance(node.graph, ir.Graph)
        made = initializer(node.graph, (eps * factor).astype(eps.dtype), f"{node.name}_eps", scratch)
        node.replace_input_with(at, made)


def norms(model: ir.Model) -> list[Norm]:
    """All of the main graph, of one axis of fixed size, with a constant scale per channel."""
    found = [n for node in model.graph if (n := _operator(node)) is not None]
    if any(node.op_type == "ReduceMean" for node in model.graph):
        found += _written(model)
    return found


def _operator(node: ir.Node) -> Norm | None:
    if node.domain or node.op_type not in ("LayerNormalization", "RMSNormalization"):
        return None
    x, scale = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    depth = rank(x)
    if x is None or scale is None or depth is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return None
    axis = depth - 1
    if attr(node, "axis", -1) % depth != axis or not _per_channel(scale, x, axis, depth):
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not _per_channel(bias, x, axis, depth):
        return None
    return Norm(node, (node,), x, axis, node.op_type == "LayerNormalization", scale)


def _per_channel(value: ir.Value, x: ir.Value, axis: int, depth: int) -> bool:
    """Whether a constant of one reader has a number for each position on an axis of x, and only there."""
    dims, sizes = shape(x), shape(value)
    if dims is None or not sizes or not is_const(value) or len(value.uses()) != 1 or value.is_graph_output():
        return False
    at, size = axis - (depth - len(sizes)), dims[axis]
    return at >= 0 and isinstance(size, int) and all(n == (size if a == at else 1) for a, n in enumerate(sizes))


def _written(model: ir.Model) -> Iterator[Norm]:
    index, taken = Index(model), set()
    for centred, pattern in ((True, NORMALISED), (False, ROOT_MEAN_SQUARE)):
        for m in find(index, pattern):
            # What has been centred is a root mean square, too.
            if m.root not in taken and (norm := _parts(m, centred)) is not None:
                yield norm
            taken.add(m.root)


def _parts(m: Match, centred: bool) -> Norm | None:
    x, depth = m["x"], rank(m["x"])
    looks = tuple(m.named[name] for name in ("mean", "variance") if name in m.named)
    axes = {tuple(a % depth for a in ints(n.inputs[1]) or ()) for n in looks} if depth else set()
    if depth is None or len(axes) != 1 or len(axis := axes.pop()) != 1:
        return None
    powers = _powers(looks[-1], m)
    scale, passed = _scale(m.output, x, axis[0], depth)
    shift = next((n for n in m.nodes if n.op_type == "Add" and looks[-1].outputs[0] in n.inputs), None)
    if powers is None or scale is None or shift is None:
        return None
    at = next((i for i, v in enumerate(shift.inputs) if scalar(v) is not None), None)
    if at is None:
        return None
    powers.update(dict.fromkeys(passed, -0.5))
    return Norm(m.root, looks, x, axis[0], centred, scale, (shift, at), powers)


def _powers(mean: ir.Node, m: Match) -> dict[ir.Value, float] | None:
    """To which power the values between the mean of squares and the result hold it; None if others read them."""
    found = {mean.outputs[0]: 1.0}
    inside = [n for n in m.nodes if n is not mean]
    for _ in inside:
        for node in inside:
            given = [found.get(v, 0.0) if v is not None else 0.0 for v in node.inputs]
            if not any(given):
                continue
            power = _power(node, given)
            if power is None:
                return None
            found[node.outputs[0]] = power
    alone = all(user in m.nodes for v in found if v is not m.output for user, _ in v.uses())
    return found if alone and found.get(m.output) == -0.5 else None


def _power(node: ir.Node, given: list[float]) -> float | None:
    op = node.op_type
    if op in ("Add", "Mul", "Cast", "Identity"):
        return sum(given)
    if op == "Div":
        return given[0] - given[1]
    if op in ("Sqrt", "Reciprocal"):
        return given[0] * (0.5 if op == "Sqrt" else -1.0)
    exponent = scalar(node.inputs[1]) if op == "Pow" else None
    return None if exponent is None else given[0] * exponent


def _scale(value: ir.Value, x: ir.Value, axis: int, depth: int) -> tuple[ir.Value | None, list[ir.Value]]:
    """The constant per channel that the result is multiplied by, and the values before that."""
    passed = [value]
    while True:
        user = sole_user(passed[-1])
        if user is None or user.domain or user.op_type not in ("Cast", "Identity", "Mul"):
            return None, []
        if user.op_type == "Mul":
            other = next((v for v in user.inputs if v is not None and v is not passed[-1]), None)
            good = other is not None and _per_channel(other, x, axis, depth)
            return (other if good else None), passed
        passed.append(user.outputs[0])

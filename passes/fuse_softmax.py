"""Softmax, written out or on a flattened value, becomes one node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from ..compiler.patterns import Const, Match, OneOf, Op, Pattern, Var
from ..compiler.rewriting import Made, Rule, rewrite
from .layouts import axis, regroup, resolve, sizes

X = Var("x")


def _along(reduction: str, x: Pattern, name: str) -> Pattern:
    """A reduction of axes that are kept, or dropped and then put back."""
    kept = Op(reduction, x, Var(f"{name} axes"), name=name, keepdims=1)
    dropped = Op(reduction, x, Var(f"{name} axes"), name=name, keepdims=0)
    # jax guards the maximum of nothing.
    guarded = OneOf(dropped, Op("Max", Const(-math.inf), dropped))
    return OneOf(kept, Op("Reshape|Unsqueeze", guarded, ..., name=f"{name} back"))


_GREATEST = _along("ReduceMax", X, "max")
_EXP = OneOf(Op("Exp", Op("Sub", X, _GREATEST)), Op("Exp", X))


def _softmax(m: Match) -> Made | str:
    rank, found = g.rank(m["x"]), set()
    assert rank is not None
    for name in ("max", "sum"):
        node, back = m.named.get(name), m.named.get(f"{name} back")
        if node is None:
            continue
        axes = g.ints(m.values.get(f"{name} axes"))
        if axes is None or len(axes) != 1:
            return f"its {name} is not over one constant axis"
        at = axes[0] % rank
        found.add(at)
        if back is not None and not _puts_back(m["x"], back.outputs[0], at):
            return f"its {name} does not come back to axis {at}"
    if len(found) != 1:
        return f"maximum and sum are over different axes, {sorted(found)}"
    return "Softmax", [m["x"]], {"axis": found.pop()}


def _puts_back(x: ir.Value, reduced: ir.Value, at: int) -> bool:
    """Whether `reduced` is shaped like `x`, with size 1 along the axis."""
    dims, found = g.shape(x), g.shape(reduced)
    if dims is None or found is None or len(dims) != len(found):
        return False
    return all(
        new == 1 if i == at else new == old is not None for i, (old, new) in enumerate(zip(dims, found, strict=True))
    )


RULES = (
    Rule("Softmax", Op("Div", _EXP, _along("ReduceSum", _EXP, "sum")), _softmax),
    Rule(
        "LogSoftmax",
        Op("Log", Op("Softmax", X, name="softmax")),
        lambda m: ("LogSoftmax", [m["x"]], {"axis": g.attr(m.named["softmax"], "axis", -1)}),
    ),
)


@dataclass(frozen=True)
class FuseSoftmax(Pass):
    """Replace the parts of a softmax by the operator, on the value as it was.

    Before: `Exp(x - ReduceMax(x)) / ReduceSum(Exp(x - ReduceMax(x)))`, After: `Softmax(x)`
    Before: `Log(Softmax(x))`, After: `LogSoftmax(x)`
    Before: `Reshape(Softmax(Flatten(x)))`, all axes but one made one, as converters from old opsets write it,
    After: `Softmax(x)`
    """

    name: ClassVar[str] = "fuse-softmax"

    def run(self, model: ir.Model, ctx: Context) -> int:
        count = rewrite(model, RULES, ctx)
        return count + sum(_unflatten(node) for node in g.nodes(model, "Softmax", "LogSoftmax"))


def _unflatten(node: ir.Node) -> bool:
    before, after = g.producer(node.inputs[0], "Reshape", "Flatten"), g.sole_user(node.outputs[0], "Reshape")
    x = None if before is None else before.inputs[0]
    if before is None or after is None or x is None or after.inputs[0] is not node.outputs[0]:
        return False
    start, flat, end = sizes(x), sizes(before.outputs[0]), sizes(after.outputs[0])
    if start is None or flat is None or end is None or g.attr(node, "axis", -1) not in (-1, len(flat) - 1):
        return False
    axes = [axis(s) for s in start]
    middle = regroup(axes, flat)
    back = None if middle is None else regroup(middle, end)
    if middle is None or back is None or resolve(back) != resolve(axes):
        return False
    # Of [N, C, 1, 1] flattened to [N, C], the last axis is axis 1.
    normalised = resolve(middle)[-1]
    at = [i for i, leaves in enumerate(resolve(axes)) if leaves == normalised]
    if len(at) != 1:
        return False
    old = after.outputs[0]
    new = g.insert_before(after, node.op_type, [x], {"axis": at[0] if at[0] < len(start) - 1 else -1}, like=old)
    g.replace_value(old, new.outputs[0])
    g.remove([after, node, before], sources=True)
    return True

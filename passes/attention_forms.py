"""The two forms of an Attention node, and what each costs: on [batch, length, heads · size], or [batch, heads, …]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ..compiler import graph as g
from .attention_mask import Mask, Masks
from .layouts import Axis, Size, arrange, axis, resolve, size_of
from .tracing import LAYOUT, View, opaque, step, trace
from .view_steps import Step, build

Steps = tuple[Step, ...]
"""How to get a value from another one."""


@dataclass
class Core:
    """An attention as found: scores = MatMul, context = MatMul; `nodes` are those that go."""

    scores: ir.Node
    context: ir.Node
    scale: float
    masks: list[Mask]
    nodes: list[ir.Node]


@dataclass
class Operand:
    """q, k or v: its view, and its axes as batch, heads, length and size."""

    view: View
    batch: Axis
    heads: Axis
    length: Axis
    size: Axis

    @property
    def sizes(self) -> tuple[Size, ...]:
        return tuple(size_of(a) for a in (self.batch, self.heads, self.length, self.size))

    def flat(self) -> Steps | None:
        """How to get `[batch, length, heads · size]` from the base; the axis that is picked from goes before heads."""
        picked = self.view.picked()
        last = [*picked, *self.heads, *self.size]
        return arrange(self.view.axes, [self.batch, self.length, last]) if len(picked) <= 1 else None

    def split(self) -> Steps | None:
        """How to get `[batch, heads, length, size]` from the base."""
        wanted = [self.batch, self.heads, self.length, self.size]
        return None if self.view.picked() else arrange(self.view.axes, wanted)


def _operand(view: View | None, transposed: bool, merged: bool = False) -> Operand | None:
    """Name the axes of q, k or v. Of rank 3, leading axes in the base's last one are heads, or all if `merged`.

    Heads that an Expand repeats, each one in turn, are left out: Attention repeats them itself.
    """
    if view is None:
        return None
    dims = resolve(view.dims)
    if transposed:
        dims[-1], dims[-2] = dims[-2], dims[-1]
    lead = [leaf for dim in dims[:-2] for leaf in dim]
    batch, heads = dims[0], dims[1]
    if len(dims) == 3:
        last = resolve(view.axes)[-1]
        heads = [leaf for leaf in lead if merged or leaf in last or leaf.repeated]
        batch = [leaf for leaf in lead if leaf not in heads]
    while heads and heads[-1].repeated:
        heads = heads[:-1]
    return Operand(view, batch, heads, dims[-2], dims[-1])


def fuse(core: Core, masks: Masks, packed: Packed) -> str:
    """Rewrite; "" when done, or why not."""
    values = [core.scores.inputs[0], core.scores.inputs[1], core.context.inputs[1]]
    q, k, v = (value for value in values if value is not None)
    if None in (g.rank(q), g.rank(k), g.rank(v)) or len({g.rank(q), g.rank(k), g.rank(v)}) != 1:
        return "q, k and v are of different ranks"
    out = core.context.outputs[0]
    flat = _Form([_operand(trace(x, scaled=x is not v), x is k) for x in (q, k, v)], core, flat=True)
    split = _Form([_cheapest(x, x is k, scaled=x is not v) for x in (q, k, v)], core, flat=False)
    forms = [form for form in (flat, split) if not form.why]
    if not forms:
        return split.why
    best = min(forms, key=lambda form: form.cost)
    best.emit(masks, packed)
    g.remove(core.nodes)
    for value in (q, k, v):
        node = value.producer()
        if node is not None:
            g.remove_upwards(node)
    assert not out.uses()
    return ""


def _cheapest(value: ir.Value, transposed: bool, scaled: bool) -> Operand | None:
    """The view that gives the four-dimensional form with the fewest nodes."""
    merged = g.rank(value) == 3
    found = [_operand(v, transposed, merged) for v in (trace(value, scaled=scaled), opaque(value))]
    usable = [
        (len(layout) - o.view.length, i, o)
        for i, o in enumerate(found)
        if o is not None and (layout := o.split()) is not None
    ]
    return min(usable)[2] if usable else None


class _Form:
    """One way to write the attention, on [batch, length, heads · size] (flat) or [batch, heads, length, size]."""

    def __init__(self, operands: Sequence[Operand | None], core: Core, flat: bool) -> None:
        self.core, self.is_flat, self.why = core, flat, ""
        self.operands = [o for o in operands if o is not None]
        if len(self.operands) < 3:
            self.why = "the axes of q, k and v can't be followed"
            return
        self.layouts = [layout for o in self.operands if (layout := o.flat() if flat else o.split()) is not None]
        if len(self.layouts) < 3:
            self.why = "q, k and v are not slices of values of one layout"
            return
        self.why = self._unfit() or self._masks_unfit()
        self.result, self.after, self.passed = self._result()
        chains = sum(o.view.length for o in self.operands) + len(self.passed)
        self.cost = sum(len(layout) for layout in self.layouts) + len(self.after) - chains

    def _unfit(self) -> str:
        q, k, v = (o.sizes for o in self.operands)
        if not (q[0] == k[0] == v[0] and k[1:3] == v[1:3] and q[3] == k[3]):
            return f"the sizes of q {list(q)}, k {list(k)} and v {list(v)} are not known to fit"
        heads, kv_heads = q[1], k[1]
        if isinstance(heads, int) and isinstance(kv_heads, int):
            return "" if heads % kv_heads == 0 else f"{heads} query heads don't share {kv_heads} key heads evenly"
        return "its number of heads is not known" if self.is_flat or heads != kv_heads else ""

    def _masks_unfit(self) -> str:
        """Masks of merged scores [batch · heads, queries, keys] say nothing of heads."""
        if g.rank(self.core.context.outputs[0]) == 3 and self.operands[0].sizes[0] != 1:
            for mask in self.core.masks:
                dims = g.shape(mask.value)
                if dims is None or (len(dims) == 3 and dims[0] != 1):
                    return "its mask is different for each batch and head"
        return ""

    def _result(self) -> tuple[ir.Value, Steps, list[ir.Node]]:
        """The value that is replaced, how to get it from the attention, and the nodes that this makes needless."""
        q, v = self.operands[0], self.operands[2]
        batch, heads, length, size = (axis(s) for s in (*q.sizes[:3], v.sizes[3]))
        have = [batch, length, [*heads, *size]] if self.is_flat else [batch, heads, length, size]
        value = self.core.context.outputs[0]
        dims = [batch, heads, length, size] if g.rank(value) == 4 else [[*batch, *heads], length, size]
        passed: list[ir.Node] = []
        best: tuple[ir.Value, Steps, list[ir.Node]] | None = None
        while True:
            layout = arrange(have, dims)
            if layout is not None and (best is None or len(layout) - len(passed) <= len(best[1]) - len(best[2])):
                best = value, layout, list(passed)
            node = g.sole_user(value, *LAYOUT)
            after = step(node.outputs[0], dims) if node is not None and node.inputs[0] is value else None
            if node is None or after is None:
                break
            value, dims = node.outputs[0], after
            passed.append(node)
        if best is None:
            self.why = self.why or "its result can't be laid out"
            return value, (), []
        return best

    def emit(self, masks: Masks, packed: Packed) -> None:
        """Insert the node and put its result in the place of the old one."""
        anchor = self.core.context
        pairs = list(zip(self.operands, self.layouts, ("q", "k", "v"), strict=True))
        if self.is_flat:
            q, k, v = (packed.part(o, layout, anchor, f"{o.view.base.name}_{n}") for o, layout, n in pairs)
        else:
            q, k, v = (_arranged(layout, o.view.base, anchor, f"{o.view.base.name}_{n}") for o, layout, n in pairs)
        mask, causal = masks.build(
            self.core.masks, (q, 1 if self.is_flat else 2), (k, 1 if self.is_flat else 2), anchor
        )
        node = g.insert_before(
            anchor,
            "Attention",
            [q, k, v] if mask is None else [q, k, v, mask],
            self._attributes(causal),
            hint=f"{self.result.name}_attention",
        )
        out, sizes = node.outputs[0], self.operands[0].sizes
        out.type = anchor.outputs[0].type
        wide = size_of([*axis(sizes[1]), *axis(self.operands[2].sizes[3])])
        dims = [sizes[0], sizes[2], wide] if self.is_flat else [*sizes[:3], self.operands[2].sizes[3]]
        out.shape = ir.Shape([d if isinstance(d, int) or d.isidentifier() else None for d in dims])
        g.replace_value(self.result, _arranged(self.after, out, anchor, f"{self.result.name}_out"))
        g.remove(self.passed, sources=True)

    def _attributes(self, causal: bool) -> dict[str, Any]:
        q, k = self.operands[0], self.operands[1]
        scale = self.core.scale * q.view.scale * k.view.scale
        attributes: dict[str, Any] = {"is_causal": 1} if causal else {}
        if not isinstance(q.sizes[3], int) or not math.isclose(scale, q.sizes[3] ** -0.5, rel_tol=1e-6):
            attributes["scale"] = scale
        if self.is_flat:
            attributes |= {"q_num_heads": q.sizes[1], "kv_num_heads": k.sizes[1]}
        return attributes


def _arranged(steps: Steps, value: ir.Value, anchor: ir.Node, hint: str) -> ir.Value:
    assert isinstance(anchor.graph, ir.Graph)
    return build(anchor.graph, anchor, value, steps, hint)


@dataclass
class Packed:
    """Values that hold q, k and v side by side, split once."""

    _made: dict[tuple[object, ...], Sequence[ir.Value]] = field(default_factory=dict)

    def part(self, operand: Operand, layout: Steps, anchor: ir.Node, hint: str) -> ir.Value:
        """`[batch, length, heads · size]` of the operand."""
        base, picked = operand.view.base, operand.view.picked()
        if not picked:
            return _arranged(layout, base, anchor, hint)
        parts, at = picked[0].size, picked[0].index
        assert isinstance(parts, int) and at is not None
        key = (base, layout, parts)
        if key not in self._made:
            whole = _arranged(layout, base, anchor, f"{base.name}_packed")
            attributes = {"axis": 2, "num_outputs": parts}
            node = g.insert_before(anchor, "Split", [whole], attributes, hint=f"{base.name}_part", num_outputs=parts)
            for out in node.outputs:
                out.type = base.type
                out.shape = ir.Shape([*(g.shape(whole) or (None, None))[:2], size_of([*operand.heads, *operand.size])])
            self._made[key] = node.outputs
        return self._made[key][at]

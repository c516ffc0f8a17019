"""Half precision: what a model computes is rounded to float16, so that the loss of a target's float16 is measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.graph import attr, const, const_tensor, fresh_name, initializer, insert_before, nodes, shape
from ..compiler.passbase import Context, Pass
from ..compiler.quantization.packed import decoders
from ..compiler.rounding import HALF_MAX, HALF_TINY, insert_pair, is_rounded, to_half
from ..compiler.session import Session
from ..compiler.synthesis import synthesise
from ..compiler.weights import Scratch, release
from . import half
from .half_plan import KEPT, Key, Plan, key, label
from .noise_search import budget, decibels, noise_power, search

INLINE = 16
"""Constants of so few elements that float16 holds exactly stay as they are: they cost nothing and read better."""

NAMED = 4
"""How many operators a note names; it counts the others."""

Halves = dict[str, ir.TensorProtocol]


@dataclass(frozen=True)
class RoundActivations(Pass):
    """Round to float16 every float32 value that an operator computes, and every constant that it reads.

    Before:  `y = Conv(x, w)   z = Gelu(y)`

    After:   `y = Conv(round(x), up(w16))   z = round(Gelu(round(y)))`
             where `round` is the pair Cast(float16) → Cast(float) and `up(w16)` reads a stored float16 constant

    Operators that only move numbers need no pair. These stay in float32, and are named: operators that read or compute
    numbers that float16 has not, or only at less than its full precision; that divide by what it rounds to zero; that
    compute indices and sizes; that the target computes in float32; and, when the outputs lose too much, the few that
    cost them most. A mask's minus infinity (-3.4e38) becomes -16384, an epsilon that float16 lacks 6e-8.

    Options:
        keep: names of nodes or operators that stay in float32, with * and ?, joined by +.
        min_snr: signal-to-noise ratio that the outputs must keep against the model as it is, in dB. Half precision
            costs trained networks about 55 to 70 dB; at 40 dB an error is 1 % of the signal.
    """

    name: ClassVar[str] = "round-activations"
    lossy: ClassVar[bool] = True
    keep: tuple[str, ...] = ()
    min_snr: float = 40.0

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. Runs the model twice; where the outputs lose too much, some 40 times. Raises ModelError."""
        inputs = dict(ctx.inputs or synthesise(model, ctx.seed))
        count = _saturate_masks(model, ctx.scratch)
        plan = Plan.of(model.clone(), self.keep, ctx.target.fp16_rnn)
        plan.measure(inputs)
        halves: Halves = {}
        count += _round_attention_scales(plan.model, ctx) + _round_attention_scales(model, ctx)
        rounded = apply(model, [key(n) for n in plan.half_nodes()], halves, ctx.scratch)
        release(plan.model)
        noise = noise_power(plan.figures.outputs, Session(model).run(inputs)) if rounded else 0.0
        release(model)
        if noise > budget(self.min_snr) and _spare(plan, noise, inputs, self.min_snr, halves, ctx):
            model.graph = plan.model.clone().graph
            rounded = apply(model, [key(n) for n in plan.half_nodes()], halves, ctx.scratch)
        if count + rounded:
            for node in model.graph:
                if key(node) in plan.reasons:
                    node.metadata_props[KEPT] = "float32"
        _explain(plan, model, ctx)
        return count + rounded


def apply(model: ir.Model, names: Sequence[Key], halves: Halves, scratch: Scratch) -> int:
    """Round what the named nodes compute and read. `halves` caches float16 constants by name. Returns the rewrites."""
    chosen, count = set(names), 0
    nodes = [n for n in model.graph if key(n) in chosen]
    edges: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    stored: dict[ir.Value, ir.Value] = {}
    made = {o for n in nodes for o in half.float_outputs(n)}
    for node in nodes:
        count += _round_attributes(node)
        for i, value in list(half.data_inputs(node)):
            if const_tensor(value) is not None:
                count += _round_constant(node, i, value, stored, halves, scratch)
            elif value not in made and not is_rounded(value):
                edges[value].append(node)
    for node in nodes:
        if not half.is_exact(node):
            for out in half.float_outputs(node):
                if not _read_rounded_only(out):
                    insert_pair(out)
                    count += 1
    for value, readers in edges.items():
        count += _round_scale(value, scratch)
        insert_pair(value, readers)
        count += 1
    for old in stored:
        if not old.uses() and not old.is_graph_output():
            model.graph.initializers.pop(old.name or "", None)
    return count


def _read_rounded_only(value: ir.Value) -> bool:
    """Whether all that read `value` round it already."""
    casts = (n.op_type == "Cast" and attr(n, "to") == ir.DataType.FLOAT16 for n, _ in value.uses())
    return not value.is_graph_output() and all(casts)


def _round_attributes(node: ir.Node) -> int:
    """A float16 operator has float16 parameters, too: slopes, scales; an epsilon stays above zero."""
    count = 0
    for name, found in list(node.attributes.items()):
        if found.type != ir.AttributeType.FLOAT or found.value is None or node.op_type == "Attention":
            continue
        value = float(found.value)
        rounded = half.half_epsilon(value) if name == "epsilon" and value > 0 else float(np.float16(value))
        if rounded != value and np.isfinite(rounded):
            node.attributes[name] = ir.AttrFloat32(name, rounded)
            count += 1
    return count


def _round_attention_scales(model: ir.Model, ctx: Context) -> int:
    """Give attentions a scale that float16 applies without error: it is one number for all, and would be off for all.

    A fused attention has its 1 / sqrt(size), and what differs from it is a factor of the query; a written-out one
    multiplies query and key by the root of the scale.
    """
    count = 0
    for node in nodes(model, "Attention"):
        size = _head_size(node)
        if size is None:
            continue
        scale = float(attr(node, "scale") or 0) or 1 / math.sqrt(size)
        if ctx.target.attention and not attr(node, "softcap", 0.0):
            own = 1 / math.sqrt(size)
            rounded = float(np.float16(scale / own)) * own
        else:
            rounded = math.copysign(float(np.float16(math.sqrt(abs(scale)))) ** 2, scale)
        if not math.isclose(rounded, scale, rel_tol=1e-6):
            node.attributes["scale"] = ir.AttrFloat32("scale", rounded)
            count += 1
    return count


def _head_size(node: ir.Node) -> int | None:
    dims = shape(node.inputs[0])
    if dims is None or not isinstance(dims[-1], int):
        return None
    return dims[-1] if len(dims) == 4 else dims[-1] // int(attr(node, "q_num_heads", 1))


def _round_scale(value: ir.Value, scratch: Scratch) -> int:
    """Give a packed weight scales and tables that float16 holds: so they are stored, with what float16 rounds."""
    return sum(_round_factors(node, scratch) for node in decoders(value) or ())


def _round_factors(node: ir.Node, scratch: Scratch) -> int:
    """Round the float32 constants of an operator that unpacks a weight; a scale stays above zero."""
    count = 0
    for i, factor in enumerate(node.inputs):
        array = const(factor) if factor is not None and factor.dtype == half.FLOAT else None
        if factor is None or array is None or not isinstance(node.graph, ir.Graph):
            continue
        with np.errstate(over="ignore"):
            rounded = array.astype(np.float16)
        if i == 1 and node.op_type in ("DequantizeLinear", "ScaleWeight", "ShiftScaleWeight"):
            tiny = np.copysign(np.float16(HALF_TINY), array).astype(np.float16)
            rounded = np.where((rounded == 0) & (array != 0), tiny, rounded)
        if not np.array_equal(rounded.astype(array.dtype), array) and np.isfinite(rounded).all():
            new = initializer(node.graph, rounded.astype(array.dtype), f"{factor.name}__half", scratch)
            node.replace_input_with(i, new)
            count += 1
    return count


def _round_constant(
    node: ir.Node, i: int, value: ir.Value, stored: dict[ir.Value, ir.Value], halves: Halves, scratch: Scratch
) -> int:
    """Make input `i` of `node` read `value` as float16 stores it. Nodes that share it share the result."""
    if value not in stored:
        graph, tensor = node.graph, half_tensor(value, halves, scratch)
        assert isinstance(graph, ir.Graph)
        if tensor.size <= INLINE and np.array_equal(tensor.numpy().astype(np.float32), const(value), equal_nan=True):  # type: ignore[arg-type]
            return 0
        name = fresh_name(graph, f"{value.name}__half")
        source = ir.Value(name=name, shape=value.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(source)
        cast = insert_before(node, "Cast", [source], {"to": int(half.FLOAT)}, like=value, hint=f"{value.name}__up")
        stored[value] = cast.outputs[0]
    node.replace_input_with(i, stored[value])
    return 1


def half_tensor(value: ir.Value, halves: Halves, scratch: Scratch) -> ir.TensorProtocol:
    """The constant `value` in float16, made once per name."""
    name = value.name or ""
    if name not in halves:
        array = const(value)
        assert array is not None
        halves[name] = scratch.tensor(to_half(array), f"{name}__half")
    return halves[name]


def _saturate_masks(model: ir.Model, scratch: Scratch) -> int:
    """Give masks a "minus infinity" that float16 has, and Clip bounds that it has."""
    count = 0
    for node in [n for n in model.graph if n.op_type in half.MASK_PATH and half.can_compute(n)]:
        for i, value in list(half.data_inputs(node)):
            if const_tensor(value) is None or not half.inspect(value).overflow or not half.is_mask(node, value):
                continue
            array = const(value)
            assert array is not None
            limit = HALF_MAX if node.op_type == "Clip" else -half.MASK_VALUE
            finite = np.where(np.abs(array) > HALF_MAX, np.clip(array, -limit, limit), array)
            finite = np.where(np.isinf(array), array, finite).astype(np.float32)
            node.replace_input_with(i, initializer(model.graph, finite, f"{value.name}__finite", scratch))
            if not value.uses() and not value.is_graph_output():
                model.graph.initializers.pop(value.name or "", None)
            count += 1
    return count


def _spare(
    plan: Plan, whole: float, inputs: Mapping[str, np.ndarray], floor: float, halves: Halves, ctx: Context
) -> bool:
    """Leave the few operators in float32 that cost the outputs most, so that these keep `floor` dB.

    `whole` is the noise with all of the plan rounded. Returns whether a few were found.
    """

    def noise(also_stay: Sequence[Key]) -> float:
        trial = plan.model.clone()
        apply(trial, [key(n) for n in plan.half_nodes(also_stay)], halves, ctx.scratch)
        return noise_power(plan.figures.outputs, Session(trial).run(inputs))

    result = search([key(n) for n in plan.half_nodes() if not half.is_exact(n)], budget(floor), noise)
    for stretch in result.kept:
        for name in stretch.names:
            plan.stay(plan.candidates[name], f"rounding here alone would leave the outputs {decibels(stretch.noise)}")
    if not result.found:
        ctx.note(
            f"in float16 the outputs keep {decibels(whole)}, less than the {floor:.0f} dB wanted, and no few "
            "operators are to blame. Measure with real data (--inputs), or keep everything: --precision fp32"
        )
    return result.found


def _explain(plan: Plan, model: ir.Model, ctx: Context) -> None:
    """Name what stays in float32, with the reason; operators with the same reason share a note."""
    groups: dict[str, list[ir.Node]] = defaultdict(list)
    for name, why in plan.reasons.items():
        groups[why].append(plan.candidates[name])
    for why, members in groups.items():
        more = f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
        ctx.note(f"float32: {', '.join(label(n) for n in members[:NAMED])}{more}: {why}")
    inner = sum(1 for g in list(model.graphs())[1:] for n in g if half.can_compute(n))
    if inner:
        ctx.note(f"float32: {inner} operators inside If, Loop or Scan: they can't be measured from outside")

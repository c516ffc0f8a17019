"""Half precision: what a model computes is rounded to float16, so that the loss of a target's float16 is measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.graph import attr, const, const_tensor, fresh_name, initializer, insert_before
from ..compiler.numerics import compare
from ..compiler.passbase import Context, Pass
from ..compiler.probe import Probe
from ..compiler.rounding import HALF_MAX, insert_pair, is_rounded
from ..compiler.session import Session
from ..compiler.synthesis import synthesise
from ..compiler.weights import Scratch
from . import half
from .half_plan import KEPT, Key, Plan, key, label, makers

TRIALS = 7
"""How often the model is run at most to find the operators that lose too much: 1, 2, 4 … 64 of them in float32."""

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
    compute indices and sizes; that the target computes in float32; and, when the outputs lose too much, as many as it
    takes of those that lose most. A mask's minus infinity (-3.4e38) becomes -16384, an epsilon that float16 lacks 6e-8.

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
        """See the class. Runs the model twice, up to nine more times where too much is lost. Raises ModelError."""
        inputs = dict(ctx.inputs or synthesise(model, ctx.seed))
        count = _saturate_masks(model, ctx.scratch)
        plan = Plan.of(model, self.keep, ctx.target.fp16_rnn)
        plan.measure(inputs)
        halves: Halves = {}
        if self.min_snr > -math.inf:
            _keep_what_loses_most(plan, inputs, self.min_snr, halves, ctx)
        count += apply(model, [key(n) for n in plan.half_nodes()], halves, ctx.scratch)
        if count:
            for name in plan.reasons:
                plan.candidates[name].metadata_props[KEPT] = "float32"
        _explain(plan, model, ctx)
        return count


def apply(model: ir.Model, names: Sequence[Key], halves: Halves, scratch: Scratch) -> int:
    """Round what the named nodes compute and read. `halves` caches float16 constants by name. Returns the rewrites."""
    chosen, count = set(names), 0
    nodes = [n for n in model.graph if key(n) in chosen]
    edges: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    stored: dict[ir.Value, ir.Value] = {}
    made = {o for n in nodes for o in half.float_outputs(n)}
    for node in nodes:
        count += _round_epsilon(node)
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


def _round_epsilon(node: ir.Node) -> int:
    epsilon = attr(node, "epsilon")
    if epsilon is None or epsilon <= 0 or half.half_epsilon(epsilon) == epsilon:
        return 0
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", half.half_epsilon(epsilon))
    return 1


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
        with np.errstate(over="ignore"):
            halves[name] = scratch.tensor(array.astype(np.float16), f"{name}__half")
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


# When the outputs lose too much


def _keep_what_loses_most(
    plan: Plan, inputs: Mapping[str, np.ndarray], floor: float, halves: Halves, ctx: Context
) -> None:
    """Leave operators in float32, those that lose most first, until the outputs keep `floor` dB."""
    first = best = _snr(plan, (), inputs, halves, ctx.scratch)
    if best >= floor:
        return
    order = _losses(plan, inputs, halves, ctx.scratch)
    kept: list[Key] = []
    for trial in range(TRIALS):
        count = 1 << trial
        tried = _with_makers(plan, [k for k, _ in order[:count]])
        snr = _snr(plan, tried, inputs, halves, ctx.scratch)
        if snr > best + 1:
            best, kept = snr, tried
        if snr >= floor or count >= len(order):
            break
    losses = dict(order)
    for name in kept:
        node = plan.candidates[name]
        if name in losses:
            plan.stay(node, f"float16 leaves {losses[name]:.0f} dB of its own result, the outputs had {first:.0f} dB")
        else:
            plan.stay(node, "its result must not be rounded for an operator that loses too much")
    if best < floor:
        ctx.note(
            f"in float16 the outputs keep {best:.1f} dB, less than the {floor:.0f} dB wanted, "
            f"with {len(kept)} operators left in float32; --precision fp32 keeps everything"
        )


def _with_makers(plan: Plan, names: Sequence[Key]) -> list[Key]:
    """The named nodes and those whose results they read: rounding an input costs as much as rounding an output."""
    found = dict.fromkeys(names)
    for name in names:
        for _, value in half.data_inputs(plan.candidates[name]):
            found.update(dict.fromkeys(k for n in makers(value) if (k := key(n)) in plan.candidates))
    return list(found)


def _snr(
    plan: Plan, also_stay: Sequence[Key], inputs: Mapping[str, np.ndarray], halves: Halves, scratch: Scratch
) -> float:
    """The signal-to-noise ratio of the worst float output when the plan is carried out, in dB."""
    trial = plan.model.clone()
    apply(trial, [key(n) for n in plan.half_nodes(also_stay)], halves, scratch)
    reference = {n: a for n, a in plan.figures.outputs.items() if a.dtype.kind == "f" and np.any(a)}
    found = compare(reference, Session(trial).run(inputs))
    return min((d.snr_db for d in found.values()), default=math.inf)


def _losses(
    plan: Plan, inputs: Mapping[str, np.ndarray], halves: Halves, scratch: Scratch
) -> list[tuple[Key, float]]:
    """What each float16 operator loses by itself, in dB, given right inputs; worst first. A run of twice the work."""
    probe = Probe.of(plan.model)
    values = probe.values()
    rounded: dict[str, ir.Value] = {}

    def round_(value: ir.Value) -> ir.Value:
        down = probe.node("Cast", value, to=int(ir.DataType.FLOAT16))
        return probe.node("Cast", down, to=int(half.FLOAT))

    names = [key(n) for n in plan.half_nodes() if not half.is_exact(n)]
    for name in names:
        node = values[name].producer()
        assert node is not None
        positions = dict(half.data_inputs(node))
        for value in positions.values():
            v = value.name or ""
            if v not in rounded:
                stored = const_tensor(value) is not None
                source = probe.tensor(half_tensor(value, halves, scratch)) if stored else value
                rounded[v] = probe.node("Cast", source, to=int(half.FLOAT)) if stored else round_(source)
        feeds = [rounded[v.name or ""] if i in positions and v else v for i, v in enumerate(node.inputs)]
        again = ir.Node(
            node.domain, node.op_type, feeds, list(node.attributes.values()), num_outputs=len(node.outputs)
        )  # fmt: skip
        for i, out in enumerate(again.outputs):
            out.name = f"edgec.again.{len(probe.model.graph)}.{i}"
        probe.model.graph.append(again)
        error = probe.node("Sub", round_(again.outputs[0]), values[name])
        probe.ask(f"noise {name}", probe.node("ReduceSumSquare", error, keepdims=0))
        probe.ask(f"signal {name}", probe.node("ReduceSumSquare", values[name], keepdims=0))
    _, found = probe.run(inputs)
    return sorted(((n, _decibels(found[f"signal {n}"], found[f"noise {n}"])) for n in names), key=lambda x: x[1])


def _decibels(signal: float, noise: float) -> float:
    if noise == 0 or signal == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if math.isfinite(noise) else -math.inf


def _explain(plan: Plan, model: ir.Model, ctx: Context) -> None:
    """Name what stays in float32, with the reason; operators with the same reason share a note."""
    groups: dict[str, list[ir.Node]] = defaultdict(list)
    for name, why in plan.reasons.items():
        groups[why].append(plan.candidates[name])
    for why, nodes in groups.items():
        more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
        ctx.note(f"float32: {', '.join(label(n) for n in nodes[:NAMED])}{more}: {why}")
    inner = sum(1 for g in list(model.graphs())[1:] for n in g if half.can_compute(n))
    if inner:
        ctx.note(f"float32: {inner} operators inside If, Loop or Scan: they can't be measured from outside")

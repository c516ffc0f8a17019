"""Which operators of a model compute in float16, and why the others don't: decided on measured numbers."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..compiler.graph import attr, const, const_tensor, scalar
from ..compiler.probe import Figures, Range, Spread, measure
from ..compiler.rounding import HALF_MAX, HALF_NORMAL, HALF_TINY, is_rounded
from . import half

HEADROOM = 2.0
"""Other inputs give other numbers: what is measured must fit float16 this many times."""

SQUARE_LIMIT = float(np.sqrt(HALF_MAX))
LONG = 60
"""Characters of a node's name that a message shows: converters make names of hundreds."""

KEPT = "edgec.precision"
"""Metadata of a node that this pass left in float32, so that a second run leaves it as well."""

Key = str


def key(node: ir.Node) -> Key:
    """What a node is called in a model and its clones."""
    return next((o.name for o in node.outputs if o.name), "")


def label(node: ir.Node) -> str:
    """What a node is called in a message."""
    name = node.name or key(node)
    return f"{node.op_type} '{name if len(name) <= LONG else name[: LONG - 1] + '…'}'"


@dataclass
class Plan:
    """The operators of a model that can compute in float16, and the reasons why others can't.

    Attributes:
        model: the model that is looked at.
        candidates: nodes that float16 is possible for, in graph order.
        reasons: why a candidate stays in float32.
        figures: what was measured.
    """

    model: ir.Model
    candidates: dict[Key, ir.Node] = field(default_factory=dict)
    reasons: dict[Key, str] = field(default_factory=dict)
    figures: Figures = field(default_factory=lambda: Figures({}, {}, {}, {}))

    @classmethod
    def of(cls, model: ir.Model, keep: Sequence[str], rnn: bool) -> Plan:
        """The plan as far as the graph alone tells, without activations. `keep`: globs of names or operators."""
        plan = cls(model, {key(n): n for n in model.graph if half.can_compute(n)})
        for node in half.index_nodes(model.graph):
            plan.stay(node, "computes an index or a size")
        for node in list(plan.candidates.values()):
            if any(fnmatch.fnmatchcase(name or "", k) for k in keep for name in (node.name, node.op_type)):
                plan.stay(node, "kept by the option 'keep'")
            elif node.metadata_props.get(KEPT) == "float32":
                plan.stay(node, "kept by an earlier run")
            elif node.op_type in half.RECURRENT and not rnn:
                plan.stay(node, "the target's recurrent operators are float32")
            else:
                plan._constants(node)
        return plan

    def stay(self, node: ir.Node, why: str) -> None:
        """Leave `node` in float32; the first reason counts."""
        if key(node) in self.candidates:
            self.reasons.setdefault(key(node), why)

    def _constants(self, node: ir.Node) -> None:
        for _, value in half.data_inputs(node):
            if const_tensor(value) is None:
                continue
            found = half.inspect(value)
            if found.overflow:
                self.stay(node, f"'{value.name}' holds {found.overflow:.3g}, float16 ends at {HALF_MAX:.0f}")
            elif found.vanishes:
                number = scalar(value)
                what = f"{number:.3g}" if number is not None else f"'{value.name}'"
                for guarded in half.guarded(node):
                    self.stay(guarded, f"the constant {what} is zero in float16")
            elif found.error > 2.0**-10 and node.op_type in ("Mul", "Div", "Pow"):
                self.stay(node, f"its constant '{value.name}' is too small for float16's full precision")

    # Measured numbers

    def measure(self, inputs: dict[str, np.ndarray]) -> None:
        """Run the model once on `inputs` and leave in float32 what float16 can't hold. Raises ModelError."""
        open_ = [n for n in self.candidates.values() if key(n) not in self.reasons]
        ranges: set[str] = set()
        least: dict[Key, ir.Value] = {}
        spreads: dict[Key, Spread] = {}
        for node in open_:
            read = [v for _, v in half.data_inputs(node) if not half.known(v)]
            origins = (half.origin(v) for v in (*half.float_outputs(node), *read))
            ranges.update(v.name or "" for v in origins if not half.known(v))
            small = half.SMALL_HURTS.get(node.op_type)
            divisor = node.inputs[small] if small is not None else None
            if divisor is not None and const_tensor(divisor) is None:
                least[key(node)] = divisor
            if 0 < attr(node, "epsilon", 0.0) < HALF_TINY and (question := _spread(node)):
                spreads[key(node)] = question
        divisors = dict.fromkeys(v.name or "" for v in least.values())
        self.figures = measure(self.model, inputs, sorted(ranges), divisors, dict.fromkeys(spreads.values()))
        for node in open_:
            self._judge_range(node)
            if key(node) in least:
                self._judge_divisor(node, least[key(node)])
            if 0 < attr(node, "epsilon", 0.0) < HALF_TINY:
                self._judge_epsilon(node, spreads.get(key(node)))

    def _judge_range(self, node: ir.Node) -> None:
        inputs = [v for _, v in half.data_inputs(node)]
        for what, values in (("computes", half.float_outputs(node)), ("reads", inputs)):
            for value in values:
                found = self.figures.ranges.get(half.origin(value).name or "", Range(0, 0)).peak
                if not found <= HALF_MAX / HEADROOM:
                    self.stay(node, f"{what} values up to {found:.3g}, float16 ends at {HALF_MAX:.0f}")
                elif 0 < found < HALF_NORMAL:
                    self.stay(node, f"{what} nothing above {found:.3g}, too small for float16's full precision")
                elif what == "reads" and node.op_type in half.SQUARING and found > SQUARE_LIMIT:
                    self.stay(node, f"squares values up to {found:.3g}, more than float16 holds")

    def _judge_divisor(self, node: ir.Node, divisor: ir.Value) -> None:
        found = self.figures.least[divisor.name or ""]
        if found < HALF_NORMAL:
            why = f"{label(node)} depends on values as small as {found:.3g}, below float16's full precision"
            self.stay(node, why)
            for maker in makers(divisor):
                self.stay(maker, why)

    def _judge_epsilon(self, node: ir.Node, question: Spread | None) -> None:
        epsilon = attr(node, "epsilon", 0.0)
        least = self.figures.spreads[question] if question else _running_variance(node)
        change = abs(half.half_epsilon(epsilon) - epsilon) / (max(least, 0.0) + epsilon)
        if not change <= half.EPSILON_MATTERS:
            self.stay(node, f"its epsilon {epsilon:.3g} is zero in float16, with a variance as small as {least:.3g}")

    # The result

    def half_nodes(self, also_stay: Iterable[Key] = ()) -> list[ir.Node]:
        """The nodes that compute in float16, in graph order, when those of `also_stay` don't either.

        An operator that only moves numbers goes with its neighbours: it is float16 where all that it reads is, or
        where all that read it are.
        """
        kept = set(self.reasons) | set(also_stay)
        chosen: set[ir.Node] = set()
        undecided: list[ir.Node] = []
        for name, node in self.candidates.items():
            if name in kept:
                continue
            values = [v for _, v in half.data_inputs(node) if const_tensor(v) is None]
            ready = bool(values) and all(is_rounded(v) or v.producer() in chosen for v in values)
            if ready or not half.is_exact(node):
                chosen.add(node)
            else:
                undecided.append(node)
        for node in reversed(undecided):
            outputs = half.float_outputs(node)
            users = {n for o in outputs for n, _ in o.uses()}
            if users and users <= chosen and not any(o.is_graph_output() for o in outputs):
                chosen.add(node)
        return [n for n in self.candidates.values() if n in chosen]


def makers(value: ir.Value) -> list[ir.Node]:
    """The operators that computed `value`, looking through those that only move numbers."""
    found, stack = [], [value]
    while stack:
        node = stack.pop().producer()
        if node is None:
            continue
        if half.is_exact(node):
            stack += [v for _, v in half.data_inputs(node)]
        found.append(node)
    return found


def _spread(node: ir.Node) -> Spread | None:
    axes, value = half.variance_axes(node), node.inputs[0]
    if axes is None or value is None or not axes:
        return None
    return Spread(value.name or "", tuple(axes), node.op_type != "RMSNormalization")


def _running_variance(node: ir.Node) -> float:
    """The smallest variance of a BatchNormalization's channels; 0 where nothing is known."""
    variance = const(node.inputs[4]) if node.op_type == "BatchNormalization" else None
    return float(variance.min()) if variance is not None and variance.size else 0.0

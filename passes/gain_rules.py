"""The walk that finds which factors channels of a graph may have. See `channel_gains`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context
from .channel_gains import Ids, Network, Trace, Unscalable, Use
from .gain_layers import LAYERS
from .gain_views import VIEWS

RULES = VIEWS | LAYERS
"""Operators that factors pass. Others, and forms of these for which a rule raises Unscalable, fix what they read."""


def network(model: ir.Model, ctx: Context) -> Network:
    """All factors in the main graph that leave what the model computes as it is."""
    trace = Trace(ctx)
    for node in model.graph:
        read, before = [v for v in node.inputs if v is not None], trace.count
        known = not node.domain and all(g.rank(v) is not None for v in read)
        rule = RULES.get(node.op_type) if known else None
        try:
            made = [] if rule is None else rule(trace, node)
        except Unscalable:
            made, rule = [], None
            trace.fix(np.arange(before, trace.count))
        if rule is None:
            for value in (*read, *_captured(node)):
                trace.fix(trace.ids(value))
        for value, ids in zip(node.outputs, made if isinstance(made, list) else [made], strict=False):
            if ids.any() and ids.ndim == g.rank(value):
                trace.labels[value] = ids
            else:
                trace.fix(ids)
    for value in model.graph.outputs:
        trace.fix(trace.ids(value))
    return _numbered(trace)


def _captured(node: ir.Node) -> list[ir.Value]:
    """What the graphs inside a node read, from around it too."""
    inner = g.subgraphs(node)
    read = [v for sub in inner for n in sub.all_nodes() for v in n.inputs if v is not None]
    return [*read, *(v for sub in inner for v in sub.outputs)]


def _numbered(trace: Trace) -> Network:
    """The network without factors that nothing multiplies, or nothing divides by."""
    of = trace.classes()

    def number(ids: Ids) -> Ids:
        return np.asarray(np.sign(ids) * of[np.abs(ids)])

    count = int(np.abs(of).max()) + 1
    sides = np.zeros((2, count), bool)
    for use in trace.uses:
        if use.role != "shift":
            found = number(use.ids)
            sides[0, found[found > 0]], sides[1, -found[found < 0]] = True, True
    both = sides[0] & sides[1]
    of = np.where(both[np.abs(of)], of, 0)
    left, place = np.unique(np.abs(of), return_inverse=True)
    of = np.sign(of) * (place if left[0] == 0 else place + 1)
    uses = (Use(u.node, u.at, u.view, number(u.ids), u.role, u.data) for u in trace.uses)
    labels = {v: found for v, ids in trace.labels.items() if (found := number(ids)).any()}
    return Network(tuple(u for u in uses if u.ids.any()), int(np.abs(of).max()) + 1, labels)

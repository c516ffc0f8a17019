"""Which normalisations over the channels may lose some: those of the residual stream of transformers.

An RMSNormalization is the same over fewer channels if those that go are zero, and scale and eps follow. One that
subtracts the mean is, if what goes holds the *mean of what stays*: then the mean stays too, and nothing is added to
the squares. What writes the stream by linear operators can do that, if its weights do (`writers`). Elsewhere, as where
the stream is the output of a normalisation, what goes can only be zero, and the normalisation goes on counting zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ..cost.sizes import Sizes
from ..errors import UsageError
from ..graph import attr, is_const
from .components import components
from .coupling import Coupling, Plan
from .flow import couple
from .grids import FROZEN, Ids
from .norms import Norm, norms
from .outputs import meets
from .writers import VIEWS, Leaf, Writers

WIDTHS = ("none", "exact", "padded")
READERS = ("MatMul", "Gemm", "Conv")


@dataclass(eq=False)
class Stream:
    """Normalisations with common channels.

    Attributes:
        leaves: the constants that write it, where what goes is their mean. Empty where it is zero.
        through: the values between these and the normalisations.
        padded: whether those of them that subtract a mean go on counting what is gone as zeros.
        why: why nothing can go; empty where something can.
    """

    norms: list[Norm]
    leaves: list[Leaf] = field(default_factory=list)
    through: set[ir.Value] = field(default_factory=set)
    padded: bool = False
    why: str = ""

    @property
    def needs_zero(self) -> bool:
        """Whether what goes is zero, and not the mean."""
        return not self.leaves


def coupled(model: ir.Model, width: str = "exact", unlike: Collection[ir.Node] = ()) -> Coupling:
    """The coupling of a model in which normalisations may lose channels.

    `width` is `none`, `exact`: where what is left is the same normalisation of fewer channels, or `padded`: also where
    it goes on counting what is gone as zeros. The streams of the nodes `unlike` are not written by means.
    """
    if width not in WIDTHS:
        raise UsageError(f"width={width}: choose one of {', '.join(WIDTHS)}")
    found = norms(model) if width != "none" else []
    if not found:
        return couple(model)
    sizes = Sizes(model)
    free = couple(model, Plan({n: False for norm in found for n in norm.looks}), sizes)
    free, streams, outputs = _found(model, found, free, sizes, width == "padded")
    barred = set(unlike)
    while True:
        plan = _plan(streams, width, barred, outputs)
        coupling = free if _is_free(plan, free) else couple(model, plan, sizes)
        coupling.plan = plan
        wrong = [s for s in streams if s.leaves and not s.why and not _readable(coupling, s)]
        if not wrong:
            break
        barred.update(s.norms[0].node for s in wrong)
    for s in streams:
        if s.why:
            coupling.closed.append(f"{s.norms[0].node.name} ({s.norms[0].node.op_type}): {s.why}")
        elif left := [norm for norm in s.norms if all(n in coupling.opened for n in norm.looks)]:
            coupling.streams.append(replace(s, norms=left))
    coupling.notes += coupling.closed
    return coupling


def _is_free(plan: Plan, free: Coupling) -> bool:
    """Whether nothing of a plan could make a coupling other than that in which all may go."""
    open_ = free.plan.open
    return (
        replace(free.plan, open=plan.open) == plan
        and plan.open.keys() == open_.keys()
        and not any(zero and n in free.filled for n, zero in plan.open.items())
    )


def _found(
    model: ir.Model, found: Sequence[Norm], free: Coupling, sizes: Sizes, padded: bool
) -> tuple[Coupling, list[Stream], frozenset[ir.Value]]:
    """The streams, and the outputs that are parts of them and may lose zeros: none but where streams are padded."""
    streams = _streams(free, found)
    if sum(len(s.norms) for s in streams) == len(found):
        return free, streams, frozenset()
    freer = couple(model, Plan(free.plan.open, outputs=frozenset(model.graph.outputs)), sizes)
    of = freer.atoms.classes()
    wider = _streams(freer, found)
    seen = {n.node for s in streams for n in s.norms}
    outputs: set[ir.Value] = set()
    for s in wider:
        if not any(n.node in seen for n in s.norms):
            own = np.unique(np.concatenate([of[freer.opened[n.looks[0]]] for n in s.norms]))
            returned = [v for v in freer.returned if meets(freer, of, v, own)]
            outputs.update(returned)
            if not padded and returned:
                s.why = f"its channels are those of output '{returned[0].name}'"
                streams.append(s)
    return (freer, wider, frozenset(outputs)) if padded else (free, streams, frozenset())


def _streams(free: Coupling, found: Sequence[Norm]) -> list[Stream]:
    """The normalisations of which anything could go, were all free, those with common channels together."""
    of = free.atoms.classes()
    seen = [n for n in found if all(k in free.opened for k in n.looks)]
    open_ = [n for n in seen if (of[free.opened[n.looks[0]]] != FROZEN).any()]
    if not open_:
        return []
    classes = [of[free.opened[n.looks[0]]] for n in open_]
    count = int(of.max()) + 1
    owners = np.repeat(np.arange(len(open_)) + count, [c.size for c in classes])
    flat = np.concatenate(classes)
    joined = components(owners[flat != FROZEN], flat[flat != FROZEN], count + len(open_))[count:]
    writers = Writers(free, of)
    made = []
    for k in dict.fromkeys(joined.tolist()):
        members = [n for n, j in zip(open_, joined, strict=True) if j == k]
        made.append(_stream(free, members, [c for c, j in zip(classes, joined, strict=True) if j == k], writers))
    return made


def _stream(free: Coupling, members: list[Norm], classes: Sequence[Ids], writers: Writers) -> Stream:
    stream = Stream(members)
    if not any(n.centred for n in members):
        return stream
    if not all(n.centred for n in members):
        stream.why = "its channels are those of a normalisation that subtracts no mean"
        return stream
    for norm, own in zip(members, classes, strict=True):
        stream.why = writers.collect(norm.x, own, stream.leaves, stream.through)
        if stream.why:
            break
    return stream


def _plan(streams: Sequence[Stream], width: str, barred: Collection[ir.Node], outputs: frozenset[ir.Value]) -> Plan:
    """What of these streams may go. Decides how, and says so in them."""
    open_: dict[ir.Node, bool] = {}
    carrying: set[ir.Value] = set()
    filled: dict[ir.Value, frozenset[int]] = {}
    for s in streams:
        if s.leaves and any(n.node in barred for n in s.norms):
            s.why = s.why or "what reads its weights looks at what goes"
        if s.why or (any(n.centred for n in s.norms) and not s.leaves):
            s.leaves = []
            if width != "padded":
                continue
            written = next((n.node for n in s.norms if n.centred and n.written), None)
            if written is not None:
                s.why = f"{written.name} is written out; fuse-normalization first"
                continue
            s.why, s.padded = "", True
        open_.update({n: s.needs_zero for norm in s.norms for n in norm.looks})
        carrying.update(s.through if s.leaves else ())
        for leaf in s.leaves:
            for value, axis in ((leaf.value, leaf.axis), *((v, len(v.shape or ()) - 1) for v in leaf.scales)):
                filled[value] = filled.get(value, frozenset()) | {axis}
                carrying.update(u.outputs[0] for u, _ in value.uses() if u.op_type in VIEWS)
    return Plan(open_, frozenset(carrying), filled, outputs)


def _readable(coupling: Coupling, stream: Stream) -> bool:
    """Whether what else reads the weights of the writers, as a head with tied embeddings, can't see what goes."""
    todo = [(leaf.value, leaf.nodes, _ids(coupling, leaf)) for leaf in stream.leaves]
    while todo:
        value, writers, own = todo.pop()
        for node, _ in value.uses():
            if node in writers:
                continue
            if node.op_type in VIEWS and not node.domain:
                todo.append((node.outputs[0], set(), own))
                continue
            if any(np.isin(g.ids, own).any() for v in node.outputs for g in coupling.labels.get(v, ())):
                return False  # what it makes of these slices is not zero, as its label says
            data = next((v for v in node.inputs if v is not None and v is not value and not is_const(v)), None)
            if node.domain or node.op_type not in READERS or data is None or attr(node, "transA", 0):
                return False
            if not all(g.zero for g in coupling.labels.get(data, ())):
                return False
    return True


def _ids(coupling: Coupling, leaf: Leaf) -> Ids:
    """The ids over the channels of a constant that writes."""
    found = [h.grid.ids for h in coupling.holds.get(leaf.value, ()) if h.grid.axes == (leaf.axis,)]
    return found[0] if found else np.zeros(0, np.int64)

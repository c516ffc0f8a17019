"""What a lossy pass did, in parts that can be taken back one by one: by default the tensors that it replaced.

A pass whose changes hang together may say itself what its parts are (`Pass.parts`): families of channels, say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..weights import Scratch


@dataclass(frozen=True)
class Unit:
    """What only makes sense together.

    Attributes:
        names: of tensors, or of what else a pass changes, the largest first.
        size: elements of all.
    """

    names: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Parts:
    """What can be taken back of a pass.

    Attributes:
        what: what the names stand for, in the plural.
        units: in the order in which they run.
        make: the model before the pass with the changes of these names only; new tensors go into the scratch folder.
    """

    what: str
    units: Sequence[Unit]
    make: Callable[[Collection[str], Scratch], ir.Model]


def tensors(before: ir.Model, after: ir.Model) -> Parts | None:
    """The tensors that a pass replaced, each with those of the layer that reads it; None where it did more than that.

    A bias that makes up for the error of a weight is wrong without it.
    """
    if _structure(before) != _structure(after):
        return None

    def make(names: Collection[str], _: Scratch) -> ir.Model:
        model = before.clone()
        _take(model, after, names)
        return model

    return Parts("tensors", changed_units(before, after), make)


def changed_units(before: ir.Model, after: ir.Model) -> list[Unit]:
    """What has other numbers than before, in the order of the nodes that read it."""
    old = _initializers(before)
    changed = {
        v: n
        for n, v in _initializers(after).items()
        if n in old and v.const_value is not old[n].const_value and v.const_value is not None
    }
    of: dict[ir.Value, ir.Value] = {}

    def root(v: ir.Value) -> ir.Value:
        while of.get(v, v) is not v:
            v = of[v]
        return v

    readers: dict[ir.Node, ir.Value] = {}
    for value in changed:
        for node in _layers(value):
            first = readers.setdefault(node, value)
            of[root(value)] = root(first)
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value in changed:
        groups.setdefault(root(value), []).append(value)
    return [_unit(values) for values in groups.values()]


def _take(model: ir.Model, other: ir.Model, names: Collection[str]) -> None:
    """Give the named initializers of `model` the tensors that they have in `other`, and what is noted of these."""
    theirs, wanted = _initializers(other), set(names)
    for name, value in _initializers(model).items():
        if name in wanted:
            value.const_value = theirs[name].const_value
            value.meta.clear()
            value.meta.update(theirs[name].meta)


def _initializers(model: ir.Model) -> dict[str, ir.Value]:
    """All initializers by name; names are unique over all graphs."""
    return {n: v for g in model.graphs() for n, v in g.initializers.items()}


def _unit(values: Sequence[ir.Value]) -> Unit:
    sized = sorted(
        ((v.const_value.size if v.const_value is not None else 0, v.name or "") for v in values), reverse=True
    )
    return Unit(tuple(n for _, n in sized), sum(s for s, _ in sized))


def _layers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that an initializer belongs to, through what is worked out of constants alone.

    The bias that an Add adds to a product belongs to both.
    """
    for node in value.consumers():
        if all(v is None or v is value or v.is_initializer() for v in node.inputs):
            yield node
            for out in node.outputs:
                yield from _layers(out)
            continue
        yield node
        if node.op_type == "Add":
            maker = next((v.producer() for v in node.inputs if v is not None and v is not value), None)
            if maker is not None and maker.op_type in ("MatMul", "Conv", "ConvTranspose", "Gemm"):
                yield maker


def _structure(model: ir.Model) -> list[object]:
    return [
        (n.domain, n.op_type, tuple(v.name if v is not None else None for v in n.inputs), sorted(n.attributes))
        for g in model.graphs()
        for n in g
    ]

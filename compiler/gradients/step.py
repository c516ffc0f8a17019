"""What a rule sees of the node that it differentiates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from .. import graph as g
from .terms import Tape, Term, sum_to

Grads = Sequence[Term | None]
"""For each input, the gradient with respect to it, in its shape; None where there is none. May end early."""


class Refused(Exception):
    """A rule doesn't cover this form of its operator. Says why."""


@dataclass(frozen=True)
class Step:
    """A node on the way back.

    Attributes:
        node: the operator; its inputs and outputs are at hand, since the forward part runs in the same graph.
        tape: where new nodes go.
        dys: for each output, the gradient of what is differentiated with respect to it; None where nothing reads it.
        wanted: for each input, whether its gradient is needed.
    """

    node: ir.Node
    tape: Tape
    dys: Sequence[Term | None]
    wanted: Sequence[bool]

    @property
    def x(self) -> Term:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> Term:
        """The first output."""
        return self.tape.term(self.node.outputs[0])

    @property
    def dy(self) -> Term:
        """The gradient with respect to the first output. Raises Refused where only another output is used."""
        if any(d is not None for d in self.dys[1:]):
            raise Refused("there is no rule for an output after the first")
        found = self.dys[0]
        assert found is not None
        return found

    def has(self, i: int) -> bool:
        """Whether input `i` is there."""
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def wants(self, i: int) -> bool:
        """Whether the gradient of input `i` is needed."""
        return i < len(self.wanted) and self.wanted[i]

    def input(self, i: int) -> Term:
        """An input that is there."""
        value = self.node.inputs[i]
        assert value is not None
        return self.tape.term(value)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return g.attr(self.node, name, default)

    def rank(self, i: int = 0) -> int:
        """The number of dimensions of input `i`. Raises Refused where it isn't known."""
        found = g.rank(self.node.inputs[i])
        if found is None:
            raise Refused("the number of its dimensions is not known")
        return found

    def ints(self, i: int) -> list[int] | None:
        """The integers of input `i`, None where it isn't there. Raises Refused where they are not constant."""
        if not self.has(i):
            return None
        found = g.ints(self.node.inputs[i])
        if found is None:
            raise Refused(f"its input {i} is not a constant")
        return found

    def to_input(self, i: int, found: Term) -> Term:
        """`found`, in the shape of the output, summed to the shape of input `i`, which was repeated."""
        return sum_to(found, self.y, self.input(i))

    def from_output(self, i: int, make: Callable[[], Term]) -> Term | None:
        """`to_input` of what `make` gives, if it is needed."""
        return self.to_input(i, make()) if self.wants(i) else None

    def as_input(self, found: Term) -> Term:
        """`found`, which has the elements of the first input in order, in its shape."""
        return found.op("Reshape", self.x.shape)


Rule = Callable[[Step], Grads]

"""A loss for a model from its own outputs: how likely they make a target, with or without labels.

What an output's numbers mean is told from the operator that makes it: Softmax, probabilities of classes; Sigmoid,
of bits; anything else, the mean of a normal distribution. So each has a likelihood, and targets can be drawn from it:
the mean square of the gradient of that is the Fisher information (Martens 2020, "New insights and perspectives on the
natural gradient method"; with labels in place of draws it is the empirical one, Kunstner et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_ir as ir

from .. import graph as g
from ..errors import UsageError
from .terms import Tape, Term

Feeds = Mapping[str, np.ndarray]
TARGET = ".target"
"""The target of the output `y` is the input `y.target`, in the shape of the output."""


@dataclass(frozen=True)
class Head:
    """An output with a likelihood.

    Attributes:
        output: its name.
        kind: "classes" (probabilities, or their logarithms, along `axis`), "bits" or "numbers".
        logits: the value that the loss is taken of: where it is one, what goes into Softmax or Sigmoid.
    """

    output: str
    kind: str
    logits: str
    axis: int = -1

    def probabilities(self, found: np.ndarray) -> np.ndarray:
        """What the output says, whether it is probabilities or logarithms."""
        return np.exp(found) if (found < 0).any() else found

    def target(self, found: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
        """A target for an output with these numbers: the likeliest, or one that is drawn.

        Of numbers, for which the likeliest has no gradient, it is a random projection in either case: noise, over the
        root of their mean square.
        """
        if self.kind == "numbers":
            return rng.normal(size=found.shape) / max(float(np.sqrt(np.square(found, dtype=np.float64).mean())), 1e-12)
        p = self.probabilities(found)
        if self.kind == "bits":
            return np.asarray(p > (0.5 if how == "likeliest" else rng.random(p.shape)), np.float64)
        scores = np.log(np.maximum(p, 1e-30))
        if how == "drawn":
            scores = scores + rng.gumbel(size=p.shape)
        return _one_hot(scores.argmax(self.axis), p.shape[self.axis], self.axis)


def _one_hot(classes: np.ndarray, count: int, axis: int) -> np.ndarray:
    return np.moveaxis(np.eye(count)[classes], -1, axis)


def heads(model: ir.Model) -> list[Head]:
    """The float outputs, with what their numbers mean."""
    return [_head(v) for v in model.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]


def _head(output: ir.Value) -> Head:
    value = output
    while (node := g.producer(value, "Identity", "Cast")) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    node, name = g.producer(value, "LogSoftmax", "Sigmoid", "Softmax"), str(output.name)
    if node is None:
        return Head(name, "numbers", name)
    logits = str(node.inputs[0].name)  # type: ignore[union-attr]
    if node.op_type == "Sigmoid":
        return Head(name, "bits", logits)
    return Head(name, "classes", logits, g.attr(node, "axis", -1))


def labelled(found: Iterable[Head], outputs: Feeds) -> Head:
    """The head that labels are for: the first output of shape [N, C]. Raises UsageError where there is none.

    What isn't probabilities is taken for logits.
    """
    for head in found:
        if outputs[head.output].ndim == 2 and outputs[head.output].shape[1] > 1:
            return head if head.kind == "classes" else Head(head.output, "classes", head.output)
    raise UsageError("there are labels, but the model has no output of shape [samples, classes]")


def given(head: Head, shape: Sequence[int], labels: np.ndarray) -> np.ndarray:
    """Labels as a target. Raises UsageError for one that isn't among the classes."""
    rows, count = shape
    if labels.size != rows or labels.min(initial=0) < 0 or labels.max(initial=0) >= count:
        raise UsageError(f"labels must be 0 to {count - 1}, one for each of the {rows} rows of '{head.output}'")
    return _one_hot(labels, count, -1)


def attach(model: ir.Model, found: Sequence[Head]) -> str:
    """Add the loss to the model: minus the logarithm of the likelihood of the targets, which are new inputs, summed.

    Of numbers, the product with the target: it has the gradient of half the squared distance to a point that far away.
    Returns the name of the loss.
    """
    tape = Tape(model.graph)
    values = {v.name: v for v in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs))}
    parts: list[Term] = []
    for head in found:
        output, z = values[head.output], tape.term(values[head.logits])
        target = ir.Value(name=head.output + TARGET, shape=output.shape, type=output.type)
        model.graph.inputs.append(target)
        t = tape.term(target).like(z)
        if head.kind == "classes":
            each = -(z.op("LogSoftmax", axis=head.axis) * t)
        else:
            each = z.op("Softplus") - z * t if head.kind == "bits" else z * t
        parts.append(each.op("ReduceSum", keepdims=0).like(parts[0] if parts else each))
    return str(reduce(Term.__add__, parts).value.name)

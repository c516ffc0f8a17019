"""Measuring a model from the inside: figures of intermediate values, reduced to scalars where they are computed.

Nothing but a few numbers per value is kept, and small values whole: a measurement takes little more memory than a run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .graph import static_shape
from .session import Session

SMALL = 4096
"""Elements up to which a value leaves the run whole: two operators that reduce it would take longer."""
MOST = 1 << 22
"""Elements that leave the run in all."""

HUGE = float(np.finfo(np.float32).max)

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Range:
    """What is known of the numbers of a value: the largest and the smallest, both with sign."""

    low: float
    high: float

    @property
    def peak(self) -> float:
        """The largest magnitude; NaN where there is a NaN."""
        return float(np.maximum(abs(self.low), abs(self.high)))


@dataclass
class Probe:
    """A model that, for as long as `of` lasts, also outputs scalars about its values, or small values themselves.

    `run` gives outputs and scalars by name. Values are named, so that what was asked about one model can be asked
    about its clones.
    """

    model: ir.Model
    scalars: dict[str, str] = field(default_factory=dict)
    _outputs: int = 0
    _seen: dict[str, ir.Value] = field(default_factory=dict)
    _room: int = field(default_factory=lambda: MOST)
    _constants: dict[float, ir.Value] = field(default_factory=dict)
    _made: dict[ir.Node, int] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def of(cls, model: ir.Model) -> Iterator[Probe]:
        """A probe of `model`, which is as it was afterwards. A clone would take longer than most measurements."""
        graph = model.graph
        probe, constants = cls(model, _outputs=len(graph.outputs)), set(graph.initializers)
        try:
            yield probe
        finally:
            while len(graph.outputs) > probe._outputs:
                graph.outputs.pop()
            for node in reversed(probe._made):
                graph.remove(node, safe=True)
            for name in [n for n in graph.initializers if n not in constants]:
                del graph.initializers[name]

    def values(self) -> dict[str, ir.Value]:
        """The values of the main graph by name."""
        found = {v.name or "": v for v in self.model.graph.inputs}
        found.update({o.name or "": o for n in self.model.graph for o in n.outputs})
        return found | dict(self.model.graph.initializers)

    def node(self, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Add a node that computes something of values; returns its first output.

        It comes right after what it reads: at the end of the graph, every value would have to live until then.
        """
        # Not ir.node(), which guesses the types of attributes and takes three times as long.
        node = ir.Node("", op, inputs, [ir.AttrInt64(n, a) for n, a in attributes.items()])
        node.outputs[0].name = f"edgec.probe.{len(self.model.graph)}"
        makers = [maker for v in inputs if (maker := v.producer()) is not None]
        if makers:
            self.model.graph.insert_after(max(makers, key=lambda n: self._made.get(n, 0)), node)
        else:
            self.model.graph.append(node)
        self._made[node] = len(self._made) + 1
        return node.outputs[0]

    def constant(self, number: float) -> ir.Value:
        """A float32 scalar."""
        if number not in self._constants:
            self._constants[number] = self.tensor(ir.Tensor(np.array(number, np.float32)))
        return self._constants[number]

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """A list of int64."""
        return self.tensor(ir.Tensor(np.array(numbers, np.int64)))

    def tensor(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A constant that holds `tensor`, shared."""
        name = f"edgec.probe.constant.{len(self.model.graph.initializers)}"
        dims = ir.Shape(tensor.shape)  # type: ignore[arg-type]
        value = ir.Value(name=name, shape=dims, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def ask(self, name: str, scalar: ir.Value) -> None:
        """Make `scalar` one of the results, called `name`."""
        scalar.type, scalar.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        self.model.graph.outputs.append(scalar)
        self.scalars[name] = scalar.name or ""

    def see(self, name: str, value: ir.Value) -> bool:
        """Make the range of `value` a result, as "low" and "high" of the name, if it can leave the run whole."""
        dims = static_shape(value)
        size = 0 if dims is None or value.type is None or value.producer() is None else math.prod(dims)
        if not 0 < size <= min(SMALL, self._room):
            return False
        self._room -= size
        self._seen[name] = value
        if not value.is_graph_output():
            self.model.graph.outputs.append(value)
        return True

    def run(self, inputs: Arrays) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The model's own outputs, and the scalars. Raises ModelError."""
        found = Session(self.model).run(inputs)
        names = [v.name or "" for v in self.model.graph.outputs]
        own = {n: found[n] for n in names[: self._outputs]}
        figures = {s: float(found[n]) for s, n in self.scalars.items()}
        with np.errstate(invalid="ignore"):
            for name, value in self._seen.items():
                array = found[value.name or ""]
                figures[f"low {name}"], figures[f"high {name}"] = float(array.min()), float(array.max())
        return own, figures


@dataclass(frozen=True)
class Spread:
    """A question: the smallest mean square of a value over some axes, about its mean if `centred` (the variance)."""

    value: str
    axes: tuple[int, ...]
    centred: bool


@dataclass
class Figures:
    """What a measurement found, by value name.

    Attributes:
        outputs: the model's outputs.
        ranges: smallest and largest number; infinities are left out, for float16 has them too.
        least: smallest magnitude that is not zero.
        spreads: the answers to the questions.
    """

    outputs: dict[str, np.ndarray]
    ranges: dict[str, Range]
    least: dict[str, float]
    spreads: dict[Spread, float]


def measure(
    model: ir.Model,
    inputs: Arrays,
    ranges: Iterable[str],
    least: Iterable[str] = (),
    spreads: Iterable[Spread] = (),
) -> Figures:
    """Run `model` once (again for values that hold infinities) and measure values by name. Raises ModelError."""
    wanted, small, asked = list(ranges), list(least), list(spreads)
    with Probe.of(model) as probe:
        values = probe.values()
        for name in wanted:
            _ask_range(probe, name, values[name])
        for name in small:
            size = probe.node("Abs", values[name])
            zero = probe.node("Equal", size, probe.constant(0.0))
            probe.ask(f"least {name}", _reduce(probe, "Min", probe.node("Where", zero, probe.constant(HUGE), size)))
        for i, question in enumerate(asked):
            probe.ask(f"spread {i}", _least_mean_square(probe, question, values[question.value]))
        outputs, found = probe.run(inputs)
    result = _ranges(wanted, found)
    endless = [n for n, r in result.items() if np.isinf(r.peak)]
    if endless:
        with Probe.of(model) as probe:
            values = probe.values()
            for name in endless:
                endless_at = probe.node("IsInf", values[name])
                _ask_range(probe, name, probe.node("Where", endless_at, probe.constant(0.0), values[name]))
            result.update(_ranges(endless, probe.run(inputs)[1]))
    return Figures(
        outputs,
        result,
        {n: found[f"least {n}"] for n in small},
        {question: found[f"spread {i}"] for i, question in enumerate(asked)},
    )


def _ask_range(probe: Probe, name: str, value: ir.Value) -> None:
    if probe.see(name, value):
        return
    probe.ask(f"low {name}", _reduce(probe, "Min", value))
    probe.ask(f"high {name}", _reduce(probe, "Max", value))


def _ranges(names: Iterable[str], found: Mapping[str, float]) -> dict[str, Range]:
    return {n: Range(found[f"low {n}"], found[f"high {n}"]) for n in names}


def _reduce(probe: Probe, how: str, value: ir.Value) -> ir.Value:
    return probe.node(f"Reduce{how}", value, keepdims=0)


def _least_mean_square(probe: Probe, question: Spread, value: ir.Value) -> ir.Value:
    axes = probe.integers(question.axes)
    if question.centred:
        value = probe.node("Sub", value, probe.node("ReduceMean", value, axes))
    return _reduce(probe, "Min", probe.node("ReduceMean", probe.node("Mul", value, value), axes))

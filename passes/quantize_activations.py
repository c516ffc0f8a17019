"""Integer activations: what linear operators read is rounded to 8 bits, by ranges measured on the given inputs or as
the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.batching import spread
from ..compiler.calibration.histograms import histograms
from ..compiler.passbase import Context, Pass
from ..compiler.rounding import insert_dynamic, insert_integers, insert_pair
from ..compiler.session import Session
from ..compiler.targets import TARGETS
from ..compiler.weights import release
from . import half
from .activation_levels import KINDS, Levels, Rule, levels
from .activation_places import KEPT, MERGED, Places, origin
from .noise_search import budget, decibels, noise_power, search

SAMPLES = 512
"""Given samples that are looked at: more cost time and teach little."""


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Round to integers of few bits the activations that Conv, ConvTranspose, Gemm and MatMul read.

    Before:  `y = Conv(x, w)   z = Relu(y)   u = Conv(z, v)`

    After:   `y = Conv(round(x), w)   z = Relu(y)   u = Conv(round(z), v)`
             where `round` is the pair QuantizeLinear → DequantizeLinear, one scale and zero point for a tensor

    Weights stay as they are: round-weights is for them. Ranges are those of the given inputs (--inputs); without any,
    nothing is rounded, since inputs that are made up have other ranges. 0 is always among the numbers that are left.
    What convolutions give is rounded as well, behind the activation that the target merges with them: so integers go
    from one operator to the next. A value that only picks and places numbers of another has the scale of that one.

    When the outputs lose too much, the few activations that cost them most stay as they are, and are named; where no
    few are to blame, nothing is rounded. docs/quantization.md says more.

    Options:
        bits: 8, for ONNX 4 or 16, too.
        calibrate: how a range is chosen of what was measured. mse: of the least square error; minmax: all numbers;
            percentile: so many of a hundred from either end; entropy: of the least divergence (as TensorRT).
            dynamic: nothing is measured before; each run finds its own range (DynamicQuantizeLinear), of what MatMul
            and Gemm multiply with weights. For ONNX, 8 bits.
        percentile: for `calibrate=percentile`.
        symmetric: whether the zero point is 0 (of integers with a sign, but where nothing is negative). By default for
            Core ML, as coremltools does.
        outputs: whether what convolutions give is rounded, and for all that read it; else only what linear operators
            read, for them alone: less is lost, and less can run in integers.
        keep: names of nodes, operators or activations that stay as they are, with * and ?, joined by +.
        min_snr: signal-to-noise ratio that the outputs must keep against the model as it is, in dB; 0: any.
    """

    name: ClassVar[str] = "quantize-activations"
    lossy: ClassVar[bool] = True
    bits: int = 8
    calibrate: Literal["mse", "minmax", "percentile", "entropy", "dynamic"] = "mse"
    percentile: float = 99.99
    symmetric: bool | None = None
    outputs: bool = True
    keep: tuple[str, ...] = ()
    min_snr: float = 15.0

    def __post_init__(self) -> None:
        """Raise ValueError for bits that there are no integers of, or a percentage beyond 50 … 100."""
        if self.bits not in KINDS:
            raise ValueError(f"bits={self.bits}: choose one of {', '.join(map(str, KINDS))}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile:g}: choose a number above 50, and 100 at most")
        if self.calibrate == "dynamic" and self.bits != 8:
            raise ValueError(f"bits={self.bits}: with calibrate=dynamic there are 8 bits only")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. Runs the model on all given inputs, then twice; where too much is lost, some 40 times."""
        if self.bits not in ctx.target.activation_bits:
            first = next(t.name for t in TARGETS.values() if self.bits in t.activation_bits)
            ctx.note(f"{ctx.target.name} has no activations of {self.bits} bits; {first} is the first that has")
            return 0
        dynamic = self.calibrate == "dynamic"
        if dynamic and not ctx.target.dynamic:
            ctx.note(f"{ctx.target.name} finds no ranges as the model runs; --target onnx and onnxruntime do")
            return 0
        merged = MERGED.get(ctx.target.backend, ())
        places = Places(merged, self.outputs and not dynamic, self.keep, weighted=dynamic)
        values = places.values(model)
        if not values or not (ctx.given or dynamic):
            if values:
                ctx.note("no activation is rounded: their ranges can only be measured on given inputs (--inputs)")
            return 0
        found = {v.name or "": None for v in values} if dynamic else self._levels(model, values, ctx)
        spared = self._spared(model, found, places, ctx) if found and self.min_snr else []
        chosen = {name: each for name, each in found.items() if name not in spared}
        if chosen:
            for value in values:
                if value.name in spared:
                    value.metadata_props[KEPT] = "float"
        insert(model, chosen, places)
        return len(chosen)

    def _levels(self, model: ir.Model, values: Sequence[ir.Value], ctx: Context) -> dict[str, Levels | None]:
        """The levels of each value, by name. What only places the numbers of another value has the levels of that."""
        among = set(values)
        origins = {v: origin(v, among) for v in values}
        counted = histograms(model, list(dict.fromkeys(origins.values())), spread(ctx.runs or (ctx.inputs,), SAMPLES))
        release(model)
        symmetric = self.symmetric if self.symmetric is not None else ctx.target.backend == "coreml"
        made: dict[ir.Value, Levels] = {}
        for value, found in counted.items():
            if not found.finite:
                ctx.note(f"activation '{value.name}' is not rounded: it is not finite for the given inputs")
            elif not found.reach:
                ctx.note(f"activation '{value.name}' is not rounded: it is 0 for the given inputs")
            else:
                rule = cast(Rule, self.calibrate)
                made[value] = levels(found, rule, self.bits, symmetric, self.percentile)
        return {v.name or "": made[o] for v, o in origins.items() if o in made}

    def _spared(self, model: ir.Model, found: Mapping[str, Levels | None], places: Places, ctx: Context) -> list[str]:
        """The activations that must not be rounded for the outputs to keep `min_snr`."""
        inputs = dict(ctx.inputs)
        reference = Session(model).run(inputs)

        def noise(kept: Sequence[str]) -> float:
            trial, left = model.clone(), set(kept)
            insert(trial, {name: each for name, each in found.items() if name not in left}, places)
            return noise_power(reference, Session(trial).run(inputs))

        whole = noise(())
        if whole <= budget(self.min_snr):
            return []
        result = search(list(found), budget(self.min_snr), noise)
        release(model)
        for stretch in result.kept:
            names = ", ".join(f"'{n}'" for n in stretch.names)
            ctx.note(f"not rounded: {names}: rounding here alone would leave the outputs {decibels(stretch.noise)}")
        if not result.found:
            ctx.note(
                f"no activation is rounded: with {self.bits} bits the outputs would keep {decibels(whole)}, less than "
                f"the {self.min_snr:g} dB wanted (min_snr), and no few activations are to blame"
            )
            return list(found)
        return [n for stretch in result.kept for n in stretch.names]


def insert(model: ir.Model, chosen: Mapping[str, Levels | None], places: Places) -> None:
    """Round the named activations, for the readers that want them rounded. Those in half precision stay so.

    What has no levels finds them in every run.
    """
    made = {o.name or "": o for node in model.graph for o in node.outputs}
    values = {v.name or "": v for v in model.graph.inputs} | made
    for name, each in chosen.items():
        value = values[name]
        readers = places.readers(value)
        if each is None:
            insert_dynamic(value, readers)
            continue
        zero = np.array(each.zero, each.kind.numpy())
        rounded = insert_integers(value, np.array(each.scale, np.float32), zero, readers)
        if _in_half(value):
            insert_pair(rounded, readers)


def _in_half(value: ir.Value) -> bool:
    """Whether `value` is rounded to half precision, or computed without error of what is."""
    stack = [value]
    while stack:
        each = stack.pop()
        if half.known(each):
            continue
        node = each.producer()
        if node is None or not half.is_exact(node):
            return False
        stack += [v for _, v in half.data_inputs(node)]
    return True

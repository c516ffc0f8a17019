"""What everything is measured against: the model as its file has it, the samples, and what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .data import Samples
from .errors import ModelError
from .resizing import resized
from .targets import OPSET
from .verify import EXACT_TOLERANCE, ORIGINAL, OtherSizes, compare_outputs, outputs_of, tolerance
from .weights import release


@dataclass(frozen=True)
class Reference:
    """The original model and what it computes.

    Attributes:
        model: the model at its own opset where the frontend kept it, else as it was loaded.
        samples: the inputs to measure with.
        outputs: what `model` computes from the first samples; nothing with verify="off", where nobody asks.
        other: inputs of other sizes and what it computes from those; None where no dimension is free.
    """

    model: ir.Model
    samples: Samples
    outputs: Mapping[str, np.ndarray]
    other: OtherSizes | None = None

    @classmethod
    def of(cls, model: ir.Model, inputs: str | Path | Mapping[str, np.ndarray] | None, verify: str) -> Reference:
        """Run the original of `model`. Passes may rewrite `model` afterwards: the reference keeps one of its own.

        Raises UsageError for inputs that don't fit, ModelError when bringing the model to our opset changed it.
        """
        samples = Samples.of(model, inputs)
        kept = model.meta.pop(ORIGINAL, None)
        if verify == "off":
            return cls(kept or model, samples, {})
        original = kept or model.clone()
        outputs = outputs_of(original, samples.first)
        if verify == "each" and kept is not None:
            _check_conversion(model, samples.first, outputs)
        sizes = resized(model, samples.first)
        other = None if sizes is None else OtherSizes(sizes, outputs_of(original, sizes))
        release(original)
        return cls(original, samples, outputs, other)


def _check_conversion(model: ir.Model, inputs: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    found = compare_outputs(wanted, outputs_of(model, inputs))
    if not found.within(EXACT_TOLERANCE) and not found.within(tolerance(model, [inputs], wanted, EXACT_TOLERANCE)):
        raise ModelError(
            f"onnx's converter to opset {OPSET} changed what the model computes: {found.worst_line()}. "
            "Export the model with a newer opset_version."
        )

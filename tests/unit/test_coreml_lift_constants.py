"""The lifter against Apple's own Python reference: compressed constants, by coremltools' value inference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from liftconstants import CONSTANTS
from lifting import TARGETS, as_half, coremltools, run, save


@pytest.fixture(scope="module")
def ct() -> Iterator[Any]:
    yield from coremltools()


def typed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a compressed constant with their MIL types."""
    from coremltools.converters.mil.mil import types
    from coremltools.optimize import _utils

    result = {}
    for key, value in parameters.items():
        name, _, kind = key.partition(":")
        if kind == "packed":
            value = _utils.pack_elements_into_bits(value[0].astype(np.uint8), value[1])
        elif kind:
            value = value.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))
        result[name] = value
    return result


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("kind", "first", "last", "parameters"), CONSTANTS, ids=[f"{n}-{c[0]}" for n, c in enumerate(CONSTANTS)]
)
def test_compressed_constants(
    ct: Any, kind: str, first: int, last: int, parameters: dict[str, Any], half: bool, tmp_path: Path
) -> None:
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    if half and kind == "constexpr_cast":
        parameters = {**parameters, "source_val": parameters["source_val"] * 2}
    for opset in sorted({first, last}):
        arguments = typed({k: as_half(v) if half and k != "zero_point" else v for k, v in parameters.items()})
        found: list[Any] = []

        def body(x: Any, arguments: dict[str, Any] = arguments, found: list[Any] = found) -> Any:
            outputs = getattr(mb, kind)(**arguments)
            value = outputs[1] if isinstance(outputs, tuple | list) else outputs
            inferred = value.op.materialized_val_inference()
            if isinstance(outputs, tuple | list):
                value = mb.constexpr_sparse_to_dense(nonzero_data=outputs[1], mask=outputs[0])
                inferred = value.op.decompress(inferred[1], inferred[0])
            found.append(inferred)
            return mb.add(x=x, y=mb.cast(x=value, dtype="fp32") if value.dtype == types.fp16 else value)

        spec = mb.TensorSpec((4, 12))
        program = mb.program(input_specs=[spec], opset_version=ct.target[TARGETS[opset]])(lambda x: body(x))
        path = save(ct, program, TARGETS[opset], tmp_path / f"m{opset}.mlpackage")
        (actual,) = run(path, {"x": np.zeros((4, 12), np.float32)})
        np.testing.assert_allclose(actual, found[0].astype(np.float32), rtol=1e-3 if half else 1e-6, atol=1e-6)

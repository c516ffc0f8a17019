"""The lifter against Apple's own Python reference: coremltools' value inference, operator by operator.

Each case builds one operator twice: once on constants, where coremltools computes the result itself, and once on model
inputs, saved as a package, lifted and run by onnxruntime. Every version of an operator (from signatures.json) is tried.

Run one:  pytest tests/unit/test_coreml_lift_ops.py -k "reshape"
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from liftcases import CASES, Case
from liftconstants import CONSTANTS
from lifting import TARGETS, as_full, as_half, coremltools, run, save

from edgec.frontends.coreml.call import RULES


@pytest.fixture(scope="module")
def ct() -> Iterator[Any]:
    yield from coremltools()


def flat(inputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(v) for value in inputs.values() for v in (value if isinstance(value, list) else [value])]


def regroup(inputs: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """Put a flat list of values back under the parameter names."""
    rest = iter(values)
    return {k: [next(rest) for _ in v] if isinstance(v, list) else next(rest) for k, v in inputs.items()}


def reference(ct: Any, case: Case, opset: int) -> list[np.ndarray[Any, Any]]:
    """What coremltools infers on constants, or the definition given in numpy."""
    from coremltools.converters.mil.mil import Builder as mb

    if case.expected is not None:
        result = case.expected(**case.inputs, **case.fixed)
        return list(result) if isinstance(result, list | tuple) else [np.asarray(result)]
    found: list[Any] = []

    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target[TARGETS[opset]])
    def program(unused: Any) -> Any:
        outputs = getattr(mb, case.kind)(**case.inputs, **case.fixed)
        for var in outputs if isinstance(outputs, list | tuple) else [outputs]:
            compressed = var.val is None
            found.append(var.op.materialized_val_inference() if compressed else var.val)
        return unused

    return [np.asarray(v) for v in found]


CASTS = {"bool": "bool", "int8": "int8", "uint8": "uint8", "float16": "fp16"}


def build(ct: Any, case: Case, opset: int, path: Path) -> Path:
    """Save the operator on model inputs; those of types that a model can't take are cast inside."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    arrays = flat(case.inputs)
    specs = [
        mb.TensorSpec(a.shape or (1,), dtype=types.fp32 if a.dtype.kind == "f" else types.int32) for a in arrays
    ]

    def body(*placeholders: Any) -> Any:
        values = []
        for array, value in zip(arrays, placeholders, strict=True):
            value = mb.squeeze(x=value) if not array.shape else value
            values.append(mb.cast(x=value, dtype=CASTS[str(array.dtype)]) if str(array.dtype) in CASTS else value)
        outputs = getattr(mb, case.kind)(**regroup(case.inputs, values), **case.fixed)
        outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        wide = [mb.cast(x=v, dtype="int32") if v.dtype in (types.int8, types.uint8, types.uint16, types.int16) else v
                for v in outputs]
        wide = [mb.expand_dims(x=v, axes=[0]) if v.rank == 0 else v for v in wide]
        return tuple(mb.cast(x=v, dtype="fp32") if v.dtype == types.fp16 else v for v in wide)

    names = [f"in{n}" for n in range(len(arrays))]
    scope: dict[str, Any] = {"body": body}
    # coremltools names the inputs after the parameters of the function.
    exec(f"def program({', '.join(names)}): return body({', '.join(names)})", scope)
    wrapped = mb.program(input_specs=specs, opset_version=ct.target[TARGETS[opset]])(scope["program"])
    return save(ct, wrapped, TARGETS[opset], path)


def feeds(case: Case) -> dict[str, Any]:
    return {
        f"in{n}": a.astype(np.float32 if a.dtype.kind == "f" else np.int32).reshape(a.shape or (1,))
        for n, a in enumerate(flat(case.inputs))
    }


IDS = [f"{n}-{c.kind}" for n, c in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_against_value_inference(ct: Any, case: Case, tmp_path: Path) -> None:
    for opset in case.opsets():
        expected = reference(ct, case, opset)
        package = build(ct, case, opset, tmp_path / f"m{opset}.mlpackage")
        actual = run(package, feeds(case))
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert a.size == e.size, f"shape {a.shape}, expected {e.shape} at CoreML{opset}"
            a, e = a.reshape(e.shape).astype(np.float64), e.astype(np.float64)
            np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6, err_msg=f"CoreML{opset}")


HALF = [(c, n) for c, n in zip(CASES, IDS, strict=True) if c.half]


@pytest.mark.parametrize("case", [c for c, _ in HALF], ids=[n for _, n in HALF])
def test_float16_operators_round_their_result(ct: Any, case: Case, tmp_path: Path) -> None:
    """A float16 operator gives the float32 result rounded once, whatever it computes in."""
    opset = max(case.opsets()[0], 7)
    half = Case(case.kind, as_half(case.inputs), as_half(case.fixed), expected=case.expected)
    exact = reference(ct, Case(case.kind, as_full(half.inputs), as_full(half.fixed), expected=case.expected), opset)
    actual = run(build(ct, half, opset, tmp_path / "m.mlpackage"), feeds(half))
    for a, e in zip(actual, exact, strict=True):
        assert np.array_equal(a, a.astype(np.float16).astype(np.float32)), "a result is not a float16 value"
        ulp = np.spacing(np.abs(e).astype(np.float16)).astype(np.float64)
        assert np.all(np.abs(a.reshape(e.shape) - e) <= 0.51 * ulp + 2e-6 * np.abs(e))


def test_every_operator_with_a_reference_is_covered(ct: Any) -> None:
    """Every operator that has a lifting rule and a value inference of Apple's is in the tables above."""
    from coremltools.converters.mil.mil import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    inferred = {
        kind for kind, versions in SSAOpRegistry.core_ops.items() for c in versions.values()
        if c.value_inference is not Operation.value_inference or hasattr(c, "materialized_val_inference")
    }
    covered = {c.kind for c in CASES} | {c[0] for c in CONSTANTS} | {"cond"}  # cond: test_coreml_lift_apple.py
    missing = sorted((inferred & set(RULES)) - covered)
    assert not missing, f"no case for {missing}"
    assert len(covered & inferred) >= 110

"""A pytest plugin that runs coremltools' own operator tests through edgec's reader instead of through Core ML.

coremltools installs the tests of its operators, with the values that Apple's runtime is expected to give. Off a Mac
they only convert. With this plugin each converted model is saved, lifted, run by onnxruntime and compared with those
values. One line of JSON per comparison goes to the file named by EDGEC_ORACLE_LOG. test_coreml_lift_apple.py runs it.

By hand:  EDGEC_ORACLE_LOG=log.jsonl PYTHONPATH=tests:tests/unit pytest -p coreml_apple_oracle --pyargs \
          coremltools.converters.mil.mil.ops.tests.iOS17
"""

from __future__ import annotations

import collections
import gc
import importlib.util
import json
import os
import random
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from lifting import session_of

from edgec.compiler.errors import UnsupportedOp
from edgec.formats.mlpackage import open_package
from edgec.frontends.coreml.lifter import all_operations, main_function

_DTYPES = {
    "tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(float16)": np.float16, "tensor(int8)": np.int8,
}


def _predict(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    lifted, feeds = session_of(path), {}
    for wanted in lifted.get_inputs():
        value = np.asarray(values[wanted.name])
        value = value.reshape([1] * len(wanted.shape)) if value.ndim < len(wanted.shape) else value
        feeds[wanted.name] = value.astype(_DTYPES[wanted.type])
    return dict(zip([o.name for o in lifted.get_outputs()], lifted.run(None, feeds), strict=True))


def _compare(path: Path, values: dict[str, Any], expected: dict[str, Any], half: bool, atol: float, rtol: float) -> str:
    predicted = _predict(path, values)
    # Some expected values are written down with three digits only.
    atol, rtol = (max(10 * atol, 2e-2), max(100 * rtol, 1e-2)) if half else (atol, max(rtol, 2e-4))
    by_position = list(predicted)
    for index, (name, value) in enumerate(expected.items()):
        actual = np.asarray(predicted.get(name, predicted[by_position[index]]), np.float64)
        if not np.allclose(actual, np.asarray(value, np.float64), atol=atol, rtol=rtol, equal_nan=True):
            return f"output {name}: {actual.reshape(-1)[:4]}, expected {np.asarray(value).reshape(-1)[:4]}"
    return ""


def compare_backend(
    mlmodel: Any, input_key_values: Any, expected_outputs: Any, dtype: str = "fp32", atol: float = 1e-4,
    rtol: float = 1e-5, also_compare_shapes: bool = True, state: Any = None, allow_mismatch_ratio: float = 0.0,
) -> None:
    """Stands in for coremltools' comparison with the Core ML runtime."""
    record: dict[str, Any] = {"test": os.environ["PYTEST_CURRENT_TEST"].split(" (")[0].split("/tests/")[-1]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.mlpackage"
        mlmodel.save(str(path))
        program = main_function(open_package(path))[2]
        record["operators"] = sorted({op.type for op in all_operations(program)} - {"const"})
        half = b"FLOAT16" in str(program).encode()
        try:
            record["wrong"] = _compare(path, input_key_values, expected_outputs or {}, half, atol, rtol)
            record["result"] = "wrong" if record["wrong"] else "right"
        except UnsupportedOp as error:
            record.update(result="unsupported", wrong=str(error))
        except Exception as error:
            record.update(result="error", wrong=f"{type(error).__name__}: {error}")
    with Path(os.environ["EDGEC_ORACLE_LOG"]).open("a") as log:
        log.write(json.dumps(record) + "\n")


def _install() -> None:
    """Make coremltools' test helpers believe that they can run models here, and compare with the function above."""
    os.environ["PYMIL_TEST_TARGETS"] = "mlprogram"
    os.environ["INCLUDE_MIL_FP32_UNIT_TESTS"] = "1"
    if importlib.util.find_spec("PIL") is None:  # imported by the helpers for image inputs; no operator test uses it
        sys.modules["PIL"] = types.ModuleType("PIL")
        sys.modules["PIL"].Image = types.SimpleNamespace(Image=type("Image", (), {}))  # type: ignore[attr-defined]
    helpers = importlib.import_module("coremltools.converters.mil.testing_utils")
    helpers.macos_compatible_with_deployment_target = lambda target: True  # type: ignore[attr-defined]
    operator_tests = importlib.import_module("coremltools.converters.mil.mil.ops.tests.testing_utils")
    operator_tests.compare_backend = compare_backend  # type: ignore[attr-defined]


_install()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keep a few parameter sets of every test function, always the same."""
    by_function = collections.defaultdict(list)
    for item in items:
        by_function[item.nodeid.split("[")[0]].append(item)
    rng = random.Random(0)
    count = int(os.environ.get("EDGEC_ORACLE_SAMPLES", "2"))
    groups = (g if len(g) <= count else rng.sample(g, count) for g in by_function.values())
    items[:] = [item for group in groups for item in group]
    gc.collect()
    gc.freeze()

"""How many of ONNX's own operator tests compile to Core ML, and how many of those packages are proven right.

    python benchmarks/operators.py [--target ios18] [--only PATTERN] [--json out.json] [--failures]

Each test (onnx.backend.test, node tests without the `_expanded` twins) is compiled, the package on disk is read back,
run in onnxruntime, and compared with the test's expected outputs (rtol 1e-3, atol 1e-4). Core ML fixes axes, shapes and
weights when a model is compiled: a test whose parameters are inputs is tried again with all inputs but the first made
constant, as a model would have them.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgec.backends.coreml import BACKEND
from edgec.compiler import shapes
from edgec.compiler.backend import EmitOptions
from edgec.compiler.errors import EdgecError, UnsupportedOp
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_passes
from edgec.compiler.session import Session
from edgec.compiler.targets import Target, find_target
from edgec.compiler.weights import Scratch
from edgec.frontends.coreml import load as lift
from edgec.frontends.onnx import load as load_onnx

RTOL, ATOL = 1e-3, 1e-4
PASSES = "canonicalize,fold-constants,fold-shapes,legalize,fold-shapes,fold-constants,remove-dead-code"


@dataclass
class Outcome:
    """What became of one test."""

    name: str
    group: str
    status: str
    """proven, wrong, unlifted (the package can't be read back), unsupported, invalid (no valid model at the opset)"""
    why: str = ""
    constant: bool = False
    """Whether the inputs but the first were made constant."""


def cases() -> Iterator[Any]:
    """The base node tests of the installed onnx, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)  # type: ignore[arg-type]
    yield from sorted((c for c in found if "_expanded" not in c.name), key=lambda c: c.name)


def array_of(value: Any) -> np.ndarray:
    """A test's input or output; some come as protobufs."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def model_of(case: Any, folder: Path, constant: bool) -> ir.Model:
    """The test's model at the pinned opset, its inputs but the first constant if asked for."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    if constant:
        arrays = case.data_sets[0][0]
        for value, array in list(zip(proto.graph.input, arrays, strict=True))[1:]:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array_of(array), value.name))
            proto.graph.input.remove(value)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return load_onnx(path)


def run(case: Any, target: Target, constant: bool = False) -> Outcome:
    """Compile one test and compare what the package computes."""
    group = case.model.graph.node[0].op_type if case.model.graph.node else "-"
    outcome = Outcome(case.name, group, "unsupported", constant=constant)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            model = model_of(case, folder, constant)
        except (EdgecError, TypeError, ValueError, RuntimeError, AttributeError) as e:
            outcome.status, outcome.why = "invalid", str(e)[:200]
            return outcome
        try:
            with Scratch() as scratch:
                for step in find_passes(PASSES):
                    step.run(model, Context(target, scratch))
            shapes.infer(model)
            emitted = BACKEND.emit(model, target, folder / "model.mlpackage", EmitOptions())
        except UnsupportedOp as e:
            outcome.why = "; ".join(map(str, e.missing))[:300]
            return outcome
        except EdgecError as e:
            outcome.why = str(e)[:300]
            return outcome
        return _compare(case, outcome, emitted, constant)


def _compare(case: Any, outcome: Outcome, emitted: Any, constant: bool) -> Outcome:
    try:
        lifted = lift(emitted.path)
    except EdgecError as e:
        outcome.status, outcome.why = "unlifted", str(e)[:300]
        return outcome
    ports = {v.name: v for v in lifted.graph.inputs}
    inputs, expected = case.data_sets[0]
    feeds = {}
    for value, array in zip(case.model.graph.input, inputs, strict=True):
        port = ports.get(emitted.inputs.get(value.name, ""))
        if port is not None:
            assert port.dtype is not None and port.shape is not None
            feeds[port.name or ""] = array_of(array).astype(port.dtype.numpy()).reshape(port.shape.numpy())
    got = Session(lifted).run(feeds)
    outcome.status = "proven"
    for value, wanted in zip(case.model.graph.output, map(array_of, expected), strict=True):
        mine = got[emitted.outputs[value.name]]
        try:
            mine = mine.reshape(wanted.shape) if mine.size == wanted.size == 1 else mine
            np.testing.assert_allclose(mine.astype(np.float64), wanted.astype(np.float64), RTOL, ATOL)
        except AssertionError as e:
            outcome.status, outcome.why = "wrong", " ".join(str(e).split())[:300]
    return outcome


def attempt(case: Any, target: Target) -> Outcome:
    """The test as it is, else with constant parameters."""
    first = run(case, target)
    if first.status in ("proven", "wrong") or len(case.model.graph.input) < 2:
        return first
    second = run(case, target, constant=True)
    return second if second.status != "invalid" else first


def main() -> None:
    """Print the counts; with --json write every outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--target", default="ios18")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--failures", action="store_true", help="say why tests are not proven")
    args = parser.parse_args()
    target = find_target(args.target)
    outcomes = [attempt(case, target) for case in cases() if args.only in case.name]
    counts = collections.Counter(o.status for o in outcomes)
    groups = {o.group for o in outcomes}
    proven = {o.group for o in outcomes if o.status == "proven"}
    print(f"{args.target}: {len(outcomes)} tests: " + ", ".join(f"{n} {s}" for s, n in counts.most_common()))
    print(f"operators with at least one proven test: {len(proven)} of {len(groups)}")
    if args.failures:
        for o in outcomes:
            if o.status != "proven":
                print(f"{o.status:12} {o.name}: {o.why}")
    if args.json:
        args.json.write_text(json.dumps([vars(o) for o in outcomes], indent=1))


if __name__ == "__main__":
    main()

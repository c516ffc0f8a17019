"""Gradients held against central differences in double precision, and onnxruntime's against those.

    check("Mul", {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=3)})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgec.compiler.gradients.reverse import SEED, SUFFIX, gradient
from edgec.compiler.session import Session
from edgec.compiler.targets import OPSET
from passcheck import load

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]


def single(
    op: str,
    inputs: Arrays,
    kind: type,
    attributes: Mapping[str, Any],
    outputs: int,
    free: bool,
    consts: Sequence[str],
    fixed: Sequence[str],
) -> onnx.ModelProto:
    """A model of one node. Doubles are made `kind`; with `free`, dimensions of inputs but the `fixed` are symbols.

    An input whose name begins with _ is left out; those of `consts` are initializers.
    """
    given = {n: _as(kind, a) for n, a in inputs.items() if n[0] != "_"}
    names = [n if n in given else "" for n in inputs]
    made = [f"y{i}" if i else "y" for i in range(outputs)]
    node = helper.make_node(op, names, made, name="node", **attributes)
    infos = []
    for n, a in given.items():
        if n not in consts:
            symbols = [f"{n}{i}" for i in range(a.ndim)] if free and n not in fixed else a.shape
            infos.append(helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), symbols))
    weights = [onnx.numpy_helper.from_array(given[n], n) for n in consts]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=n) for n in made], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _as(kind: type, a: np.ndarray) -> np.ndarray:
    return a.astype(kind) if a.dtype == np.float64 else a


def differences(run: Run, feeds: Arrays, wrt: str, seed: np.ndarray, step: float) -> np.ndarray:
    """d(sum of y seed) / d wrt, by central differences."""
    x = feeds[wrt]
    found = np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * step
            ends.append(float((run({**feeds, wrt: moved}).astype(np.float64) * seed).sum()))
        found[i] = (ends[0] - ends[1]) / (2 * step)
    return found


def check(
    op: str,
    inputs: Arrays,
    *,
    wrt: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    outputs: int = 1,
    free: Sequence[bool] = (False, True),
    consts: Sequence[str] = (),
    fixed: Sequence[str] = (),
    by: str = "both",
) -> None:
    """The gradient of the first output of one node with respect to each float input, or those of `wrt`.

    In double precision by onnx's reference, against central differences of it; in single precision by onnxruntime,
    against these. With fixed and with free dimensions. Where onnx's reference is wrong or calculates in single
    precision itself, `by` is "onnxruntime": then against differences of that, with a tolerance to match; where
    onnxruntime lacks the operator, it is "reference".
    """
    wrt = wrt or [n for n, a in inputs.items() if a.dtype == np.float64 and n not in consts and n[0] != "_"]
    feeds = {n: a for n, a in inputs.items() if n not in consts and n[0] != "_"}
    singles = {n: _as(np.float32, a) for n, a in feeds.items()}
    for symbols in free:
        double, plain = (
            single(op, inputs, k, attributes or {}, outputs, symbols, consts, fixed) for k in (np.float64, np.float32)
        )
        if by == "onnxruntime":
            session = Session(load(plain), threads=1)
            run, start, step = (lambda f, s=session: s.run(f)["y"]), singles, 1e-2
        else:
            evaluator = ReferenceEvaluator(double)
            run, start, step = (lambda f, e=evaluator: np.asarray(e.run(["y"], f)[0])), feeds, 1e-6
        seed = np.random.default_rng(7).normal(size=run(start).shape)
        wanted = {n: differences(run, start, n, seed, step) for n in wrt}
        names = [n + SUFFIX for n in wrt]
        if by != "onnxruntime":
            proto = ir.to_proto(gradient(load(double), ["y"], wrt, seeds=True))
            found = ReferenceEvaluator(proto).run(names, {**feeds, "y" + SEED: seed})
            _close(dict(zip(names, map(np.asarray, found), strict=True)), wanted, 1e-6, f"reference, free={symbols}")
        if by != "reference":
            made = Session(gradient(load(plain), ["y"], wrt, seeds=True), threads=1)
            got = made.run({**singles, "y" + SEED: seed.astype(np.float32)}, names)
            _close(got, wanted, 1e-4 if by == "both" else 4e-3, f"onnxruntime, free={symbols}")


def _close(found: Arrays, wanted: Arrays, tolerance: float, what: str) -> None:
    for name, array in wanted.items():
        got = found[name + SUFFIX]
        assert got.shape == array.shape, f"{what}, {name}: shape {got.shape}, not {array.shape}"
        scale = max(float(np.abs(array).max(initial=0)), 1.0)
        np.testing.assert_allclose(got, array, rtol=0, atol=tolerance * scale, err_msg=f"{what}, {name}")

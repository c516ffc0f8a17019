"""Helpers for tests of the command line: run it as a process of its own, a small model, what a refusal looks like."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def run(*arguments: object, cwd: Path, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line with these arguments, in a folder; `limit` runs in the process before it begins."""
    command = [sys.executable, "-m", "edgec", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, preexec_fn=limit)


def tensor(*shape: int) -> np.ndarray:
    """Normal numbers, small enough for a chain of layers."""
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


def conv_model(batch: int | str = 1, weight: np.ndarray | None = None, op: str = "Relu") -> onnx.ModelProto:
    """A convolution, an activation function and a matrix, at an opset that has to be converted."""
    weights = {"w": tensor(8, 3, 3, 3) if weight is None else weight, "b": tensor(8), "f": tensor(8 * 16 * 16, 10)}
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node(op, ["c"], ["r"], "act", domain="" if op == "Relu" else "my.domain"),
        helper.make_node("Flatten", ["r"], ["v"], "flat"),
        helper.make_node("MatMul", ["v", "f"], ["logits"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def saved(folder: Path) -> Path:
    """The model as `net.onnx` in a folder."""
    path = folder / "net.onnx"
    onnx.save(conv_model(), path)
    return path


def contents(package: Path) -> dict[Path, bytes]:
    """Every file of a package."""
    return {p.relative_to(package): p.read_bytes() for p in package.rglob("*") if p.is_file()}


def refuse(done: subprocess.CompletedProcess[str], code: int, message: str, folder: Path, *left: str) -> None:
    """One clear message, the right exit code, nothing half-written."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(p.name for p in folder.iterdir()) == sorted(left)

"""Models and analyses to test their output with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.cost.records import Analysis, Layer, Memory, Totals
from edgec.compiler.dims import Dim, add, atom, mul

DEPTH, WIDTH = 3, 16


def save_blocks(path: Path, tokens: int | str = "T", odd: bool = False) -> Path:
    """A small residual net with modules: stem, blocks of an attention and an mlp, head; `odd`: with a foreign node."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def weight(name: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
        return name

    def put(op: str, module: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        name = f"{module}/{op}"
        nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name, domain=domain, **attributes))
        return f"{name}_out"

    x = put("MatMul", "/stem", "x", weight("stem.weight", 8, WIDTH))
    for i in range(DEPTH):
        m = f"/blocks/blocks.{i}"
        q = put("MatMul", f"{m}/attn/q", x, weight(f"blocks.{i}.attn.q.weight", WIDTH, WIDTH))
        k = put("Transpose", f"{m}/attn", x, perm=[0, 2, 1])
        s = put("Softmax", f"{m}/attn", put("MatMul", f"{m}/attn", q, k), axis=-1)
        x = put("Add", m, x, put("MatMul", f"{m}/attn/v", s, x))
        h = put("Relu", f"{m}/mlp", put("MatMul", f"{m}/mlp/fc1", x, weight(f"b{i}.fc1.weight", WIDTH, 4 * WIDTH)))
        x = put("Add", f"{m}/mlp", x, put("MatMul", f"{m}/mlp/fc2", h, weight(f"b{i}.fc2.weight", 4 * WIDTH, WIDTH)))
    if odd:
        x = put("Mystery", "/neck", x, domain="my.domain")
    nodes.append(helper.make_node("MatMul", [x, weight("head.weight", WIDTH, 5)], ["y"], "/head/MatMul"))
    graph = helper.make_graph(
        nodes, "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, tokens, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None if odd else [1, tokens, 5])],
        weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid("my.domain", 1)] if odd else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def blocks_macs(tokens: int) -> int:
    """The multiply-accumulates of that model, by hand."""
    block = tokens * WIDTH * WIDTH + 2 * tokens * tokens * WIDTH + 2 * tokens * WIDTH * 4 * WIDTH
    return tokens * 8 * WIDTH + DEPTH * block + tokens * WIDTH * 5


def made(text: str = "part", layers: int = 3) -> Analysis:
    """An analysis that uses every field, polynomials with operations included. `text` is in all names."""
    t: Dim = atom("T")
    square = mul(t, t)
    half: Dim = atom(("floor", add(t, 1), 2))
    found = [
        Layer(
            f"/{text}/{i % 7}/{text}_{i}", ("Conv", "MatMul", "Relu", f"my::{text}")[i % 4], (text, str(i % 7)),
            [(1, t, None), None], [(1, half), ()], 1 + i % 2,
            mul(i + 1, square), mul(2 * i + 2, square), i % 3, i % 2, mul(40 + i, t), mul(8, half), 10 * i, 320 * i,
            i if i % 2 else None, mul(i, square), mul(1024, t),
            f"{text} is not known" if i % 4 == 3 else "", 1e-6 * (i + 1) if i % 2 == 0 else None,
        )
        for i in range(layers)
    ]  # fmt: skip
    live = [mul(100 + (37 * i) % 91, t) for i in range(layers)]
    totals = Totals(nodes=layers, zeros=5, peak_activation_bytes=mul(190, t), bytes=40 * layers)
    for layer in found:
        totals.parameters += layer.parameters
        for name in ("macs", "flops", "special", "int_ops", "read", "written", "effective_macs", "bops"):
            setattr(totals, name, add(getattr(totals, name), getattr(layer, name)))
    memory = Memory(
        mul(190, t), mul(200, t), list(range(layers)), live, [text, "y"], False, {"T": 128}, [text], list(range(layers))
    )
    return Analysis(
        source=f"models/{text}.onnx",
        symbols={"T": f"input '{text}', axis 1", "#rows": f"known only by running '{text}'"},
        limits={"#rows": mul(3, t)},
        inputs={text: ("float", (1, t, None))},
        outputs={"y": ("float", None)},
        layers=found,
        totals=totals,
        memory=memory,
        unknown=[f"{layer.name} ({layer.op}): {layer.unknown}" for layer in found if layer.unknown],
        warnings=[f"{text} is odd"],
    )


def run_analyze(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`edgec analyze` as a user runs it, in a terminal of 80 columns."""
    command = [sys.executable, "-m", "edgec.compiler.cli", "analyze", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", **variables}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)

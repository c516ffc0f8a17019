"""What an optimiser did: nodes, attention fusions, and whether the model still computes the same.

    python -m benchmarks.check ORIGINAL.onnx RESULT.onnx [SHAPES.json]     # prints one JSON object

Independent of edgec: onnx counts, onnxruntime without its own optimisations runs both files on the same seeded inputs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
FREE_SIZES = {0: 1}  # by axis; any other free dimension is 16


def counts(model: onnx.ModelProto) -> dict[str, int]:
    """Nodes in standard operators, a local function counted as its body; non-standard ones and attentions apart."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    found = {"nodes": 0, "non-standard": 0, "attention": 0}
    _count(model.graph.node, bodies, found)
    return found


def _count(nodes: Iterable[onnx.NodeProto], bodies: dict[tuple[str, str], Any], found: dict[str, int]) -> None:
    for node in nodes:
        found["attention"] += "attention" in node.op_type.lower() or node.op_type.startswith("SDPA")
        body = bodies.get((node.domain, node.op_type))
        if body is not None:
            _count(body, {k: v for k, v in bodies.items() if v is not body}, found)
        elif node.domain in STANDARD_DOMAINS:
            found["nodes"] += 1
        else:
            found["non-standard"] += 1
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _count(graph.node, bodies, found)


def session(path: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def inputs(runner: ort.InferenceSession, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, small integers, ones for a mask."""
    rng = np.random.default_rng(0)
    feeds = {}
    for port in runner.get_inputs():
        dims = shapes.get(port.name) or [
            d if isinstance(d, int) else FREE_SIZES.get(axis, 16) for axis, d in enumerate(port.shape)
        ]
        if port.type == "tensor(float)":
            feeds[port.name] = rng.standard_normal(dims).astype(np.float32)
        else:
            kind = np.int32 if port.type == "tensor(int32)" else np.int64
            feeds[port.name] = np.ones(dims, kind) if "mask" in port.name else rng.integers(0, 100, dims).astype(kind)
    return feeds


def error(original: str, result: str, shapes: dict[str, list[int]]) -> float:
    """Largest difference of any output, relative to that output's largest magnitude."""
    runner = session(original)
    feeds = inputs(runner, shapes)
    names = [o.name for o in runner.get_outputs()]
    wanted = runner.run(names, feeds)
    del runner
    got = session(result).run(names, feeds)
    worst = 0.0
    for w, g in zip(wanted, got, strict=True):
        if w.shape != g.shape or not np.isfinite(g).all():
            return float("inf")
        worst = max(worst, float(np.abs(w - g).max() / (np.abs(w).max() or 1)))
    return worst


def main(original: str, result: str, shapes: str = "{}") -> None:
    found: dict[str, Any] = dict(counts(onnx.load(result, load_external_data=False)))
    try:
        found["error"] = f"{error(original, result, json.loads(shapes)):.1e}"
    except Exception as failure:  # whatever onnxruntime raises is this tool's result
        found["error"] = f"does not run: {str(failure).splitlines()[0][:120]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

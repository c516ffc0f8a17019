"""What pruning did: `python -m benchmarks.prune_check ORIGINAL.onnx RESULT.onnx [SHAPES.json] [untimed]`.

Prints one JSON object: how many times fewer parameters and MACs, and milliseconds in onnxruntime before and after (its
default optimisations, one thread, medians of alternating runs); `untimed`, only that it runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgec.compiler import cost, driver
from edgec.compiler.cost.analyze import analyze

from .check import inputs, session

SECONDS = 1.5
"""How long the two models run in turn."""


def figures(path: str) -> tuple[int, float]:
    """Parameters and MACs at the declared sizes, free ones as 1; both counted by edgec for every tool."""
    model = driver.load(Path(path), partial=True)
    macs: Any = analyze(model).totals.macs
    return cost.parameters(model), float(macs if isinstance(macs, int) else sum(c for _, c in macs.terms))


def latency(paths: list[str], shapes: dict[str, list[int]]) -> list[float]:
    """Median milliseconds of each model, run in turn so that all see the same machine."""
    runners = []
    for path in paths:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        runners.append(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    feeds = [inputs(r, shapes) for r in runners]
    times: list[list[float]] = [[] for _ in paths]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 5:
        for runner, feed, taken in zip(runners, feeds, times, strict=True):
            start = time.perf_counter()
            runner.run(None, feed)
            taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(t[1:]) for t in times]


def main(original: str, result: str, shapes: str = "{}", untimed: str = "") -> None:
    sizes = json.loads(shapes)
    (parameters, macs), (fewer, less) = figures(original), figures(result)
    found: dict[str, Any] = {"parameters": f"{parameters / fewer:.2f}x", "MACs": f"{macs / less:.2f}x"}
    if parameters == fewer:
        found["failed"] = "did nothing"
    try:
        runner = session(result)
        runner.run(None, inputs(runner, sizes))
        del runner
        if not untimed:
            before, after = latency([original, result], sizes)
            found["ms"] = f"{before:.1f} → {after:.1f}"
    except Exception as failure:  # whatever onnxruntime raises is this tool's result
        found["failed"] = f"does not run: {str(failure).splitlines()[0][:120]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What could be done beyond error feedback: descent, and each layer fitted to what the rounded ones before it give.

    python -m benchmarks.quantize_feedback [--tasks magika ppocr …] [--bits 4 3] [--most 4]

Run from the repository root with a Python that has what benchmarks.quantize needs. Weights get tables with scales (iOS
18) by the calibration half of each task's first fold; SNR of the outputs on the other half, in dB. `feedback`: all
layers at once, by their inputs in the float model, as `round-weights` does by default; `descent`: as it does with
`by=descent`. `in turn`: feedback by inputs in the model whose earlier layers are rounded already; `in turn, towards
float`: besides, what a layer is to give is not its own product with these inputs but what it gives in the float model:
least squares for that, then feedback (the damping is the best on samples held out). `--most`: layers that are fitted at
once, for the sake of time. Processor seconds of all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.compiler.calibration.batching import spread
from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import Moments, moments
from edgec.compiler.calibration.sums import Sums
from edgec.compiler.data import Samples
from edgec.compiler.driver import load
from edgec.compiler.graph import const
from edgec.compiler.passbase import Context
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes import weight_grid
from edgec.passes.biases import own_bias
from edgec.passes.calibrated import SAMPLES
from edgec.passes.grid_options import Wish, spec_for
from edgec.passes.round_weights import Rounded, replace_weights, round_weight

from . import harness
from .quantize import float_model, outputs, scored
from .quantize_edgec import SMALL, TARGET, optimized
from .quantize_tasks import TASKS, Task

FEEDBACK, DESCENT, TURN, TOWARDS = WAYS = ("feedback", "descent", "in turn", "in turn, towards float")
DAMPINGS = (0.003, 0.03, 0.3, 3.0, 30.0)
"""Of the mean of the diagonal, for least squares; else a weight stays what it is to be rounded to."""


def rows(task: Task, bits: list[int], most: int, scratch: Scratch) -> Iterator[harness.Row]:
    start, fold = scratch.dir / "o1.onnx", task.folds[0]
    optimized(float_model(task, scratch.dir), task, start)
    reference = load(start)
    samples = Samples.of(reference, fold.calibration)
    ctx = Context(find_target(TARGET), scratch, samples.first, True, runs=samples.runs)
    wanted = outputs(reference, fold.test)
    for b in bits:
        for way in WAYS:
            model, began = load(start), time.process_time()
            _round(model, reference, b, way, most, ctx)
            spent = time.process_time() - began
            found = scored(task, [(wanted.astype(np.float64), outputs(model, fold.test), fold.labels)])
            yield {"model": task.name, "bits": b, "by": way, **found, "CPU s": round(spent, 1)}


def _round(model: ir.Model, reference: ir.Model, bits: int, way: str, most: int, ctx: Context) -> None:
    weights = {w.value: w for w in weight_grid.weights(model, SMALL)}
    spec, _ = spec_for(Wish(bits), ctx.target)
    assert spec is not None
    layers = [layer for layer in linear_layers(model) if layer.weight in weights]
    names = {layer.weight.name for layer in layers}
    others = [layer for layer in linear_layers(reference) if layer.weight.name in names]
    options = {"most": most} if way in (TURN, TOWARDS) else {}
    seen = (reference, others) if way == TOWARDS else None
    runs = spread(ctx.runs, SAMPLES)
    for known in moments(model, layers, runs, reference=seen, seed=ctx.seed, **options):  # type: ignore[arg-type]
        if known.shared or known.weight not in weights:
            continue
        weight = weights.pop(known.weight)
        offset = _towards(known, model) if seen else {}
        rounded = round_weight(weight, spec, ctx, known, way == DESCENT)
        if rounded is not None:
            _put(model, weight.value.name or "", rounded, offset)
    for weight in weights.values():
        rounded = round_weight(weight, spec, ctx, None)
        if rounded is not None:
            _put(model, weight.value.name or "", rounded, {})


def _put(model: ir.Model, name: str, rounded: Rounded, offset: dict[str, np.ndarray]) -> None:
    biases = dict(rounded.biases)
    for n, more in offset.items():
        old = biases[n].numpy() if n in biases else const(model.graph.initializers[n])
        assert old is not None
        biases[n] = ir.tensor(np.asarray(old + more.reshape(old.shape), np.float32), name=n)
    replace_weights(model, {name: replace(rounded, biases=biases)})


def _towards(known: Moments, model: ir.Model) -> dict[str, np.ndarray]:
    """Put in the weight's place what makes of the model's inputs what the weight makes of the reference's.

    Returns what is to be added to the bias, by its name, for the means to agree as well.
    """
    layer, fit, held = known.layer, known.fit, known.held
    array = const(known.weight)
    assert array is not None
    if layer.counted or held is None or fit.gram is None or fit.cross is None:
        return {}
    bias = own_bias(layer)
    matrix = layer.matrix(array).astype(np.float64)
    tried = {d: _solved(matrix, fit, d, bias is not None) for d in DAMPINGS}
    errors = {d: _error(matrix, goal, held, fit, bias is not None) for d, goal in tried.items()}
    best = min(errors, key=lambda d: errors[d])
    if errors[best] >= _error(matrix, matrix, held, fit, bias is not None):
        return {}
    whole = known.whole
    goal = _solved(matrix, whole, best, bias is not None)
    known.weight.const_value = ir.tensor(layer.shaped(goal.astype(np.float32)), name=known.weight.name)
    if bias is None:
        return {}
    assert whole.reference_mean is not None
    offset = np.einsum("goi,gi->go", matrix, _wide(whole.reference_mean, matrix))
    offset -= np.einsum("goi,gi->go", goal, _wide(whole.mean, matrix))
    return {bias.name or "": offset * layer.scale}


def _wide(mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.broadcast_to(mean, (matrix.shape[0], matrix.shape[2]))


def _about(sums: Sums, around: Sums, mean: bool) -> tuple[np.ndarray, np.ndarray]:
    """E[x x'] and E[x r'], about the means of `around` where a bias takes these."""
    assert sums.gram is not None and sums.cross is not None and sums.reference_mean is not None
    gram, cross = sums.gram.astype(np.float64), sums.cross.astype(np.float64)
    if not mean:
        return gram, cross
    assert around.reference_mean is not None
    means = (around.mean, around.reference_mean, sums.mean, sums.reference_mean)
    a, b, m, r = (x[..., None].astype(np.float64) for x in means)
    at, bt, mt, rt = (x.swapaxes(-1, -2) for x in (a, b, m, r))
    return gram - a @ mt - m @ at + a @ at, cross - a @ rt - m @ bt + a @ bt


def _solved(matrix: np.ndarray, sums: Sums, damping: float, mean: bool) -> np.ndarray:
    """The matrix nearest to this one in effect: least squares, drawn towards it by the damping."""
    gram, cross = _about(sums, sums, mean)
    size = gram.shape[-1]
    damped = gram + damping * np.einsum("gii->g", gram)[:, None, None] / size * np.eye(size)
    more = matrix @ (cross - gram).swapaxes(-1, -2)
    return np.asarray(matrix + np.linalg.solve(damped, more.swapaxes(-1, -2)).swapaxes(-1, -2))


def _error(matrix: np.ndarray, goal: np.ndarray, held: Sums, fit: Sums, mean: bool) -> float:
    """The mean square of what is left on held-out samples, but for what no goal changes."""
    gram, cross = _about(held, fit, mean)
    return float(np.einsum("goi,goi->", goal @ gram, goal) - 2 * np.einsum("goi,goi->", goal @ cross, matrix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["efficientnet", "ppocr", "magika"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--most", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json as well")
    o = parser.parse_args()
    tools = {"python": harness.versions(sys.executable, ("edgec", "onnxruntime", "numpy"))}
    found: list[harness.Row] = []
    for name in o.tasks:
        with tempfile.TemporaryDirectory() as folder, Scratch(Path(folder)) as scratch:
            for row in rows(TASKS[name](), o.bits, o.most, scratch):
                print(row, file=sys.stderr, flush=True)
                found.append(row)
        harness.report("Beyond error feedback", found, tools, o.out)


if __name__ == "__main__":
    main()

"""Streamed moments of layers' inputs against runs of the model: a change D of a weight costs tr(D H D')."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layercases import LAYERS, build, chain

from edgec.compiler.calibration import batching, statistics
from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import Moments, moments
from edgec.compiler.errors import UsageError
from edgec.compiler.session import Session

RNG = np.random.default_rng(5)


def collect(model: ir.Model, feeds: dict[str, np.ndarray], **options: object) -> list[Moments]:
    return list(moments(model, linear_layers(model), [feeds], **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", LAYERS)
def test_the_loss_of_a_change_is_what_running_the_model_shows(case: str) -> None:
    text, weight, sizes = LAYERS[case]
    w, x = RNG.normal(size=weight), RNG.normal(size=sizes).astype(np.float32)
    change = RNG.normal(size=weight)
    before, after = (Session(build(text, w=a)).run({"x": x})["y"] for a in (w, w + change))
    model = build(text, w=w)
    (found,) = collect(model, {"x": x}, held_out=0)
    matrix = found.layer.matrix(change)
    want = np.square((after - before).astype(np.float64)).sum() / found.fit.count
    assert found.fit.loss(matrix * found.layer.scale) == pytest.approx(want, rel=1e-4)
    assert np.array_equal(found.layer.shaped(matrix), change)
    assert matrix.shape[1] * found.fit.count * matrix.shape[0] == after.size
    shift = np.einsum("goi,gi->go", matrix, np.broadcast_to(found.fit.mean, (len(matrix), matrix.shape[2])))
    total = (after - before).sum(dtype=np.float64) / found.fit.count
    assert shift.sum() * found.layer.scale == pytest.approx(total, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_states_are_those_before_each_step(op: str, gates: int, direction: str) -> None:
    d = 2 if direction == "bidirectional" else 1
    w, r = RNG.normal(size=(d, gates * 3, 5)), RNG.normal(size=(d, gates * 3, 3))
    body = f'{op}<hidden_size=3,direction="{direction}">(x, w, r)'
    x = RNG.normal(size=(6, 4, 5)).astype(np.float32)
    # Nobody reads the states of the first model; the second tells them.
    model = build(f"(float[6,N,5] x) => (float[d,N,3] h) {{ s, h = {body} }}".replace("s, h", "y, h"), w=w, r=r)
    node = next(iter(model.graph))
    node.outputs[0].name = ""
    asked = build(f"(float[6,N,5] x) => (float[6,d,N,3] y) {{ y = {body} }}", w=w, r=r)
    states = Session(asked).run({"x": x})["y"].astype(np.float64)
    inputs, recurrent = collect(model, {"x": x}, held_out=0)
    assert np.allclose(inputs.fit.gram, np.einsum("tbi,tbj->ij", x, x) / 24, rtol=1e-4)
    for k in range(d):
        back = direction == "reverse" or k == 1
        before = states[1:, k] if back else states[:-1, k]
        want = np.einsum("tbi,tbj->ij", before, before) / 24  # the states before the first step are zero
        assert recurrent.fit.gram is not None
        assert np.allclose(recurrent.fit.gram[k], want, atol=1e-5)
    assert node.outputs[0].name == "", "the model itself stays as it is"


def test_a_table_is_counted_and_padding_is_left_out() -> None:
    text = """(int64[N,3] ids, int64[N,3] attention_mask) => (float[N,3,2] y) {
        e = Gather(table, ids)
        y = MatMul(e, w)
    }"""
    table, w = RNG.normal(size=(6, 4)), RNG.normal(size=(4, 2))
    ids = np.array([[1, 2, 0], [1, -1, 5]])
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    embedding, linear = collect(build(text, table=table, w=w), {"ids": ids, "attention_mask": mask}, held_out=0)
    assert np.allclose(embedding.fit.diagonal * 5, [[0, 2, 1, 0, 0, 2]])
    rows = table[ids[mask == 1]]
    assert np.allclose(linear.fit.gram, rows.T @ rows / 5, rtol=1e-5)
    assert np.allclose(linear.fit.mean, rows.mean(0), rtol=1e-5)


def test_tied_weights_are_seen_both_ways() -> None:
    text = "(int64[N] ids) => (float[N,6] y) { e = Gather(t, ids) v = Transpose<perm=[1,0]>(t) y = MatMul(e, v) }"
    found = collect(build(text, t=RNG.normal(size=(6, 4))), {"ids": np.array([1, 2, 2])}, held_out=0)
    assert [(m.layer.counted, m.shared) for m in found] == [(True, True), (False, True)]
    assert found[0].weight is found[1].weight


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.sampled_from([0.0, 0.2, 0.5]), st.integers(1, 7), st.data())
def test_parts_and_batches_do_not_matter(samples: int, held_out: float, most: int, data: st.DataObject) -> None:
    model = chain(4, 6)
    x = np.random.default_rng(samples).normal(size=(samples, 6)).astype(np.float32)
    whole = collect(model, {"h0": x}, held_out=held_out)
    first = data.draw(st.integers(1, samples))
    runs = [{"h0": x[:first]}, {"h0": x[first:]}] if first < samples else [{"h0": x}]
    steps: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "BATCH", 3)
        cut = list(
            moments(
                model,
                linear_layers(model),
                runs,
                held_out=held_out,
                most=most,
                progress=lambda a, b: steps.append((a, b)),
            )
        )
    for a, b in zip(whole, cut, strict=True):
        assert a.weight is b.weight
        assert (a.held is None) == (b.held is None) == (round(samples * held_out) == 0 and held_out == 0)
        for p, q in ((a.fit, b.fit), (a.held, b.held)):
            if p is not None and q is not None:
                assert p.count == q.count
                assert np.allclose(p.gram, q.gram, rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]
        assert np.allclose(b.whole.gram, collect_all(model, x, str(b.layer.reads[0].name)), rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]
    assert [a for a, _ in steps] == list(range(1, len(steps) + 1)) and steps[-1][0] == steps[-1][1]


def collect_all(model: ir.Model, x: np.ndarray, name: str) -> np.ndarray:
    """E[x x'] of one value, from all of it at once."""
    if name != "h0":
        seen = model.clone()
        seen.graph.outputs.extend(v for n in seen.graph for v in n.outputs if v.name == name)
        x = Session(seen).run({"h0": x})[name]
    return np.asarray(x.T.astype(np.float64) @ x / len(x))


def test_changes_between_parts_are_seen_and_crossed_with_the_reference() -> None:
    model = chain(3, 6)
    reference = model.clone()
    x = RNG.normal(size=(20, 6)).astype(np.float32)
    pair = (reference, linear_layers(reference))
    found = []
    for m in moments(model, linear_layers(model), [{"h0": x}], reference=pair, most=1, held_out=0):
        found.append(m)
        m.weight.const_value = ir.Tensor(m.weight.const_value.numpy() * np.float32(2), name=m.weight.name)  # type: ignore[union-attr]
    for k, m in enumerate(found):  # Relu is homogeneous: inputs are twice as large after each layer
        want = collect_all(reference, x, f"h{k}")
        assert np.allclose(m.fit.gram, want * 4**k, rtol=1e-5)  # type: ignore[arg-type]
        assert np.allclose(m.fit.cross, want * 2**k, rtol=1e-5)  # type: ignore[arg-type]
        assert m.fit.reference_mean is not None
        assert np.allclose(m.fit.mean, m.fit.reference_mean * 2**k, rtol=1e-5)


def test_places_are_sampled_the_same_each_time() -> None:
    text, weight, _ = LAYERS["conv"]
    model, x = build(text, w=RNG.normal(size=weight)), RNG.normal(size=(30, 4, 9, 8)).astype(np.float32)
    a, b = (collect(model, {"x": x}, per_layer=300, seed=3)[0] for _ in range(2))
    (every,) = collect(model, {"x": x})
    assert np.array_equal(a.fit.gram, b.fit.gram)  # type: ignore[arg-type]
    assert 240 <= a.fit.count < every.fit.count == 24 * 49
    assert a.whole.count == a.fit.count + a.held.count  # type: ignore[union-attr]


def test_wide_layers_have_only_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.normal(size=(30, 6)).astype(np.float32)
    for module in (batching, statistics):
        monkeypatch.setattr(module, "WIDEST", 5)
    (found, *_) = collect(chain(2, 6), {"h0": x}, held_out=0)
    assert found.fit.gram is None
    assert np.allclose(found.fit.diagonal[0], np.square(x).mean(0), rtol=1e-5)
    change = RNG.normal(size=(1, 6, 6))
    assert found.fit.loss(change) == pytest.approx(float((np.square(change) * found.fit.diagonal[0]).sum()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    x = np.ones((4, 6), np.float32)
    x[1, 2] = bad
    with pytest.raises(UsageError, match="not finite"):
        collect(chain(2, 6), {"h0": x})


@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples(samples: int) -> None:
    found = collect(chain(1, 4), {"h0": np.ones((samples, 4), np.float32)})[0]
    assert (found.held is None) == (samples == 1)
    assert found.whole.count == samples


MEMORY = """
import sys
import numpy as np
sys.path.insert(0, {folder!r})
from layercases import chain
from edgec.compiler.environment import peak_bytes
from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import moments
model = chain(40, 256)
x = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float32)
if {run}:
    for m in moments(model, linear_layers(model), [{{"h0": x}}]):
        assert m.fit.gram.shape == (1, 256, 256)
print(peak_bytes())
"""


def test_memory_is_that_of_a_batch() -> None:
    """All inputs of this chain together are 800 MB."""

    def peak(run: bool) -> int:
        code = MEMORY.format(folder=str(Path(__file__).parents[1]), run=run)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout) // 2**20

    assert peak(True) - peak(False) < 200

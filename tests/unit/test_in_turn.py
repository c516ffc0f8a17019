"""round-weights{by=sequential}: later layers make up for the rounding of earlier ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from layercases import build

from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import Moments, moments
from edgec.compiler.graph import const
from edgec.compiler.passbase import Context
from edgec.compiler.quantization import grids
from edgec.compiler.quantization.towards import towards
from edgec.passes.round_weights import RoundWeights
from passcheck import context, run

WIDTH = 64


def network(depth: int = 4) -> ir.Model:
    """Layers with biases, Relu between them."""
    rng = np.random.default_rng(1)
    lines = [f"p{k} = Gemm(x{k}, w{k}, b{k}) x{k + 1} = Relu(p{k})" for k in range(depth)]
    text = f"(float[N,{WIDTH}] x0) => (float[N,{WIDTH}] y) {{ {' '.join(lines)} y = Gemm(x{depth}, last) }}"
    weights = {f"w{k}": rng.normal(size=(WIDTH, WIDTH)) / 6 for k in range(depth)}
    biases = {f"b{k}": rng.normal(size=WIDTH) / 4 for k in range(depth)}
    return build(text, **weights, **biases, last=rng.normal(size=(WIDTH, WIDTH)) / 6)


def samples(count: int, seed: int) -> np.ndarray:
    """Inputs with few common causes."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(3).normal(size=(12, WIDTH))
    return np.asarray(rng.normal(size=(count, 12)) @ mix + 0.3 * rng.normal(size=(count, WIDTH)), np.float32)


def given(x: np.ndarray) -> Context:
    plain = context("ios18")
    return Context(plain.target, plain.scratch, {"x0": x}, True, runs=[{"x0": x}])


def lost(by: str, seed: int) -> float:
    """Noise over signal on other samples."""
    model, test = network(), {"x0": samples(400, seed + 100)}
    wanted = run(model, test)["y"]
    RoundWeights(bits=3, by=by, min_snr=0).run(model, given(samples(400, seed)))  # type: ignore[arg-type]
    return float(np.square(run(model, test)["y"] - wanted).sum() / np.square(wanted).sum())


def test_later_layers_make_up_for_earlier_ones() -> None:
    """By a decibel at least, on average over samples."""
    gains = [10 * np.log10(lost("feedback", seed) / lost("sequential", seed)) for seed in range(3)]
    assert np.mean(gains) > 1


def test_only_numbers_change_and_all_weights_lie_on_their_grids() -> None:
    model, x = network(), samples(200, 0)
    before = [n.op_type for n in model.graph]
    assert RoundWeights(bits=4, by="sequential", min_snr=0).run(model, given(x)) == 5
    assert [n.op_type for n in model.graph] == before
    for name in ("w0", "w1", "w2", "w3", "last"):
        value = model.graph.initializers[name]
        grid, array = grids.read(value), const(value)
        assert grid is not None and array is not None
        assert grid.indices(array) is not None


def test_what_lies_on_a_grid_stays() -> None:
    model, x = network(), samples(200, 0)
    RoundWeights(bits=4, by="sequential", min_snr=0).run(model, given(x))
    before = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items() if v.const_value is not None}
    assert RoundWeights(bits=4, by="sequential", min_snr=0).run(model, given(x)) == 0
    for name, array in before.items():
        assert np.array_equal(const(model.graph.initializers[name]), array)


def test_zeros_of_a_masked_weight_stay() -> None:
    model, x = network(), samples(200, 0)
    value = model.graph.initializers["w2"]
    array = value.const_value.numpy().copy()  # type: ignore[union-attr]
    array[np.abs(array) < np.quantile(np.abs(array), 0.6)] = 0
    value.const_value = ir.tensor(array, name="w2")
    RoundWeights(bits=4, by="sequential", min_snr=0).run(model, given(x))
    rounded = const(model.graph.initializers["w2"])
    assert rounded is not None and not np.array_equal(rounded, array)
    assert (rounded[array == 0] == 0).all()


def crossed(change: np.ndarray | None) -> Moments:
    """The moments of the first layer's inputs, which in the reference are multiplied with `change`."""
    x = samples(400, 5)
    model = build(
        f"(float[N,{WIDTH}] x0) => (float[N,{WIDTH}] y) {{ h = MatMul(x0, turn) y = MatMul(h, w0) }}",
        w0=np.random.default_rng(2).normal(size=(WIDTH, WIDTH)), turn=np.eye(WIDTH),
    )  # fmt: skip
    reference = model.clone()
    if change is not None:
        reference.graph.initializers["turn"].const_value = ir.tensor(change.astype(np.float32), name="turn")
    layers, others = ([x for x in linear_layers(m) if x.weight.name == "w0"] for m in (model, reference))
    (known,) = moments(model, layers, [{"x0": x}], reference=(reference, others))
    return known


def test_a_layer_whose_inputs_are_as_they_were_stays() -> None:
    matrix = np.random.default_rng(0).normal(size=(1, 8, WIDTH)).astype(np.float32)
    found = towards(matrix, crossed(None), bias=False)
    assert found is None or np.abs(found[0] - matrix).max() < 1e-4


@pytest.mark.parametrize("bias", [False, True])
def test_what_a_linear_change_took_away_is_given_back(bias: bool) -> None:
    """Of inputs that were r = x A, a layer W has to become W A'."""
    change = np.eye(WIDTH) + np.random.default_rng(4).normal(size=(WIDTH, WIDTH)) / 40
    known = crossed(change)
    matrix = np.random.default_rng(0).normal(size=(1, 8, WIDTH)).astype(np.float32)
    found = towards(matrix, known, bias)
    assert found is not None
    goal, wanted = found[0], matrix @ change.T.astype(np.float32)
    gram = known.whole.gram
    assert gram is not None

    def error(to: np.ndarray) -> float:
        return float(np.einsum("goi,gij,goj->", to - wanted, gram, to - wanted))

    assert error(goal) < 0.01 * error(matrix)

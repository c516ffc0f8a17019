"""Importance by what the loss says of a channel: taylor and fisher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.channels.flow import couple
from edgec.compiler.channels.sensitivity import gates, gradient_scores
from edgec.compiler.channels.solve import solve
from edgec.compiler.errors import UsageError
from edgec.compiler.gradients.likelihood import heads, labelled
from edgec.compiler.passbase import Context
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes.mask_channels import MaskChannels
from passcheck import context, load

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(5, 3, 4, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2])


def network(batch: str = "N", end: str = "y = Softmax(z)") -> ir.Model:
    """Two convolutions with six channels between and a residual, then four classes."""
    body = f"""
        <ir_version: 10, opset_import: ["" : 25]>
        g (float[{batch},3,4,4] x) => (float[{batch},4] y) <WEIGHTS>
        {{ a = Conv<pads = [1,1,1,1]>(x, w, b)  r = Relu(a)  c = Conv(r, v)  s = Add(c, r)
           p = GlobalAveragePool(s)  f = Flatten(p)  z = MatMul(f, u)  {end} }}
    """
    shapes = {"w": (6, 3, 3, 3), "b": (6,), "v": (6, 6, 1, 1), "u": (6, 4)}
    rng = np.random.default_rng(4)
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    text = ", ".join(
        f"float[{','.join(map(str, a.shape))}] {n} = {{{', '.join(f'{float(e):.9g}' for e in a.reshape(-1))}}}"
        for n, a in arrays.items()
    )
    return load(body.replace("WEIGHTS", text))


def loss(model: ir.Model, k: int) -> float:
    y = Session(model, threads=1).run({"x": IMAGES[k : k + 1]})["y"].astype(np.float64)
    return -float(np.log(y[0, LABELS[k]]))


def scores(model: ir.Model, kind: str, labels: np.ndarray | None = LABELS, x: np.ndarray = IMAGES) -> np.ndarray:
    """Of the six channels that the weight `w` makes."""
    coupling = couple(model)
    found = solve(coupling)
    notes: list[str] = []
    free = isinstance(model.graph.inputs[0].shape[0], ir.SymbolicDim)
    runs = [{"x": x}] if free else [{"x": x[k : k + 1]} for k in range(len(x))]
    total = gradient_scores(model, coupling, found, kind, runs, labels, 0, notes.append)
    assert bool(notes) == (labels is None)
    (hold,) = [h for v, holds in coupling.holds.items() if v.name == "w" for h in holds if h.grid.axes == (0,)]
    return total[found.of[hold.grid.ids]]


@pytest.mark.parametrize("batch", ["N", "1"])
def test_a_score_is_the_slope_of_the_loss_by_a_gate(batch: str) -> None:
    """A channel's gate multiplies all that reads it for the last time: a column of `v`, a row of `u`."""
    slopes = np.zeros((len(IMAGES), 6))
    for channel in range(6):
        ends = []
        for step in (1e-2, -1e-2):
            model = network()
            for name, axis in (("v", 1), ("u", 0)):
                value = model.graph.initializers[name]
                array = np.moveaxis(value.const_value.numpy().copy(), axis, 0)
                array[channel] *= 1 + step
                value.const_value = ir.tensor(np.ascontiguousarray(np.moveaxis(array, 0, axis)), name=name)
            ends.append([loss(model, k) for k in range(len(IMAGES))])
        slopes[:, channel] = (np.array(ends[0]) - np.array(ends[1])) / 2e-2
    np.testing.assert_allclose(scores(network(batch), "taylor"), np.abs(slopes).mean(0), rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(scores(network(batch), "fisher"), np.square(slopes).mean(0), rtol=1e-2, atol=1e-4)


def test_logits_and_probabilities_say_the_same() -> None:
    for kind in ("taylor", "fisher"):
        one = scores(network(), kind)
        for end in ("y = Identity(z)", "y = LogSoftmax(z)"):
            np.testing.assert_allclose(scores(network(end=end), kind), one, rtol=1e-4)


def test_without_labels_the_information_is_that_of_the_outputs() -> None:
    """With many draws: the sum over classes of probability times squared slope, as Fisher defined it."""
    model = network("1")
    u = model.graph.initializers["u"]
    u.const_value = ir.tensor(u.const_value.numpy() * np.float32(0.1), name="u")
    by_class = np.stack([scores(model, "fisher", np.array([c]), IMAGES[:1]) for c in range(4)])
    p = Session(model).run({"x": IMAGES[:1]})["y"][0]
    wanted = (p[:, None] * by_class).sum(0)
    drawn = scores(model, "fisher", None, np.repeat(IMAGES[:1], 400, 0))
    np.testing.assert_allclose(drawn, wanted, rtol=0.2, atol=0.02 * wanted.max())


@pytest.mark.parametrize(
    ("end", "kind"), [("y = Softmax(z)", "classes"), ("y = Sigmoid(z)", "bits"), ("y = Tanh(z)", "numbers")]
)
def test_what_outputs_mean(end: str, kind: str) -> None:
    model = network(end=end)
    assert [h.kind for h in heads(model)] == [kind]
    for by in ("taylor", "fisher"):
        found = scores(model, by, None)
        assert (found > 0).all() and np.isfinite(found).all()


@pytest.mark.parametrize("by", ["taylor", "fisher"])
def test_what_the_loss_does_not_feel_goes_first(by: str) -> None:
    """Large weights whose effects on all classes are alike: no softmax sees them."""
    model = network()
    u = model.graph.initializers["u"]
    array = u.const_value.numpy().copy()
    array[[1, 4]] = 50
    u.const_value = ir.tensor(array, name="u")
    v = model.graph.initializers["v"]
    columns = v.const_value.numpy().copy()
    columns[:, [1, 4]] = 0
    v.const_value = ir.tensor(columns, name="v")
    ctx = Context(find_target("onnx"), Scratch(), {"x": IMAGES}, True, labels=LABELS)
    MaskChannels(ratio=0.34, of="channels", align=1, by=by).run(model, ctx)
    masked = model.graph.initializers["w"].const_value.numpy()
    assert [k for k in range(6) if not masked[k].any()] == [1, 4]


def test_a_slice_that_goes_on_is_counted_where_it_ends() -> None:
    model = network()
    coupling = couple(model)
    found = solve(coupling)
    nodes = list(model.graph)
    assert [nodes[g.at].op_type for g in gates(model, coupling, found)] == ["Conv", "MatMul"]


# --- wrong use, and the command line ---------------------------------------------------------------------------------


def test_labels_must_be_classes() -> None:
    with pytest.raises(UsageError, match="0 to 3"):
        scores(network(), "taylor", np.array([0, 1, 2, 3, 4]))


def test_labels_need_classes() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25]> g (float[N,3] x) => (float[N,3,1] y)
              <int64[3] s = {0,3,1}> { y = Reshape(x, s) }"""
    with pytest.raises(UsageError, match="no output of shape"):
        labelled(heads(load(text)), {"y": np.zeros((2, 3, 1))})


def test_what_can_not_be_differentiated_is_named() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25]> g (float[1,8,3] x) => (float[1,8,5] y)
              <float[3,4] a, float[4,5] b>
              { h = MatMul(x, a) t = Relu(h) m = MatMul(t, b) q, s, o = DynamicQuantizeLinear(m)
                y = DequantizeLinear(q, s, o) }"""
    arrays = "float[3,4] a = {1,2,3,4,5,6,7,8,9,1,2,3}, float[4,5] b = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2}"
    model = load(text.replace("float[3,4] a, float[4,5] b", arrays))
    x = np.ones((1, 8, 3), np.float32)
    ctx = context("onnx", {"x": x})
    MaskChannels(by="fisher", of="channels", align=1).run(model, ctx)
    assert any("Quantize" in note and "activation" in note for note in ctx.notes), ctx.notes


def test_from_the_command_line(tmp_path: Path) -> None:
    """The labels beside the inputs reach the pass; without them it says what it used."""
    data = np.load(DIGITS / "digits.npz")
    np.savez(tmp_path / "few.npz", image=data["image"][:40], labels=data["labels"][:40])
    np.savez(tmp_path / "bare.npz", image=data["image"][:40])
    said = {}
    for name in ("few", "bare"):
        command = [sys.executable, "-m", "edgec", str(DIGITS / "digits.onnx"), "-O0", "--target", "onnx", "--pass",
                   "mask-channels{by=taylor}", "--inputs", f"{name}.npz", "-v"]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said[name] = "no labels were given" in done.stdout
    assert said == {"few": False, "bare": True}

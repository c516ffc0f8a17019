"""Gradients of whole models: against torch's, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgec.compiler import graph as g
from edgec.compiler import shapes
from edgec.compiler.errors import EdgecError, UnsupportedOp
from edgec.compiler.functions import declare
from edgec.compiler.gradients.reverse import SEED, SUFFIX, gradient
from edgec.compiler.gradients.rules import RULES, STOPS
from edgec.compiler.session import Session
from edgec.frontends.onnx import load as load_file
from edgec.passes.canonicalize import Canonicalize
from passcheck import context, load, ops
from tests.corpus import exports

NETWORKS = ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny", "vit_b_16", "bert12", "gpt_sdpa"]


def canonical(path: object) -> ir.Model:
    model = load_file(path)
    Canonicalize().run(model, context("onnx"))
    shapes.infer(model)
    return model


@pytest.mark.parametrize("mode", ["dynamo", "legacy", "dynamo_dyn", "legacy_dyn"])
@pytest.mark.parametrize("name", NETWORKS)
def test_as_torch_says(name: str, mode: str) -> None:
    """With respect to every weight that the export holds as torch does, and to pictures. Torch in double precision."""
    net = exports.NETS[name]
    module = exports.prepare(net.build_tiny, net.example(tiny=True, batch=4))
    model = canonical(exports.export(name, mode, tiny=True))
    example = net.example(tiny=True, batch=3 if mode.endswith("dyn") else 1)
    # In single precision torch itself is 4% off where a ReLU is all but zero.
    precise = tuple(x.double().requires_grad_() if x.is_floating_point() else x for x in example)
    y = module.double()(*precise)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (y * seed).sum().backward()
    wanted = [({n: False}, x.grad.numpy()) for n, x in zip(net.inputs, precise, strict=True) if x.requires_grad]
    held = {v.name: a for v in model.graph.initializers.values() if (a := g.const(v)) is not None and a.ndim > 1}
    for p in module.parameters():
        weight = p.detach().float().numpy()
        # One that torch uses twice may be two initializers, one of them turned.
        same = {n: turned for n, a in held.items() if (turned := _turned(a, weight)) is not None}
        if same and p.grad is not None:
            wanted.append((same, p.grad.numpy()))
    assert len(wanted) >= 2, wanted
    output = str(model.graph.outputs[0].name)
    made = gradient(model, [output], [n for names, _ in wanted for n in names], seeds=True)
    feeds = {n: x.numpy() for n, x in zip(net.inputs, example, strict=True)}
    found = Session(made, threads=1).run({**feeds, output + SEED: seed.float().numpy()})
    np.testing.assert_allclose(found[output], y.detach().numpy(), rtol=0, atol=1e-4 * float(y.abs().max()))
    for names, slope in wanted:
        total = sum(found[n + SUFFIX].T if turned else found[n + SUFFIX] for n, turned in names.items())
        error = float(np.linalg.norm(total - slope) / max(np.linalg.norm(slope), 1e-6))
        assert error < 1e-4, f"{list(names)}: {error:.1e}"


def _turned(a: np.ndarray, weight: np.ndarray) -> bool | None:
    """Whether an initializer is the weight turned; None where it is something else."""
    if a.shape == weight.shape and (a == weight).all():
        return False
    return True if a.shape == weight.T.shape and (a == weight.T).all() else None


# --- what a gradient is ----------------------------------------------------------------------------------------------


def model(body: str, signature: str = "float[2,3] x", result: str = "float[2,3] y", weights: str = "") -> ir.Model:
    return load(f'<ir_version: 10, opset_import: ["" : 25]> g ({signature}) => ({result}) <{weights}> {{ {body} }}')


X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)


def test_a_value_that_is_read_twice_gets_both() -> None:
    found = Session(gradient(model("a = Mul(x, x) y = Add(a, x)"), ["y"], ["x", "a"])).run({"x": X})
    np.testing.assert_allclose(found["x" + SUFFIX], 2 * X + 1)
    np.testing.assert_allclose(found["a" + SUFFIX], np.ones_like(X))
    np.testing.assert_allclose(found["y"], X * X + X)


def test_what_has_no_influence_gets_zeros() -> None:
    net = model("s = Sign(x) y = Mul(s, w)", weights="float[3] w = {1, 2, 3}, float[2] v = {1, 2}")
    found = Session(gradient(net, ["y"], ["x", "w", "v"])).run({"x": X})
    assert not found["x" + SUFFIX].any() and not found["v" + SUFFIX].any()
    np.testing.assert_allclose(found["w" + SUFFIX], np.sign(X).sum(0))


def test_several_values_are_summed() -> None:
    net = model("y = Exp(x) z = Neg(x)", result="float[2,3] y, float[2,3] z")
    found = Session(gradient(net, ["y", "z"], ["x"], keep=["x"])).run({"x": X})
    np.testing.assert_allclose(found["x" + SUFFIX], np.exp(X) - 1, rtol=1e-5)
    assert len(found) == 4


def test_the_model_is_left_alone_and_only_what_is_needed_stays() -> None:
    net = model("y = Mul(x, w) unused = Tanh(y)", weights="float[3] w = {1, 2, 3}")
    before = str(ir.to_proto(net))
    made = gradient(net, ["y"], ["w"])
    assert str(ir.to_proto(net)) == before
    assert ops(made)["Tanh"] == 0
    assert made.graph.initializers["w"].const_value is net.graph.initializers["w"].const_value


def test_functions_are_written_out() -> None:
    net = model("y = Sigmoid(x)")
    declare(net, "Swish")
    node = next(iter(net.graph))
    swish = g.insert_before(node, "Swish", node.inputs, domain="edgec", like=node.outputs[0])
    g.replace_node(node, swish.outputs[0])
    found = Session(gradient(net, ["y"], ["x"])).run({"x": X})["x" + SUFFIX]
    s = 1 / (1 + np.exp(-X))
    np.testing.assert_allclose(found, s + X * s * (1 - s), rtol=1e-5)


def test_all_that_is_missing_is_named_at_once() -> None:
    body = """a = Det(m) b = Mul(a, one) r, q, s = DynamicQuantizeLinear(x) d = DequantizeLinear(r, q, s)
              c = ReduceSum <keepdims = 0> (d) y = Add(b, c)"""
    net = model(body, "float[2,2] m, float[2,3] x", "float y", "float one = {1.0}")
    with pytest.raises(UnsupportedOp) as e:
        gradient(net, ["y"], ["m", "x"])
    assert {m.op for m in e.value.missing} == {"Det", "DequantizeLinear", "DynamicQuantizeLinear"}


def test_what_is_not_on_the_way_may_be_anything() -> None:
    net = model("a = Det(m) y = Mul(x, a)", "float[2,2] m, float[2,3] x")
    found = Session(gradient(net, ["y"], ["x"])).run({"x": X, "m": np.eye(2, dtype=np.float32) * 2})
    np.testing.assert_allclose(found["x" + SUFFIX], np.full_like(X, 4))


def test_a_loop_is_refused_for_what_it_reads() -> None:
    body = """n = Identity(count)
              y = Loop (n, yes, x) <body = b (int64 i, bool c, float[2,3] s) => (bool c2, float[2,3] s2)
              { c2 = Identity(c) s2 = Mul(s, w) }>"""
    net = model(body, weights="int64 count = {3}, bool yes = {1}, float[3] w = {1, 2, 3}")
    with pytest.raises(UnsupportedOp, match="Loop"):
        gradient(net, ["y"], ["w"])


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(EdgecError, match="'z'"):
        gradient(model("y = Exp(x)"), ["y"], ["z"])


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_lists_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gradients.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    listed = [op for row in rows for op in re.findall(r"`(\w+)`", row[2])]
    assert sorted(listed) == sorted([*RULES, *STOPS, "Cast"]), "each once, and Cast once more"


def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    code = (root / "docs" / "gradients.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(root)
    names: dict[str, object] = {}
    exec(code, names)
    found = names["found"]
    assert isinstance(found, dict) and found["stem.0.weight.gradient"].any()

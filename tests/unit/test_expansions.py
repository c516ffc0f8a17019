"""What older opsets lack is written out, and computes the same: attention in all its forms, and the small operators."""

from __future__ import annotations

import numpy as np
import onnx.defs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import graph
from edgec.passes.expansions import EXPANSIONS
from edgec.passes.legalize import Legalize
from passcheck import check_pass, context, load, run

HEAD = '<ir_version: 10, opset_import: ["" : 25]>'


def expanded(text: str, opset: int = 13, **options: object) -> list[str]:
    """The operators after legalisation for `opset`, all of which it has."""
    model = check_pass(f"{HEAD} agraph {text}", Legalize(opset), target="onnx", **options)  # type: ignore[arg-type]
    found = [n.op_type for n in graph.nodes(model)]
    assert all(onnx.defs.has(op, opset, "") for op in found), found
    return found


SMALL = {
    "HardSwish": ("HardSwish(x)", 2),
    "Mish": ("Mish(x)", 3),
    "Gelu": ("Gelu(x)", 5),
    "Gelu, tanh": ('Gelu<approximate="tanh">(x)', 9),
    "LayerNormalization": ("LayerNormalization<axis=-1, epsilon=0.001>(x, s, s)", 9),
    "LayerNormalization without bias": ("LayerNormalization<axis=2>(x, s)", 8),
    "LayerNormalization over two axes": ("LayerNormalization<axis=1>(x, t, t)", 9),
    "RMSNormalization": ("RMSNormalization<epsilon=0.001>(x, s)", 6),
    "GroupNormalization": ("GroupNormalization<num_groups=2>(x, c, c)", 7),
    "Trilu": ("Trilu(x)", None),
    "Trilu, lower": ("Trilu<upper=0>(x, one)", None),
    "Trilu, shifted": ("Trilu<upper=1>(x, minus)", None),
}


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("batch", ["2", "N"])
def test_small_operators(case: str, batch: str) -> None:
    body, nodes = SMALL[case]
    text = f"""(float[{batch},4,6] x) => (float[{batch},4,6] y)
        <float[6] s = {{0.5,1,2,3,-1,1.5}}, float[4] c = {{1,2,0.5,-1}}, int64 one = {{1}}, int64 minus = {{-1}},
         float[4,6] t = {{1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24}}> {{ y = {body} }}"""
    found = expanded(text)
    assert nodes is None or len(found) == nodes, found


@pytest.mark.parametrize(("alpha", "nodes"), [(1.0, 2), (1.702, 3)])
def test_swish(alpha: float, nodes: int) -> None:
    """onnxruntime has no kernel for it, so that numpy says what is right."""
    model = load(f"{HEAD} agraph (float[2,5] x) => (float[2,5] y) {{ y = Swish<alpha={alpha}>(x) }}")
    assert Legalize(18).run(model, context("onnx")) == 1
    assert model.graph.num_nodes() == nodes
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": x})["y"], x / (1 + np.exp(-alpha * x)), rtol=1e-5)


def test_a_newer_opset_keeps_the_operator() -> None:
    text = "(float[2,4] x) => (float[2,4] y) { y = Gelu(x) }"
    assert expanded(text, 20, rewrites=0) == ["Gelu"]
    assert "Gelu" not in expanded(text, 19, rewrites=1)


def test_group_normalization_of_opset_18_means_something_else() -> None:
    text = """(float[2,4,6] x) => (float[2,4,6] y) <float[4] c = {1,2,0.5,-1}> {
        y = GroupNormalization<num_groups=2>(x, c, c) }"""
    assert expanded(text, 21, rewrites=0) == ["GroupNormalization"]
    assert "InstanceNormalization" in expanded(text, 20, rewrites=1)


def test_an_output_of_the_model_that_is_an_input_as_well() -> None:
    text = "(float[2,4] x) => (float[2,4] y, float[2,4] z) { y = Mish(x) z = Neg(y) }"
    assert sorted(expanded(text)) == ["Mul", "Neg", "Softplus", "Tanh"]


MASKS = {"none": "", "bool": ", bool", "float": ", float"}


@settings(max_examples=25, deadline=None)
@given(
    flat=st.booleans(),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    mask=st.sampled_from(["none", "bool", "float"]),
    mask_rank=st.sampled_from([2, 3, 4]),
    causal=st.booleans(),
    scale=st.sampled_from(["", "scale = 0.3"]),
    softcap=st.sampled_from(["", "softcap = 2.0"]),
    lengths=st.sampled_from([(5, 5), (3, 7)]),
    free=st.booleans(),
)
def test_attention(
    flat: bool,
    heads: tuple[int, int],
    mask: str,
    mask_rank: int,
    causal: bool,
    scale: str,
    softcap: str,
    lengths: tuple[int, int],
    free: bool,
) -> None:
    (q_heads, kv_heads), (queries, keys), size, wide = heads, lengths, 4, 3
    b, lq, lk = ("B", "Q", "K") if free else ("2", str(queries), str(keys))
    if flat:
        ports = [f"{b},{lq},{q_heads * size}", f"{b},{lk},{kv_heads * size}", f"{b},{lk},{kv_heads * wide}"]
        result, attributes = f"{b},{lq},{q_heads * wide}", [f"q_num_heads={q_heads}, kv_num_heads={kv_heads}"]
    else:
        ports = [f"{b},{q_heads},{lq},{size}", f"{b},{kv_heads},{lk},{size}", f"{b},{kv_heads},{lk},{wide}"]
        result, attributes = f"{b},{q_heads},{lq},{wide}", []
    attributes += [a for a in ("is_causal = 1" if causal else "", scale, softcap) if a]
    inputs = [f"float[{p}] {n}" for p, n in zip(ports, "qkv", strict=True)]
    dims = [lq, lk] if mask_rank == 2 else [str(q_heads), lq, lk] if mask_rank == 3 else [b, "1", lq, lk]
    if mask != "none":
        inputs.append(f"{mask}[{','.join(dims)}] m")
    spelt = f"<{', '.join(attributes)}>" if attributes else ""
    given_mask = ", m" if mask != "none" else ""
    text = f"({', '.join(inputs)}) => (float[{result}] y) {{ y = Attention{spelt}(q, k, v{given_mask}) }}"
    sizes = {"B": 2, "Q": queries, "K": keys}
    shapes = {i.split(" ")[1]: [] for i in inputs}  # type: dict[str, list[int]]
    for i in inputs:
        kind, name = i.split(" ")
        shapes[name] = [sizes[d] if d in sizes else int(d) for d in kind[kind.index("[") + 1 : -1].split(",")]
    found = expanded(text, input_shapes=shapes, rewrites=1)
    assert len(found) <= 30


def test_layers_share_one_causal_mask() -> None:
    text = """(float[B,T,8] x) => (float[B,T,8] y) {
        h = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(x, x, x)
        y = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(h, h, h) }"""
    assert expanded(text).count("Range") == 2


def test_what_has_no_short_form_takes_the_standards_body() -> None:
    text = """(float[2,2,3,4] q, float[2,2,3,4] k, float[2,2,3,4] v, float[2,2,5,4] pk, float[2,2,5,4] pv)
        => (float[2,2,3,4] y, float[2,2,8,4] nk, float[2,2,8,4] nv) { y, nk, nv = Attention(q, k, v, , pk, pv) }"""
    found = expanded(text, 18, rewrites=1)
    assert "Softmax" in found and "Attention" not in found


def test_every_expansion_is_tested() -> None:
    tested = {case.split(",")[0].split(" ")[0] for case in SMALL}
    assert set(EXPANSIONS) - tested == {"Attention", "DequantizeLinear", "Swish"}

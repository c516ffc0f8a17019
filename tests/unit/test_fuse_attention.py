"""Attention in the spellings of exporters: 4-D, 3-D, packed, merged heads, masks of every kind; and near misses."""

import numpy as np
import pytest

from edgec.compiler import graph as g
from edgec.passes.fuse_attention import FuseAttention
from passcheck import check_pass, context, ops

HEADS = "float[2,4,6,8]"
CONSTANTS = (
    "float root = {2.8284271}, float inv = {0.35355339}, float half = {0.59460356}, float zero = {0.0}, "
    "float ninf = {-1e9}, float deep = {-3.4028235e38}, float other = {0.2}, int64[4] by_heads = {2, 6, 4, 8}, "
    "int64[4] any_heads = {0, 0, 4, 8}, int64[3] joined = {2, 6, 32}, int64[3] any_joined = {0, 0, 32}"
)


def model(body: str, signature: str, out: str, extra: str = "") -> str:
    constants = CONSTANTS + (f", {extra}" if extra else "")
    return f'<ir_version: 10, opset_import: ["" : 25]> m ({signature}) => ({out}) <{constants}> {{ {body} }}'


QKV = f"{HEADS} q, {HEADS} k, {HEADS} v"
TAIL = "w = Softmax<axis = -1>(s) y = MatMul(w, v)"
KT = "kt = Transpose<perm = [0,1,3,2]>(k) "
CORES = {
    "scores divided": KT + "a = MatMul(q, kt) s = Div(a, root) " + TAIL,
    "scores multiplied": KT + "a = MatMul(q, kt) s = Mul(inv, a) " + TAIL,
    "query scaled": KT + "qs = Mul(q, inv) s = MatMul(qs, kt) " + TAIL,
    "key scaled": KT + "ks = Div(kt, root) s = MatMul(q, ks) " + TAIL,
    "both scaled": KT + "qs = Mul(q, half) ks = Mul(half, kt) s = MatMul(qs, ks) " + TAIL,
}


@pytest.mark.parametrize("body", CORES.values(), ids=CORES)
def test_scales(body: str) -> None:
    fused = check_pass(model(body, QKV, f"{HEADS} y"), FuseAttention(), rewrites=1)
    assert ops(fused) == {"Attention": 1}
    assert "scale" not in next(iter(fused.graph)).attributes


def test_an_unusual_scale_is_kept() -> None:
    fused = check_pass(model(KT + "a = MatMul(q, kt) s = Mul(a, other) " + TAIL, QKV, f"{HEADS} y"), FuseAttention())
    assert next(iter(fused.graph)).attributes["scale"].as_float() == pytest.approx(0.2)


MASKS = {
    "float, full": ("float[2,4,6,6] m", "s = Add(b, m)", ["Attention"]),
    "float, one for all heads": ("float[2,1,6,6] m", "s = Add(m, b)", ["Attention"]),
    "float, 2-D": ("float[6,6] m", "s = Add(m, b)", ["Attention"]),
    "float, keys only": ("float[2,1,1,6] m", "s = Add(b, m)", ["Expand", "Attention"]),
    "float, 1-D": ("float[6] m", "s = Add(b, m)", ["Expand", "Attention"]),
    "float, one column": ("float[2,1,6,1] m", "s = Add(b, m)", ["Expand", "Attention"]),
    "two floats": ("float[6,6] m, float[2,1,1,6] n", "c = Add(b, m) s = Add(n, c)", ["Add", "Attention"]),
    "bool keeps": ("bool[2,1,6,6] m", "s = Where(m, b, ninf)", ["Attention"]),
    "bool drops": ("bool[2,1,6,6] m", "s = Where(m, ninf, b)", ["Not", "Attention"]),
    "bool, keys only": ("bool[2,1,1,6] m", "s = Where(m, b, deep)", ["Expand", "Attention"]),
    "bool and float": ("bool[6,6] m, float[2,1,1,6] n", "c = Add(b, n) s = Where(m, c, ninf)", ["Where", "Attention"]),
}


@pytest.mark.parametrize(("declared", "body", "left"), MASKS.values(), ids=MASKS)
def test_masks(declared: str, body: str, left: list[str]) -> None:
    text = model(HEAD + "b = Div(a, root) " + body + TAIL, f"{QKV}, {declared}", f"{HEADS} y")
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal((2, 4, 6, 8), np.float32) for n in "qkv"}
    for one in declared.split(", "):
        kind, name = one.split()
        shape = [int(d) for d in kind[kind.index("[") + 1 : -1].split(",")]
        if kind.startswith("float"):
            inputs[name] = rng.standard_normal(shape, np.float32)
        else:
            inputs[name] = rng.random(shape) < 0.6
            inputs[name][..., 2] = "drops" not in body and "Where(m, ninf" not in body
    fused = check_pass(text, FuseAttention(), rewrites=1, inputs=inputs)
    assert [n.op_type for n in fused.graph] == left


@pytest.mark.parametrize("bool_mask", [True, False])
def test_a_triangular_constant_is_causal(bool_mask: bool) -> None:
    tri = np.tri(6, dtype=bool)
    values = ", ".join(str(int(t)) if bool_mask else ("0" if t else "-1e9") for t in tri.reshape(-1))
    kind, select = ("bool", "s = Where(m, b, ninf) ") if bool_mask else ("float", "s = Add(b, m) ")
    text = model(
        KT + "a = MatMul(q, kt) b = Div(a, root) " + select + TAIL,
        QKV,
        f"{HEADS} y",
        f"{kind}[1,1,6,6] m = {{{values}}}",
    )
    fused = check_pass(text, FuseAttention(), rewrites=1)
    assert ops(fused) == {"Attention": 1}
    assert next(iter(fused.graph)).attributes["is_causal"].as_int() == 1


def test_causal_with_padding_keeps_the_padding_mask() -> None:
    values = ", ".join("0" if t else "-1e9" for t in np.tri(6, dtype=bool).reshape(-1))
    body = KT + "a = MatMul(q, kt) b = Div(a, root) c = Add(b, m) s = Add(c, p) " + TAIL
    text = model(body, f"{QKV}, float[2,1,1,6] p", f"{HEADS} y", f"float[1,1,6,6] m = {{{values}}}")
    fused = check_pass(text, FuseAttention(), rewrites=1)
    assert ops(fused) == {"Expand": 1, "Attention": 1}


@pytest.mark.parametrize(("mask", "told"), [("deep", True), ("zero", False)])
def test_masks_that_may_hide_every_key_are_told(mask: str, told: bool) -> None:
    """[batch, 1, queries, keys] chosen from 0 and the lowest float, as newer exports write boolean masks."""
    body = KT + f"a = MatMul(q, kt) b = Div(a, root) p = Where(m, zero, {mask}) s = Add(b, p) " + TAIL
    keep = np.ones((2, 1, 6, 6), bool)
    keep[..., 1] = False
    inputs = {n: np.random.default_rng(1).standard_normal((2, 4, 6, 8), np.float32) for n in "qkv"}
    ctx = context()
    text = model(body, f"{QKV}, bool[2,1,6,6] m", f"{HEADS} y")
    fused = check_pass(text, FuseAttention(), rewrites=1, inputs={**inputs, "m": keep}, ctx=ctx)
    assert ops(fused) == {"Where": 1, "Attention": 1}
    assert any("hides every key" in n for n in ctx.notes) == told


def test_the_guard_of_a_safe_softmax_goes() -> None:
    body = KT + "a = MatMul(q, kt) b = Div(a, root) s = Where(m, b, hidden) w0 = Softmax(s) n = IsNaN(w0) "
    body += "w = Where(n, zero, w0) y = MatMul(w, v)"
    keep = np.ones((2, 1, 6, 6), bool)
    keep[0, 0, 3] = False
    inputs = {n: np.random.default_rng(1).standard_normal((2, 4, 6, 8), np.float32) for n in "qkv"}
    text = model(body, f"{QKV}, bool[2,1,6,6] m", f"{HEADS} y", "float hidden = {-inf}")
    fused = check_pass(text, FuseAttention(), rewrites=1, inputs={**inputs, "m": keep})
    assert ops(fused) == {"Attention": 1}


PER_HEAD = (
    "q4 = Reshape(q, {0}) qh = Transpose<perm = [0,2,1,3]>(q4) k4 = Reshape(k, {0}) v4 = Reshape(v, {0}) "
    "vh = Transpose<perm = [0,2,1,3]>(v4) {1} a = MatMul(qh, kt) s = Div(a, root) w = Softmax(s) c = MatMul(w, vh) "
    "t = Transpose<perm = [0,2,1,3]>(c) y = Reshape(t, {2})"
)
ONE_STEP = "kt = Transpose<perm = [0,2,3,1]>(k4)"
TWO_STEPS = "kh = Transpose<perm = [0,2,1,3]>(k4) kt = Transpose<perm = [0,1,3,2]>(kh)"


@pytest.mark.parametrize("keys", [ONE_STEP, TWO_STEPS])
@pytest.mark.parametrize(("dims", "split", "join"), [("2,6", "by_heads", "joined"), ("B,T", "any_heads", "any_joined")])
def test_heads_taken_apart_and_joined(keys: str, dims: str, split: str, join: str) -> None:
    signature = ", ".join(f"float[{dims},32] {n}" for n in "qkv")
    text = model(PER_HEAD.format(split, keys, join), signature, f"float[{dims},32] y")
    fused = check_pass(text, FuseAttention(), rewrites=1, input_shapes=dict.fromkeys("qkv", (2, 6, 32)))
    assert ops(fused) == {"Attention": 1}
    assert next(iter(fused.graph)).attributes["q_num_heads"].as_int() == 4


def test_symbolic_keys_only_mask_is_expanded_once_for_all_layers() -> None:
    layer = PER_HEAD.format("any_heads", TWO_STEPS, "any_joined").replace(
        "s = Div(a, root)", "b = Div(a, root) s = Add(b, m)"
    )
    names = ["q4", "qh", "k4", "v4", "vh", "kh", "kt", "a", "b", "s", "w", "c", "t"]
    first = layer.replace("y = Reshape", "q1 = Reshape")
    second = layer.replace("Reshape(q,", "Reshape(q1,")
    for name in names:
        second = (
            second.replace(f"{name} =", f"{name}_2 =")
            .replace(f"({name},", f"({name}_2,")
            .replace(f"({name})", f"({name}_2)")
        )
        second = second.replace(f", {name})", f", {name}_2)")
    signature = "float[B,T,32] q, float[B,T,32] k, float[B,T,32] v, float[B,1,1,T] m"
    text = model(first + " " + second, signature, "float[B,T,32] y")
    shapes = {**dict.fromkeys("qkv", (2, 6, 32)), "m": (2, 1, 1, 6)}
    fused = check_pass(text, FuseAttention(), rewrites=2, input_shapes=shapes)
    assert ops(fused)["Expand"] == 1 and ops(fused)["Attention"] == 2


def packed(batch: str, static: bool) -> str:
    """torch.nn.MultiheadAttention: length first, q, k and v side by side, batch and heads merged."""
    fourth, merged, apart = ("6,2,3,32", "6,8,8", "2,4,6,8") if static else ("6,-1,3,32", "6,-1,8", "-1,4,6,8")
    body = "r = Reshape(x, fourth) u = Unsqueeze(r, axis0) t = Transpose<perm = [3,1,2,0,4]>(u) z = Squeeze(t, axis3) "
    for i, n in enumerate("qkv"):
        body += (
            f"{n}0 = Gather<axis = 0>(z, at{i}) {n}1 = Reshape({n}0, merged) {n}2 = Transpose<perm = [1,0,2]>({n}1) "
        )
        body += f"{n}h = Reshape({n}2, apart) "
    body += (
        "kt = Transpose<perm = [0,1,3,2]>(kh) qs = Mul(qh, half) ks = Mul(kt, half) s = MatMul(qs, ks) w = Softmax(s) "
    )
    body += "c = MatMul(w, vh) o = Transpose<perm = [2,0,1,3]>(c) y = Reshape(o, rows)"
    extra = f"int64[4] fourth = {{{fourth}}}, int64[3] merged = {{{merged}}}, int64[4] apart = {{{apart}}}, "
    extra += "int64[2] rows = {-1, 32}, int64[1] axis0 = {0}, int64[1] axis3 = {3}, "
    extra += ", ".join(f"int64 at{i} = {{{i}}}" for i in range(3))
    return model(body, f"float[6,{batch},96] x", "float[R,32] y" if not static else "float[12,32] y", extra)


@pytest.mark.parametrize("static", [True, False])
def test_packed_projection(static: bool) -> None:
    text = packed("2" if static else "B", static)
    fused = check_pass(text, FuseAttention(), rewrites=1, input_shapes={"x": (6, 2, 96)})
    assert ops(fused) == {"Transpose": 2, "Split": 1, "Attention": 1, "Reshape": 1}


@pytest.mark.parametrize("way", ["split", "slice", "gather"])
def test_packed_projection_taken_apart_by(way: str) -> None:
    """[batch, length, 3, heads, size] → [3, batch, heads, length, size] → three, as timm and Paddle write it."""
    body = "r = Reshape(x, cut) t = Transpose<perm = [2,0,3,1,4]>(r) "
    if way == "split":
        body += "q0, k0, v0 = Split<axis = 0, num_outputs = 3>(t) "
    for i, n in enumerate("qkv"):
        if way == "gather":
            body += f"{n}h = Gather<axis = 0>(t, at{i}) "
        else:
            body += f"{n}0 = Slice(t, from{i}, from{i + 1}, from0, from1) " if way == "slice" else ""
            body += f"{n}h = Squeeze({n}0, from0) "
    body += (
        "qs = Mul(qh, inv) kt = Transpose<perm = [0,1,3,2]>(kh) s = MatMul(qs, kt) w = Softmax(s) c = MatMul(w, vh) "
    )
    body += "o = Transpose<perm = [0,2,1,3]>(c) y = Reshape(o, joined)"
    extra = "int64[5] cut = {0, 0, 3, 4, 8}, " + ", ".join(f"int64 at{i} = {{{i}}}" for i in range(3)) + ", "
    extra += ", ".join(f"int64[1] from{i} = {{{i}}}" for i in range(4))
    fused = check_pass(model(body, "float[2,6,96] x", "float[2,6,32] y", extra), FuseAttention(), rewrites=1)
    assert ops(fused) == {"Split": 1, "Attention": 1}


def test_batch_and_heads_merged() -> None:
    """Three dimensions throughout: Attention sees one batch of so many heads."""
    text = model(
        "a = MatMul(q, k) s = Mul(a, inv) " + TAIL, "float[8,6,8] q, float[8,8,6] k, float[8,6,8] v", "float[8,6,8] y"
    )
    fused = check_pass(text, FuseAttention(), rewrites=1)
    assert ops(fused)["Attention"] == 1 and "Softmax" not in ops(fused)


def test_repeated_key_heads() -> None:
    body = "ku = Unsqueeze(k, two) ke = Expand(ku, wide) kr = Reshape(ke, full) vu = Unsqueeze(v, two) "
    body += "ve = Expand(vu, wide) "
    body += (
        "vr = Reshape(ve, full) kt = Transpose<perm = [0,1,3,2]>(kr) a = MatMul(q, kt) s = Div(a, root) w = Softmax(s) "
    )
    body += "y = MatMul(w, vr)"
    extra = "int64[1] two = {2}, int64[5] wide = {2, 2, 2, 6, 8}, int64[4] full = {2, 4, 6, 8}"
    text = model(body, f"{HEADS} q, float[2,2,6,8] k, float[2,2,6,8] v", f"{HEADS} y", extra)
    fused = check_pass(text, FuseAttention(), rewrites=1)
    assert ops(fused) == {"Attention": 1}


def test_values_of_another_size_and_keys_of_another_length() -> None:
    text = model(
        KT + "a = MatMul(q, kt) s = Div(a, root) " + TAIL,
        f"{HEADS} q, float[2,4,9,8] k, float[2,4,9,5] v",
        "float[2,4,6,5] y",
    )
    assert ops(check_pass(text, FuseAttention(), rewrites=1)) == {"Attention": 1}


HEAD = KT + "a = MatMul(q, kt) "
LEFT = {
    "softmax over queries": (HEAD + "s = Div(a, root) w = Softmax<axis = 2>(s) y = MatMul(w, v)", "axis"),
    "weights read elsewhere": (
        HEAD + "s = Div(a, root) w = Softmax(s) z = MatMul(w, v) r = ReduceMax(w) y = Add(z, r)",
        "read elsewhere",
    ),
    "a constant for keys": ("a = MatMul(q, fixed) s = Div(a, root) w = Softmax(s) y = MatMul(w, v)", ""),
    "shallow mask": (HEAD + "b = Div(a, root) n = IsNaN(b) s = Where(n, zero, b) " + TAIL, ""),
    "scaled after the mask": (HEAD + "b = Add(a, a6) s = Div(b, root) " + TAIL, ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), LEFT.values(), ids=LEFT)
def test_what_is_no_attention(body: str, reason: str) -> None:
    ctx = context()
    extra = "float[1,1,8,6] fixed = {" + ", ".join("0.1" for _ in range(48)) + "}, float[6,6] a6 = {"
    extra += ", ".join("0.5" for _ in range(36)) + "}"
    check_pass(model(body, QKV, f"{HEADS} y", extra), FuseAttention(), rewrites=0, ctx=ctx)
    assert any(reason in n for n in ctx.notes) if reason else not ctx.notes


def test_queries_that_broadcast_over_the_batch_are_left() -> None:
    ctx = context()
    text = model(CORES["scores divided"], f"float[1,4,6,8] q, {HEADS} k, {HEADS} v", f"{HEADS} y")
    check_pass(text, FuseAttention(), rewrites=0, ctx=ctx)
    assert "not known to fit" in ctx.notes[0]


def test_views_with_other_readers_stay() -> None:
    body = PER_HEAD.format("by_heads", TWO_STEPS, "joined") + " z = Relu(qh)"
    text = model(body, ", ".join(f"float[2,6,32] {n}" for n in "qkv"), "float[2,6,32] y, float[2,4,6,8] z")
    fused = check_pass(text, FuseAttention(), rewrites=1)
    assert ops(fused) == {"Reshape": 1, "Transpose": 1, "Relu": 1, "Attention": 1}
    assert g.users(fused.graph.inputs[0])

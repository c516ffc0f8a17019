"""The tree matcher: what it finds in which spelling, what it refuses, and the reasons it gives."""

import onnx
import onnx_ir as ir
import pytest

from edgec.compiler.matching import match
from edgec.compiler.patterns import Const, Match, OneOf, Op, Product, Sum, Var
from edgec.compiler.rewriting import Index, find

GELU = Product(0.5, Var("x"), Sum(1.0, Op("Erf", Product(2**-0.5, Var("x")))))


def graph(body: str, signature: str = "float[2,3] x, float[2,3] z", out: str = "float[2,3] y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 25]> m ({signature}) => ({out}) {{ {body} }}'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    for node in list(model.graph):
        if node.op_type == "Constant":
            tensor = next(iter(node.attributes.values()))
            array = tensor.value if isinstance(tensor.value, ir.TensorProtocol) else ir.tensor([tensor.value])
            value = node.outputs[0]
            model.graph.remove(node)
            fresh = ir.Value(name=value.name, const_value=array, shape=array.shape, type=ir.TensorType(array.dtype))
            ir.convenience.replace_all_uses_with(value, fresh)
            model.graph.register_initializer(fresh)
    return model


def scalar(name: str, number: float) -> str:
    return f"{name} = Constant <value = float {{{number}}}> ()\n"


def only(model: ir.Model, pattern: object) -> Match:
    found = list(find(Index(model), pattern))  # type: ignore[arg-type]
    assert len(found) == 1
    return found[0]


HALF, ONE, ROOT, INVERSE = scalar("h", 0.5), scalar("o", 1.0), scalar("r", 1.41421354), scalar("i", 0.70710677)
SPELLINGS = {
    "x*.5 first": "a = Mul(x, h) b = Div(x, r) c = Erf(b) d = Add(c, o) y = Mul(a, d)",
    ".5 last": "b = Mul(i, x) c = Erf(b) d = Add(o, c) e = Mul(d, x) y = Mul(h, e)",
    ".5 in the sum's factor": "b = Mul(x, i) c = Erf(b) d = Add(o, c) e = Mul(d, h) y = Mul(x, e)",
    "divided by two": "t = Add(o, o) b = Mul(x, i) c = Erf(b) d = Add(o, c) e = Mul(d, x) y = Mul(e, h)",
}


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_a_product_matches_every_spelling(body: str) -> None:
    found = only(graph(HALF + ONE + ROOT + INVERSE + body), GELU)
    assert found["x"].name == "x"
    assert found.root.outputs[0].name == "y"
    assert {n.op_type for n in found.nodes} <= {"Mul", "Div", "Erf", "Add"}


def test_the_same_name_means_the_same_value() -> None:
    body = HALF + ONE + ROOT + "a = Mul(z, h) b = Div(x, r) c = Erf(b) d = Add(c, o) y = Mul(a, d)"
    assert not list(find(Index(graph(body)), GELU))


def test_a_wrong_constant_is_a_near_miss() -> None:
    body = HALF + ONE + scalar("r", 1.4) + "a = Mul(x, h) b = Div(x, r) c = Erf(b) d = Add(c, o) y = Mul(a, d)"
    model = graph(body)
    assert not list(find(Index(model), GELU))
    near = match(GELU, model.graph.outputs[0].producer())
    assert near is not None and "not 0.70710678" in near.why[0] and len(near.why) == 1


@pytest.mark.parametrize(
    ("body", "out", "reason"),
    [
        ("a = Sigmoid(x) b = Mul(x, a) y = Add(a, b)", "float[2,3] y", "also read by Add"),
        ("a = Sigmoid(x) y = Mul(x, a)", "float[2,3] y, float[2,3] a", "is an output of the model"),
    ],
)
def test_an_inner_value_with_another_reader_is_a_near_miss(body: str, out: str, reason: str) -> None:
    model = graph(body, out=out)
    pattern = Op("Mul", Var("x"), Op("Sigmoid", Var("x")))
    assert not list(find(Index(model), pattern))
    node = next(n for n in model.graph if n.op_type == "Mul")
    near = match(pattern, node)
    assert near is not None and reason in near.why[0]


def test_commutative_operands_and_captured_numbers() -> None:
    body = scalar("a", 1.5) + "p = Mul(a, x) s = Sigmoid(p) y = Mul(s, x)"
    found = only(graph(body), Op("Mul", Var("x"), Op("Sigmoid", Product("alpha", Var("x")))))
    assert found.numbers["alpha"] == 1.5
    body = "s = Sigmoid(x) y = Mul(s, x)"
    found = only(graph(body), Op("Mul", Var("x"), Op("Sigmoid", Product("alpha", Var("x")))))
    assert found.numbers["alpha"] == 1.0


def test_powers_and_nested_products_are_repeated_terms() -> None:
    cube = Product(0.5, Var("x"), Var("x"), Var("x"))
    for body in ("t = Pow(x, three) y = Mul(t, h)", "a = Mul(x, x) b = Mul(h, a) y = Mul(x, b)"):
        assert only(graph(HALF + scalar("three", 3.0) + body), cube)["x"].name == "x"


def test_a_constant_that_raises_the_rank_is_not_taken_out() -> None:
    body = "c = Constant <value = float[1,1,1] {0.5}> () y = Mul(x, c)"
    assert not list(find(Index(graph(body, out="float[1,2,3] y")), Product(0.5, Op("Relu", Var("x")))))
    body = "c = Constant <value = float[1,1,1] {0.5}> () r = Relu(x) y = Mul(r, c)"
    assert not list(find(Index(graph(body, out="float[1,2,3] y")), Product(0.5, Op("Relu", Var("x")))))
    body = "c = Constant <value = float[1,1] {0.5}> () r = Relu(x) y = Mul(r, c)"
    assert only(graph(body), Product(0.5, Op("Relu", Var("x"))))


def test_optional_inputs_attributes_and_alternatives() -> None:
    model = graph(scalar("lo", 0.0) + scalar("hi", 6.0) + "y = Clip(x, lo, hi)")
    assert only(model, Op("Clip", Var("x"), Const(0.0), Const(name="top"))).numbers == {"top": 6.0}
    assert not list(find(Index(model), Op("Clip", Var("x"))))
    assert only(model, Op("Clip", Var("x"), ...))
    assert only(model, OneOf(Op("Relu", Var("x")), Op("Clip", Var("x"), ...)))
    model = graph("y = Softmax <axis = 1> (x)")
    assert only(model, Op("Softmax", Var("x"), axis=1))
    assert not list(find(Index(model), Op("Softmax", Var("x"), axis=0)))

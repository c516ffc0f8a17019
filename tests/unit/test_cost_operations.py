"""FLOPs of every operator: rows against the standard's own function bodies, and hand counts."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgec.compiler import shapes
from edgec.compiler.cost import arithmetic
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.products import MACS
from edgec.compiler.cost.records import Analysis
from edgec.compiler.targets import OPSET

FLOAT, INT, BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
Port = tuple[int, list[int]]


def standard() -> dict[str, onnx.defs.OpSchema]:
    """Every operator of onnx at the pinned opset, with its latest definition up to there."""
    found: dict[str, onnx.defs.OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain or schema.since_version <= OPSET:
            name = f"{schema.domain}::{schema.name}" if schema.domain else schema.name
            if name not in found or schema.since_version > found[name].since_version:
                found[name] = schema
    return found


def test_every_standard_operator_has_a_row_and_no_row_is_of_an_unknown_one() -> None:
    assert set(arithmetic.ROWS) == set(standard())
    assert set(MACS) < set(arithmetic.ROWS)
    assert all(row.says for row in arithmetic.ROWS.values())


def node_model(node: onnx.NodeProto, ports: list[Port], functions: list[onnx.FunctionProto] | None = None) -> ir.Model:
    given = [helper.make_tensor_value_info(f"i{k}", *port) for k, port in enumerate(ports)]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in node.output]
    for output in outputs:
        output.ClearField("type")
    graph = helper.make_graph([node], "g", given, outputs)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 5), helper.make_opsetid("test", 1)]
    proto = helper.make_model(graph, functions=functions or [], opset_imports=imports, ir_version=10)
    model = ir.from_proto(proto)
    shapes.infer(model)
    return model


def costs(found: Analysis) -> tuple[object, ...]:
    t = found.totals
    return t.macs, t.flops, t.special, t.int_ops


X: Port = (FLOAT, [2, 3, 4])
CHANNEL: Port = (FLOAT, [4])
# Operator, inputs, attributes. Left out are the few that the standard's body computes otherwise than anybody would:
# LessOrEqual and GreaterOrEqual (three operations for one predicate), Attention (adds a mask of zeros where there is
# none), AffineGrid (builds its grid of ones and sums).
WRITTEN_OUT: list[tuple[str, list[Port], dict[str, object]]] = [
    ("Celu", [X], {}),
    ("Clip", [X, (FLOAT, []), (FLOAT, [])], {}),
    ("DynamicQuantizeLinear", [X], {}),
    ("Elu", [X], {}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("GroupNormalization", [(FLOAT, [2, 4, 5]), CHANNEL, CHANNEL], {"num_groups": 2}),
    ("HardSigmoid", [X], {}),
    ("HardSwish", [X], {}),
    ("LayerNormalization", [X, CHANNEL, CHANNEL], {}),
    ("LayerNormalization", [X, CHANNEL], {}),
    ("LayerNormalization", [X, (FLOAT, [3, 4])], {"axis": 1}),
    ("LeakyRelu", [X], {}),
    ("LogSoftmax", [X], {}),
    ("LogSoftmax", [X], {"axis": 1}),
    ("MeanVarianceNormalization", [(FLOAT, [2, 3, 4, 5])], {"axes": [0, 2, 3]}),
    ("Mish", [X], {}),
    ("NegativeLogLikelihoodLoss", [(FLOAT, [5, 7]), (INT, [5])], {}),
    ("NegativeLogLikelihoodLoss", [(FLOAT, [5, 7]), (INT, [5])], {"reduction": "sum"}),
    ("NegativeLogLikelihoodLoss", [(FLOAT, [5, 7]), (INT, [5])], {"reduction": "none"}),
    ("NegativeLogLikelihoodLoss", [(FLOAT, [5, 7]), (INT, [5]), (FLOAT, [7])], {}),
    ("PRelu", [X, CHANNEL], {}),
    ("RMSNormalization", [X, CHANNEL], {}),
    ("ReduceL1", [X], {}),
    ("ReduceL2", [X], {}),
    ("ReduceLogSum", [X], {}),
    ("ReduceLogSumExp", [X], {}),
    ("ReduceSumSquare", [X], {}),
    ("Relu", [X], {}),
    ("RotaryEmbedding", [(FLOAT, [2, 3, 4, 8]), (FLOAT, [2, 4, 4]), (FLOAT, [2, 4, 4])], {}),
    (
        "RotaryEmbedding",
        [(FLOAT, [2, 3, 4, 8]), (FLOAT, [2, 4, 2]), (FLOAT, [2, 4, 2])],
        {"rotary_embedding_dim": 4},
    ),
    ("Selu", [X], {}),
    ("Shrink", [X], {}),
    ("Softmax", [X], {}),
    ("Softmax", [X], {"axis": 1}),
    ("SoftmaxCrossEntropyLoss", [(FLOAT, [5, 7]), (INT, [5])], {}),
    ("Softplus", [X], {}),
    ("Softsign", [X], {}),
    ("Swish", [X], {"alpha": 2.0}),
    ("ThresholdedRelu", [X], {}),
]


@pytest.mark.parametrize(("op", "ports", "attributes"), WRITTEN_OUT)
def test_a_composite_operator_costs_what_its_definition_costs(
    op: str, ports: list[Port], attributes: dict[str, object]
) -> None:
    schema = onnx.defs.get_schema(op, OPSET, "")
    inputs, outputs = [f"i{k}" for k in range(len(ports))], ["o0", "o1", "o2"][: 3 if op.startswith("Dynamic") else 1]
    node = helper.make_node(op, inputs, outputs, **attributes)
    body = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        types = [helper.make_tensor_type_proto(*port).SerializeToString() for port in ports]
        body.ParseFromString(schema.get_context_dependent_function(node.SerializeToString(), types))
    else:
        body.CopyFrom(schema.function_body)
    body.domain, body.name = "test", "Body"
    del body.output[len(outputs) :]
    for opset in body.opset_import:
        opset.version = OPSET
    given = {
        name: onnx.helper.get_attribute_value(a.default_value)
        for name, a in schema.attributes.items()
        if a.default_value.type
    }
    call = helper.make_node("Body", inputs, outputs, domain="test", **{**given, **attributes})
    fused, written_out = analyze(node_model(node, ports)), analyze(node_model(call, ports, [body]))
    assert not fused.unknown
    assert not written_out.unknown
    assert len(written_out.layers) > 1
    assert costs(fused) == costs(written_out)


# Hand counts: (operator, inputs, attributes) → MACs, FLOPs, transcendental functions, integer operations.
COUNTED: list[tuple[str, list[Port], dict[str, object], tuple[int, int, int, int]]] = [
    ("Add", [X, CHANNEL], {}, (0, 24, 0, 0)),
    ("Add", [(INT, [2, 3]), (INT, [3])], {}, (0, 0, 0, 6)),
    ("And", [(TensorProto.BOOL, [5]), (TensorProto.BOOL, [5])], {}, (0, 0, 0, 5)),
    ("AveragePool", [(FLOAT, [1, 2, 4, 4])], {"kernel_shape": [2, 2], "strides": [2, 2]}, (0, 8 * 4, 0, 0)),
    ("BatchNormalization", [(FLOAT, [1, 4, 5]), *[CHANNEL] * 4], {}, (0, 4 * 20 + 8, 0, 0)),
    ("Conv", [(FLOAT, [1, 2, 5, 5]), (FLOAT, [3, 2, 3, 3])], {}, (27 * 18, 2 * 27 * 18, 0, 0)),
    (
        "Conv",
        [(FLOAT, [1, 2, 5, 5]), (FLOAT, [3, 2, 3, 3]), (FLOAT, [3])],
        {},
        (27 * 18, 2 * 27 * 18 + 27, 0, 0),
    ),
    ("ConvInteger", [(BYTE, [1, 2, 5, 5]), (BYTE, [3, 2, 3, 3])], {}, (27 * 18, 0, 0, 2 * 27 * 18)),
    ("ConvInteger", [(BYTE, [1, 2, 5, 5]), (BYTE, [3, 2, 3, 3]), (BYTE, [])], {}, (486, 0, 0, 2 * 486 + 50)),
    # A 3×3 determinant: 2 divisions, 4 products and 4 differences; 1 division, 1 and 1; 2 products.
    ("Det", [(FLOAT, [5, 3, 3])], {}, (0, 5 * (10 + 3 + 2), 0, 0)),
    ("DequantizeLinear", [(BYTE, [2, 3]), (FLOAT, []), (BYTE, [])], {}, (0, 6, 0, 6)),
    ("Einsum", [(FLOAT, [3, 4])], {"equation": "ij->i"}, (0, 9, 0, 0)),
    ("Gemm", [(FLOAT, [4, 5]), (FLOAT, [5, 6])], {}, (120, 240, 0, 0)),
    ("Gemm", [(FLOAT, [4, 5]), (FLOAT, [5, 6]), (FLOAT, [6])], {}, (120, 264, 0, 0)),
    ("Gemm", [(FLOAT, [4, 5]), (FLOAT, [5, 6]), (FLOAT, [6])], {"alpha": 0.5, "beta": 2.0}, (120, 264 + 24 + 6, 0, 0)),
    ("GlobalAveragePool", [(FLOAT, [1, 3, 5, 5])], {}, (0, 75, 0, 0)),
    ("GridSample", [(FLOAT, [1, 2, 4, 4]), (FLOAT, [1, 3, 3, 2])], {}, (0, 4 * 18 + 18 * 7, 0, 0)),
    ("Less", [X, X], {}, (0, 24, 0, 0)),
    ("LRN", [(FLOAT, [1, 5, 2, 2])], {"size": 3}, (0, 20 * 6, 20, 0)),
    ("MatMul", [(FLOAT, [4, 5]), (FLOAT, [5, 6])], {}, (120, 240, 0, 0)),
    ("MatMul", [(INT, [4, 5]), (INT, [5, 6])], {}, (120, 0, 0, 240)),
    ("Max", [X, X, X], {}, (0, 48, 0, 0)),
    ("MaxPool", [(FLOAT, [1, 2, 4, 4])], {"kernel_shape": [3, 3]}, (0, 8 * 8, 0, 0)),
    ("Mean", [X, X], {}, (0, 48, 0, 0)),
    ("Pow", [X, (FLOAT, [])], {}, (0, 0, 24, 0)),
    ("QuantizeLinear", [X, (FLOAT, []), (BYTE, [])], {}, (0, 48, 0, 24)),
    ("ReduceMean", [X], {"keepdims": 0}, (0, 24, 0, 0)),
    ("ReduceMax", [X], {}, (0, 23, 0, 0)),
    ("Sigmoid", [X], {}, (0, 72, 24, 0)),
    ("Transpose", [X], {}, (0, 0, 0, 0)),
    # One gate: 2 biases and tanh for each of 7 steps, 2 samples, 3 units.
    (
        "RNN",
        [(FLOAT, [7, 2, 5]), (FLOAT, [1, 3, 5]), (FLOAT, [1, 3, 3]), (FLOAT, [1, 6])],
        {"hidden_size": 3},
        (7 * 2 * 24, 2 * 7 * 2 * 24 + 42 * 2, 42, 0),
    ),
    # Four gates: 8 for biases, 3 sigmoids of 3 + 1, 2 tanh, c = f·c + i·g and h = o·tanh(c).
    (
        "LSTM",
        [(FLOAT, [7, 2, 5]), (FLOAT, [1, 12, 5]), (FLOAT, [1, 12, 3]), (FLOAT, [1, 24])],
        {"hidden_size": 3},
        (7 * 2 * 12 * 8, 2 * 7 * 2 * 12 * 8 + 42 * (8 + 9 + 4), 42 * 5, 0),
    ),
    (
        "GRU",
        [(FLOAT, [7, 2, 5]), (FLOAT, [2, 9, 5]), (FLOAT, [2, 9, 3])],
        {"hidden_size": 3, "direction": "bidirectional"},
        (7 * 2 * 2 * 9 * 8, 2 * 7 * 2 * 2 * 9 * 8 + 84 * (6 + 5), 84 * 3, 0),
    ),
    # Forward with tanh, backward with Relu, which is one operation and no transcendental function.
    (
        "RNN",
        [(FLOAT, [7, 2, 5]), (FLOAT, [2, 3, 5]), (FLOAT, [2, 3, 3])],
        {"hidden_size": 3, "direction": "bidirectional", "activations": ["Tanh", "Relu"]},
        (7 * 2 * 48, 2 * 7 * 2 * 48 + 42, 42, 0),
    ),
    (
        "QLinearMatMul",
        [
            *[(BYTE, [4, 5]), (FLOAT, []), (BYTE, [])],
            *[(BYTE, [5, 6]), (FLOAT, []), (BYTE, [])],
            (FLOAT, []),
            (BYTE, []),
        ],
        {},
        (120, 48, 0, 240 + 20 + 30 + 24),
    ),
    (
        "QLinearConv",
        [
            *[(BYTE, [1, 2, 5, 5]), (FLOAT, []), (BYTE, [])],
            *[(BYTE, [3, 2, 3, 3]), (FLOAT, []), (BYTE, [])],
            *[(FLOAT, []), (BYTE, []), (TensorProto.INT32, [3])],
        ],
        {},
        (486, 54, 0, 2 * 486 + 50 + 54 + 27 + 27),
    ),
    # 2 heads, 3 queries, 5 keys of 4, values of 6: scaling, products, softmax; then a mask and a softcap as well.
    (
        "Attention",
        [(FLOAT, [1, 2, 3, 4]), (FLOAT, [1, 2, 5, 4]), (FLOAT, [1, 2, 5, 6])],
        {},
        (300, 600 + 2 * 4 * 8 + 4 * 30 - 2 * 6, 30, 0),
    ),
    (
        "Attention",
        [(FLOAT, [1, 2, 3, 4]), (FLOAT, [1, 2, 5, 4]), (FLOAT, [1, 2, 5, 6]), (FLOAT, [3, 5])],
        {"softcap": 5.0},
        (300, 600 + 64 + (4 + 1 + 2) * 30 - 12, 60, 0),
    ),
]


@pytest.mark.parametrize(("op", "ports", "attributes", "expected"), COUNTED)
def test_hand_counts(
    op: str, ports: list[Port], attributes: dict[str, object], expected: tuple[int, int, int, int]
) -> None:
    node = helper.make_node(op, [f"i{k}" for k in range(len(ports))], ["y"], **attributes)
    found = analyze(node_model(node, ports))
    assert costs(found) == expected
    assert found.unknown == []


def with_constants(node: onnx.NodeProto, ports: list[Port], constants: dict[str, np.ndarray]) -> ir.Model:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(f"i{k}", *port) for k, port in enumerate(ports)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    graph.output[0].ClearField("type")
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10))
    shapes.infer(model)
    return model


@pytest.mark.parametrize(
    ("mode", "sizes", "each"),
    [
        ("nearest", [1, 2, 8, 8], 0),
        ("linear", [1, 2, 8, 8], 7),
        ("linear", [1, 2, 8, 4], 3),
        ("cubic", [1, 2, 8, 8], 31),
    ],
)
def test_resizing_weighs_the_neighbours_along_the_axes_that_change(mode: str, sizes: list[int], each: int) -> None:
    node = helper.make_node("Resize", ["i0", "", "", "s"], ["y"], mode=mode)
    found = analyze(with_constants(node, [(FLOAT, [1, 2, 4, 4])], {"s": np.array(sizes)}))
    assert costs(found) == (0, each * int(np.prod(sizes)), 0, 0)


def test_transforms_are_fast_ones() -> None:
    node = helper.make_node("DFT", ["i0", "n", "axis"], ["y"])
    found = analyze(with_constants(node, [(FLOAT, [3, 60, 1])], {"n": np.array(64), "axis": np.array(1)}))
    assert costs(found) == (0, 3 * 5 * 64 * 6, 0, 0)
    node = helper.make_node("STFT", ["i0", "step", "w"], ["y"])
    constants = {"step": np.array(8), "w": np.ones(16, np.float32)}
    found = analyze(with_constants(node, [(FLOAT, [2, 40, 1])], constants))
    assert costs(found) == (0, 2 * 4 * (5 * 16 * 4 + 16), 0, 0)


def test_a_constant_exponent_is_written_out() -> None:
    for exponent, expected in ((2.0, (0, 6, 0, 0)), (3.0, (0, 12, 0, 0)), (-0.5, (0, 12, 0, 0)), (2.5, (0, 0, 6, 0))):
        graph = helper.make_graph(
            [helper.make_node("Pow", ["x", "e"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", FLOAT, [2, 3])],
            [helper.make_tensor_value_info("y", FLOAT, [2, 3])],
            [helper.make_tensor("e", FLOAT, [], [exponent])],
        )
        model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))
        assert costs(analyze(model)) == expected


@pytest.mark.parametrize("op", ["RandomNormalLike", "Unique"])
def test_what_depends_on_more_than_sizes_is_listed_and_counts_nothing(op: str) -> None:
    found = analyze(node_model(helper.make_node(op, ["i0"], ["y"], name="it"), [(FLOAT, [6])]))
    assert costs(found) == (0, 0, 0, 0)
    assert len(found.unknown) == 1
    assert found.unknown[0].startswith(f"it ({op}): ")
    assert found.layers[0].unknown


def test_an_operator_of_an_unknown_domain_is_listed() -> None:
    foreign = ir.node("Mystery", [ir.Value(name="x")], domain="com.example", name="it")
    graph = ir.Graph(foreign.inputs, foreign.outputs, nodes=[foreign], opset_imports={"": OPSET})
    found = analyze(ir.Model(graph, ir_version=10))
    assert found.unknown == ["it (com.example::Mystery): the operator is not known"]
    assert costs(found) == (0, 0, 0, 0)


@pytest.mark.parametrize("decided", [False, True])
def test_an_unknown_operator_in_the_cheaper_branch_is_listed_unless_it_never_runs(decided: bool) -> None:
    def branch(node: ir.Node) -> ir.Graph:
        return ir.Graph([], node.outputs, nodes=[node], opset_imports={"": OPSET})

    x = ir.Value(name="x", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    c = ir.Value(name="c", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    outs = [ir.Value(name=n, shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT)) for n in ("p", "q", "y")]
    known = branch(ir.node("Exp", [x], outputs=outs[:1], name="known"))
    foreign = branch(ir.node("Mystery", [x], domain="com.example", outputs=outs[1:2], name="it"))
    if decided:
        c.const_value = ir.tensor(np.bool_(True), name="c")
    attributes = {"then_branch": known, "else_branch": foreign}
    choose = ir.node("If", [c], attributes, outputs=outs[2:], name="if")
    inputs, initializers = ([x], [c]) if decided else ([x, c], [])
    graph = ir.Graph(inputs, outs[2:], nodes=[choose], initializers=initializers, opset_imports={"": OPSET})
    found = analyze(ir.Model(graph, ir_version=10))
    assert [u.startswith("it (com.example::Mystery)") for u in found.unknown] == ([] if decided else [True])

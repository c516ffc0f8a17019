"""Writes operators that the target has not in ones that it has: still ONNX, so onnxruntime still runs and checks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from ..compiler import core_ops, graph, shapes
from ..compiler.passbase import Context, Pass
from ..compiler.targets import OPSET
from .expansions import Body, expand
from .recurrent_biases import sum_biases

_DOMAIN = "edgec.body"
_ROUNDS = 4
"""A body may use operators that have bodies themselves."""


@dataclass(frozen=True)
class Legalize(Pass):
    """Replace operators that the target's core set lacks by the body that the standard gives for them.

    before:  y = AffineGrid(theta, size)                                              (target without AffineGrid)
    after:   y = Reshape(MatMul(…), …)                                                (the standard's function body)

    For Core ML the two biases of an LSTM or RNN become one.

    Operators without a body are left for the backend to refuse, with all others that it can't express.

    Options:
        opset: ONNX targets: the opset whose operators may stay.
    """

    name: ClassVar[str] = "legalize"
    unpacks: ClassVar[bool] = True
    opset: int | None = None

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Inline bodies until nothing more can be. Sub-graphs included."""
        lacks = core_ops.lacking(ctx.target, self.opset)
        if lacks is None:
            return 0
        count, masks = 0, {}  # type: int, dict[tuple[object, ...], ir.Value]
        if ctx.target.backend == "coreml":
            count += sum(sum_biases(node, ctx.scratch) for node in graph.nodes(model) if node.domain == "")
        for _ in range(_ROUNDS):
            found = [n for n in graph.nodes(model) if n.domain == "" and lacks(n)]
            own = [expand(Body(node, masks, ctx.scratch)) for node in found]
            done = sum(own) + sum(_expand(model, n, ctx) for n, gone in zip(found, own, strict=True) if not gone)
            if not done:
                break
            count += done
            InlinePass(criteria=lambda f: f.domain == _DOMAIN)(model)
            model.opset_imports.pop(_DOMAIN, None)
            _lift_constants(model)
            shapes.infer(model)
        return count


def _expand(model: ir.Model, node: ir.Node, ctx: Context) -> bool:
    """Turn the node into a call of a local function that holds its body."""
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False  # The inliner has no bodies that take graphs.
    if not onnx.defs.has(node.op_type, OPSET, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    _write_defaults(node, schema)
    proto = _body(node, schema)
    if proto is None:
        return False
    if not _same_meaning(proto):
        ctx.note(f"{node.op_type} '{node.name}': the standard's body is written for an opset that means something else")
        return False
    proto.domain, proto.name = _DOMAIN, f"{node.op_type}_{len(model.functions)}_{id(node)}"
    for used in proto.opset_import:
        used.version = OPSET if used.domain == "" else used.version
    if not _trim(proto, node):
        return False
    function: Any = ir.from_proto(proto)
    model.functions[function.identifier()] = function
    model.opset_imports[_DOMAIN] = 1
    node.domain, node.op_type = _DOMAIN, proto.name
    return True


def _trim(body: onnx.FunctionProto, node: ir.Node) -> bool:
    """Drop outputs at the end that the body doesn't compute because the node doesn't ask for them."""
    made = {name for n in body.node for name in n.output} | set(body.input)
    wanted = [o for o in node.outputs if o.uses() or o.is_graph_output()]
    while body.output and body.output[-1] not in made:
        body.output.pop()
    if any(name not in made for name in body.output) or any(o not in node.outputs[: len(body.output)] for o in wanted):
        return False
    node.resize_outputs(len(body.output))
    return True


def _write_defaults(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """A body reads attributes by name: the defaults must be there."""
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)


def _body(node: ir.Node, schema: Any) -> onnx.FunctionProto | None:
    body = b""
    if schema.has_function:
        version = max(v for v in schema.function_opset_versions if v <= OPSET)
        body = schema.get_function_with_opset_version(version)
    elif schema.has_context_dependent_function and all(v is None or v.type is not None for v in node.inputs):
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= OPSET]
        types = [onnx.TypeProto() if v is None else _type(v) for v in node.inputs]
        body = schema.get_context_dependent_function_with_opset_version(
            max(versions), ir.to_proto(node).SerializeToString(), [t.SerializeToString() for t in types]
        )
    if not body:
        return None
    proto = onnx.FunctionProto()
    proto.ParseFromString(body)
    return proto


def _type(value: ir.Value) -> onnx.TypeProto:
    proto: onnx.TypeProto = ir.to_proto(value).type
    return proto


def _same_meaning(body: onnx.FunctionProto) -> bool:
    """Whether every operator of the body takes the same inputs and attributes at the body's opset and at ours."""
    versions = {o.domain: o.version for o in body.opset_import}
    for node in body.node:
        if node.domain:
            return False
        old, new = (onnx.defs.get_schema(node.op_type, v, "") for v in (versions.get("", OPSET), OPSET))
        if [i.name for i in old.inputs] != [i.name for i in new.inputs] or set(old.attributes) - set(new.attributes):
            return False
    return True


def _lift_constants(model: ir.Model) -> None:
    """Bodies hold Constant nodes; the IR has initializers."""
    for node in graph.nodes(model, "Constant"):
        value = node.attributes.get("value")
        out = node.outputs[0]
        assert node.graph is not None
        if value is not None and value.value is not None:
            array = value.value.numpy()
        else:
            name, found = next((k, a.value) for k, a in node.attributes.items() if a.value is not None)
            array = ir.tensor(found, dtype=ir.DataType.FLOAT if "float" in name else ir.DataType.INT64).numpy()
        owner = node.graph
        assert isinstance(owner, ir.Graph)
        graph.replace_value(out, graph.initializer(owner, array, out.name or "constant"))
        graph.remove([node])

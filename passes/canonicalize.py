"""Brings a model to one spelling, so that the passes after it have one case to look at instead of five."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ..compiler import graph
from ..compiler.passbase import Context, Pass


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Constants as initializers of the main graph, constant branches and foreign functions inlined, defaults spelt out.

    before:  c = Constant<value_ints=[-1]>(); y = Unsqueeze(x, c); z = Softmax(y); u = Transpose(z)
    after:   y = Unsqueeze(x, axes=[2]);      z = Softmax<axis=2>(y);              u = Transpose<perm=[2,1,0]>(z)

    Axes are made positive where the rank is known, `Sum` of two is `Add`, `CastLike` is `Cast`, every value has a name
    of its own, and the domain `ai.onnx` has its usual name.
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, model: ir.Model, ctx: Context) -> int:
        count = _inline_functions(model) + _alias_domains(model)
        count += int(bool(common.NameFixPass()(model).modified))
        count += _lift_initializers(model) + _lift_constants(model)
        count += inline_constant_branches(model)
        forms = _Forms(model.graph)
        count += sum(forms.rewrite(node) for node in graph.nodes(model))
        return count + _drop_unused_imports(model)


def _inline_functions(model: ir.Model) -> int:
    foreign = {key for key, f in model.functions.items() if f.domain != "edgec"}
    if not foreign:
        return 0
    common.InlinePass(lambda f: f.domain != "edgec")(model)
    for key in foreign:
        model.functions.pop(key, None)
    return len(foreign)


def _alias_domains(model: ir.Model) -> int:
    count = 0
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""
            count += 1
    if "ai.onnx" in model.opset_imports:
        version = model.opset_imports.pop("ai.onnx")
        model.opset_imports.setdefault("", version)
        count += 1
    return count


def _drop_unused_imports(model: ir.Model) -> int:
    used = {"", *(n.domain for n in model.graph.all_nodes()), *(f.domain for f in model.functions.values())}
    unused = [domain for domain in model.opset_imports if domain not in used]
    for domain in unused:
        del model.opset_imports[domain]
    return len(unused)


def _lift_initializers(model: ir.Model) -> int:
    """Initializers of sub-graphs go to the main graph, unless they are an output of theirs."""
    count = 0
    for sub in model.graph.subgraphs():
        for value in list(sub.initializers.values()):
            if not value.is_graph_output() and not value.is_graph_input():
                _move_initializer(value, sub, model.graph)
                count += 1
    return count


def _move_initializer(value: ir.Value, source: ir.Graph, target: ir.Graph) -> None:
    assert value.name is not None
    source.initializers.pop(value.name)
    if value.name in target.initializers:
        value.name = graph.fresh_name(target, value.name)
    target.register_initializer(value)


_FORMS: dict[str, Callable[[ir.Attr], ir.TensorProtocol]] = {
    "value": lambda a: a.value,  # as_tensor() would check a protocol, which is slow for thousands
    "value_float": lambda a: ir.tensor(np.array(a.as_float(), np.float32)),
    "value_floats": lambda a: ir.tensor(np.array(a.as_floats(), np.float32)),
    "value_int": lambda a: ir.tensor(np.array(a.as_int(), np.int64)),
    "value_ints": lambda a: ir.tensor(np.array(a.as_ints(), np.int64)),
    "value_string": lambda a: ir.StringTensor(np.array(a.as_string().encode(), object)),
    "value_strings": lambda a: ir.StringTensor(np.array([s.encode() for s in a.as_strings()], object)),
}


def _lift_constants(model: ir.Model) -> int:
    """A constant that is an output of its graph stays; its other users get an initializer all the same."""
    count = 0
    for node in graph.nodes(model, "Constant"):
        (form,) = node.attributes or (None,)
        out = node.outputs[0]
        if form not in _FORMS or not (out.uses() or not out.is_graph_output()):
            continue
        tensor = _FORMS[form](node.attributes[form])
        name = out.name or "constant"
        if out.is_graph_output() or name in model.graph.initializers:
            name = graph.fresh_name(model.graph, name)
        else:
            out.name = None
        tensor.name = name
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=ir.Shape(tensor.numpy().shape), type=kind, const_value=tensor)
        model.graph.register_initializer(value)
        for user, index in out.uses():
            user.replace_input_with(index, value)
        graph.remove([node])
        count += 1
    return count


def inline_constant_branches(model: ir.Model) -> int:
    """`If` on a constant becomes the branch that is taken; branches inside it are looked at in turn."""
    count = 0
    stack = list(graph.nodes(model, "If"))
    while stack:
        node = stack.pop()
        condition = graph.const(node.inputs[0])
        if node.graph is None or condition is None or condition.size != 1:
            continue
        branch = node.attributes["then_branch" if condition.reshape(()) else "else_branch"].as_graph()
        stack += [n for n in branch if n.op_type == "If" and n.domain == ""]
        inline_branch(model, node, branch)
        count += 1
    return count


def inline_branch(model: ir.Model, node: ir.Node, branch: ir.Graph) -> None:
    """Put the nodes of `branch`, a graph of `node`, in the place of `node`. Its values get names free in the model."""
    outer = node.graph
    assert isinstance(outer, ir.Graph)
    results = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        _move_initializer(value, branch, model.graph)
    inner = list(branch)
    branch.remove(inner)
    for n in inner:
        for out in n.outputs:
            out.name = graph.fresh_name(model.graph, out.name or "value")
        n.name = n.outputs[0].name if n.outputs else n.name
    outer.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        if not graph.can_replace(old, new):
            new = graph.insert_before(node, "Identity", [new], like=old).outputs[0]
        graph.replace_value(old, new)
    graph.remove([node])


_AXIS = {
    "ArgMax": 0, "ArgMin": 0, "Concat": None, "Flatten": 1, "Gather": 0, "GatherElements": 0, "Hardmax": -1,
    "LayerNormalization": -1, "LogSoftmax": -1, "RMSNormalization": -1, "ScatterElements": 0, "Softmax": -1, "Split": 0,
    "TopK": -1,
}  # fmt: skip
"""Operators with an attribute `axis` that counts from the rank of the first input, and its default."""

_AXES = {
    "Pad": 3, "ReduceL1": 1, "ReduceL2": 1, "ReduceLogSum": 1, "ReduceLogSumExp": 1, "ReduceMax": 1, "ReduceMean": 1,
    "ReduceMin": 1, "ReduceProd": 1, "ReduceSum": 1, "ReduceSumSquare": 1, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1,
}  # fmt: skip
"""Operators with an input `axes`, and where it is."""


class _Forms:
    """Rewrites single nodes to their usual form. Constant axes are made once for all nodes that want the same."""

    def __init__(self, main: ir.Graph) -> None:
        self.main = main
        self.made: dict[tuple[int, ...], ir.Value] = {}

    def rewrite(self, node: ir.Node) -> bool:
        """Whether anything was changed."""
        if node.domain:
            return False
        if node.op_type in _AXIS:
            return _explicit_axis(node, _AXIS[node.op_type])
        if node.op_type in _AXES:
            return self._explicit_axes(node, _AXES[node.op_type])
        rewrite = _OTHER.get(node.op_type)
        return rewrite is not None and rewrite(node)

    def _explicit_axes(self, node: ir.Node, index: int) -> bool:
        given = node.inputs[index] if index < len(node.inputs) else None
        rank = graph.rank(node.inputs[0])
        if node.op_type == "Unsqueeze" and rank is not None:
            rank += len(graph.ints(given) or ())
        if rank is None:
            return False
        axes = _default_axes(node, rank) if given is None else graph.ints(given)
        if axes is None:
            return False
        positive = tuple(a % rank if rank else 0 for a in axes)
        if given is not None and positive == tuple(axes):
            return False
        if positive not in self.made:
            self.made[positive] = graph.initializer(self.main, np.array(positive, np.int64), "axes")
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, self.made[positive])
        return True


def _default_axes(node: ir.Node, rank: int) -> list[int] | None:
    """What a missing `axes` means; None where that depends on what isn't known, or where missing is the best form."""
    if node.op_type == "Squeeze":
        dims = graph.static_shape(node.inputs[0])
        return None if dims is None or 1 not in dims else [i for i, d in enumerate(dims) if d == 1]
    if node.op_type == "Slice":
        starts = node.inputs[1].shape if node.inputs[1] is not None else None
        return list(range(starts[0])) if starts is not None and isinstance(starts[0], int) else None
    if node.op_type == "Pad" or graph.attr(node, "noop_with_empty_axes", 0) or rank == 0:
        return None
    return list(range(rank))


def _explicit_axis(node: ir.Node, default: int | None) -> bool:
    rank = graph.rank(node.inputs[0])
    axis = graph.attr(node, "axis", default)
    if not rank or axis is None:
        return False
    positive = axis + rank if axis < 0 else axis
    if "axis" in node.attributes and positive == axis:
        return False
    node.attributes["axis"] = ir.AttrInt64("axis", positive)
    return True


def _explicit_perm(node: ir.Node) -> bool:
    rank = graph.rank(node.inputs[0])
    if "perm" in node.attributes or rank is None:
        return False
    node.attributes["perm"] = ir.AttrInt64s("perm", list(reversed(range(rank))))
    return True


def _sum_of_two(node: ir.Node) -> bool:
    if len(node.inputs) != 2:
        return False
    node.op_type = "Add"
    return True


def _cast_like(node: ir.Node) -> bool:
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return False
    node.op_type = "Cast"
    node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))
    node.resize_inputs(1)
    return True


_OTHER: dict[str, Callable[[ir.Node], bool]] = {
    "Transpose": _explicit_perm,
    "Sum": _sum_of_two,
    "CastLike": _cast_like,
}

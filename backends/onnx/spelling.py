"""How the operators that an older opset has, too, are spelt there: axes as attributes, no attribute of later times.

A rule per operator whose form changed, from onnx's own record of all versions; everything else is read from the
schemas: an attribute that an older opset lacks goes if it holds its default, and what can't be said is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir

from ...compiler import graph as g
from ...compiler.errors import Missing
from ...compiler.targets import OPSET

Rule = Callable[[ir.Node, int], None]
"""Rewrites a node for an opset where it can; what is left unfit is found afterwards."""


def respell(model: ir.Model, opset: int) -> list[Missing]:
    """Write every node in place as `opset` has it. Returns what that opset can't express; empty when all is well."""
    missing = []
    for graph in model.graphs():
        for node in list(graph):
            if node.domain:
                continue
            since, rule = RULES.get(node.op_type, (0, None))
            if rule is not None and opset < since:
                rule(node, opset)
            _drop_defaults(node, opset)
            missing += [Missing(node.name or "", node.op_type, why) for why in unfit(node, opset)]
    model.graph.opset_imports[""] = opset
    return missing


def unfit(node: ir.Node, opset: int) -> Iterator[str]:
    """Why `node` can't be written at `opset`."""
    if not onnx.defs.has(node.op_type, opset, ""):
        yield f"not in opset {opset}"
        return
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    if schema.deprecated:
        yield f"means something else in opset {opset}"
        return
    for name in sorted(set(node.attributes) - set(schema.attributes)):
        yield f"opset {opset} has no {name}={g.attr(node, name)}"
    for name, value, since in VALUES.get(node.op_type, ()):
        if opset < since and g.attr(node, name) == value:
            yield f"opset {opset} has no {name}={value}"
    given = len(node.inputs) - next((i for i, v in enumerate(reversed(node.inputs)) if v is not None), 0)
    if given > schema.max_input:
        yield f"opset {opset} takes {schema.max_input} inputs at most, not {given}"
    yield from _wrong_types(node, schema, opset)


def _wrong_types(node: ir.Node, schema: onnx.defs.OpSchema, opset: int) -> Iterator[str]:
    for i, value in enumerate(node.inputs):
        formal = schema.inputs[min(i, len(schema.inputs) - 1)] if schema.inputs else None
        if value is None or formal is None or not isinstance(value.type, ir.TensorType):
            continue
        if f"tensor({value.type.dtype.name.lower()})" not in formal.types:
            yield f"opset {opset} does not take {value.type.dtype.name.lower()} for its {formal.name}"


def _drop_defaults(node: ir.Node, opset: int) -> None:
    """Remove attributes that `opset` doesn't know yet where they say what it does anyway."""
    if not onnx.defs.has(node.op_type, opset, ""):
        return
    known = onnx.defs.get_schema(node.op_type, opset, "").attributes
    for name in set(node.attributes) - set(known):
        default = onnx.defs.get_schema(node.op_type, OPSET, "").attributes.get(name)
        value = g.attr(node, name)
        ones = name == "dilations" and all(d == 1 for d in value)
        if ones or (default is not None and (node.op_type, name) not in CHANGED and _is_default(value, default)):
            del node.attributes[name]


def _is_default(value: object, default: onnx.defs.OpSchema.Attribute) -> bool:
    return bool(default.default_value.type) and ir.serde.deserialize_attribute(default.default_value).value == value


def _constant(node: ir.Node, values: object, hint: str) -> ir.Value:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return g.initializer(graph, np.asarray(values, np.int64), f"{node.outputs[0].name}_{hint}")


def _reduce(node: ir.Node, opset: int) -> None:
    """The axes as an attribute."""
    axes = g.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.resize_inputs(1)
    elif axes:
        node.resize_inputs(1)
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        node.attributes.pop("noop_with_empty_axes", None)


def _pad(node: ir.Node, opset: int) -> None:
    """Pads for all axes."""
    axes = g.ints(node.inputs[3]) if len(node.inputs) > 3 else None
    pads, rank = g.ints(node.inputs[1]), g.rank(node.inputs[0])
    if axes is None or pads is None or rank is None:
        return
    whole = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        whole[axis % rank], whole[axis % rank + rank] = pads[i], pads[i + len(axes)]
    node.replace_input_with(1, _constant(node, whole, "pads"))
    node.resize_inputs(3)


def _resize(node: ir.Node, opset: int) -> None:
    """Scales or sizes for all axes."""
    axes, dims = g.attr(node, "axes"), g.shape(node.inputs[0])
    if axes is None or dims is None:
        return
    for i, whole in ((2, [1.0] * len(dims)), (3, list(dims))):
        given = g.const(node.inputs[i]) if i < len(node.inputs) else None
        if given is None or given.size == 0:
            continue
        for axis, value in zip(axes, given, strict=True):
            whole[axis] = value
        if not all(isinstance(d, int | float | np.number) for d in whole):
            return
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        array = np.array(whole, given.dtype)
        node.replace_input_with(i, g.initializer(graph, array, f"{node.outputs[0].name}_resize"))
        del node.attributes["axes"]
        return


def _split(node: ir.Node, opset: int) -> None:
    """Equal parts are what no sizes mean; the last one may be smaller only if the sizes are given."""
    count, axis = g.attr(node, "num_outputs"), g.attr(node, "axis", 0)
    dims = g.shape(node.inputs[0])
    size = dims[axis] if dims is not None else None
    if count is None or not isinstance(size, int):
        return
    if size % count:
        part = -(-size // count)
        sizes = [part] * (count - 1) + [size - part * (count - 1)]
        node.resize_inputs(2)
        node.replace_input_with(1, _constant(node, sizes, "sizes"))
    del node.attributes["num_outputs"]


def _shape(node: ir.Node, opset: int) -> None:
    """A slice of the whole shape."""
    start, end = g.attr(node, "start", 0), g.attr(node, "end")
    if start != 0 or end is not None:
        whole = g.insert_before(node, "Shape", [node.inputs[0]], hint=f"{node.outputs[0].name}_whole")
        whole.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        ends = _constant(node, [np.iinfo(np.int64).max if end is None else end], "end")
        node.op_type = "Slice"
        node.resize_inputs(3)
        for i, value in enumerate((whole.outputs[0], _constant(node, [start], "start"), ends)):
            node.replace_input_with(i, value)
    node.attributes.pop("start", None)
    node.attributes.pop("end", None)


def _reshape(node: ir.Node, opset: int) -> None:
    """Without a 0 in the shape, it doesn't matter what a 0 would mean."""
    dims = g.ints(node.inputs[1])
    if dims is not None and 0 not in dims:
        node.attributes.pop("allowzero", None)


def _dft(node: ir.Node, opset: int) -> None:
    """The axis as an attribute."""
    axis = g.ints(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else [-2]
    rank = g.rank(node.inputs[0])
    if axis is not None and rank is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis[0] % rank)
        node.resize_inputs(2)


def _grid_sample(node: ir.Node, opset: int) -> None:
    """The names for two dimensions."""
    old = {"linear": "bilinear", "cubic": "bicubic"}
    mode = g.attr(node, "mode", "linear")
    if g.rank(node.inputs[0]) == 4 and mode in old:
        node.attributes["mode"] = ir.AttrString("mode", old[mode])


def _zero_point(node: ir.Node, opset: int) -> None:
    """The type of the result is the zero point's."""
    kind, scale = g.attr(node, "output_dtype", 0), g.shape(node.inputs[1])
    if node.op_type == "DequantizeLinear":
        if node.inputs[1] is not None and node.inputs[1].dtype == kind:
            del node.attributes["output_dtype"]
        return
    if len(node.inputs) < 3 and kind and scale is not None and all(isinstance(d, int) for d in scale):
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        zeros = np.zeros([int(d) for d in scale if isinstance(d, int)], ir.DataType(kind).numpy())
        node.resize_inputs(3)
        node.replace_input_with(2, g.initializer(graph, zeros, f"{node.outputs[0].name}_zero"))
    if len(node.inputs) > 2 and node.inputs[2] is not None and kind in (0, node.inputs[2].dtype):
        node.attributes.pop("output_dtype", None)


def _roi_align(node: ir.Node, opset: int) -> None:
    """What opset 10 did has a name since 16, and is not what no name means today."""
    name = "coordinate_transformation_mode"
    mode = g.attr(node, name, "half_pixel")
    node.attributes[name] = ir.AttrString(name, mode)
    if mode == "output_half_pixel":
        del node.attributes[name]


REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
)  # fmt: skip

# Operator → the opset that has today's form, and what writes the form before it.
RULES: dict[str, tuple[int, Rule]] = {
    **dict.fromkeys(REDUCTIONS, (18, _reduce)),
    "DFT": (20, _dft),
    "DequantizeLinear": (23, _zero_point),
    "GridSample": (20, _grid_sample),
    "Pad": (18, _pad),
    "QuantizeLinear": (21, _zero_point),
    "Reshape": (14, _reshape),
    "Resize": (18, _resize),
    "RoiAlign": (16, _roi_align),
    "Shape": (15, _shape),
    "Split": (18, _split),
}

CHANGED = frozenset({("RoiAlign", "coordinate_transformation_mode")})
"""Attributes whose default is not what older opsets did."""

# Operator → values of attributes that the attribute's first opsets did not know: (attribute, value, since).
VALUES: dict[str, tuple[tuple[str, str, int], ...]] = {
    "Pad": (("mode", "wrap", 19),),
    "Resize": (("coordinate_transformation_mode", "half_pixel_symmetric", 19),),
    "ScatterElements": (("reduction", "max", 18), ("reduction", "min", 18)),
    "ScatterND": (("reduction", "max", 18), ("reduction", "min", 18)),
}

"""Loads .onnx files: weights mapped, old opsets converted, everything that can be wrong said in one message."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from ...compiler import shapes
from ...compiler.checks import unknown_operators
from ...compiler.errors import ModelError, UnsupportedOp, UsageError
from ...compiler.targets import OPSET
from ...compiler.verify import ORIGINAL
from ...compiler.weights import SMALL
from .convert import as_it_is, opset_of, to_pinned_opset
from .foreign import disguise, reveal
from .order import settle
from .wire import slim_bytes


def load(source: Path | str, *, partial: bool = False) -> ir.Model:
    """The model in that file, at the pinned opset, shapes inferred, weights mapped from disk.

    Initializers that are inputs, too (IR version 3), become constants. With `partial`, operators that nobody knows stay
    in it, what they make without a shape: such a model can be looked at, not run.

    Raises UsageError when there is no such file, ModelError when it is not a valid model, with file, node and remedy,
    UnsupportedOp with all operators that are none.
    """
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"no such file: {path}" if not path.exists() else f"{path} is not a file")
    try:
        proto = onnx.ModelProto.FromString(slim_bytes(path))
    except DecodeError as e:
        raise ModelError(f"{path}: not an ONNX file, or damaged ({e}). Is it a complete download?") from e
    except OSError as e:
        raise ModelError(f"{path}: can't be read: {e.strerror or e}") from e
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{path}: holds no ONNX graph. Is it an .onnx file?")
    if not proto.graph.output:
        raise ModelError(f"{path}: the graph has no output, so there is nothing to compute")
    _check_external(proto, path)
    given = onnx.ModelProto()
    try:
        settle(proto)
        given.CopyFrom(proto)
        disguised = disguise(proto) if partial else {}
        model = _settled(to_pinned_opset(proto, OPSET))
        shapes.infer(model)
        reveal(model, disguised)
        if opset_of(given) != OPSET:
            # What everything is measured against must not have gone through the converter.
            model.meta[ORIGINAL] = _settled(as_it_is(given))
    except ModelError as e:
        raise ModelError(f"{path}: {e}") from e
    except UnsupportedOp as e:
        raise unknown_operators(e.missing, path) from e
    model.graph.name = model.graph.name or path.stem
    return model


def _settled(model: ir.Model) -> ir.Model:
    """Initializers that are inputs become constants, free dimensions get names, big tensors lie in the main graph."""
    _drop_default_inputs(model)
    _name_dimensions(model)
    _lift_big(model)
    _inline_small(model)
    return model


def _tensors(proto: onnx.ModelProto) -> list[tuple[str, onnx.TensorProto]]:
    """All tensors with who holds them: initializers, and attributes of nodes, in sub-graphs and functions too."""
    found: list[tuple[str, onnx.TensorProto]] = []

    def visit_nodes(nodes: list[onnx.NodeProto]) -> None:
        for node in nodes:
            for a in node.attribute:
                who = f"attribute '{a.name}' of node '{node.name or node.op_type}'"
                found.extend((who, t) for t in [*([a.t] if a.HasField("t") else []), *a.tensors])
                for g in [*([a.g] if a.HasField("g") else []), *a.graphs]:
                    visit_graph(g)

    def visit_graph(graph: onnx.GraphProto) -> None:
        found.extend((f"initializer '{t.name}'", t) for t in graph.initializer)
        visit_nodes(list(graph.node))

    visit_graph(proto.graph)
    for function in proto.functions:
        visit_nodes(list(function.node))
    return found


def _check_external(proto: onnx.ModelProto, path: Path) -> None:
    """External data must exist, belong to the model's folder and hold as many bytes as the tensor says.

    The locations become absolute, so that from here on the tensors can be mapped from wherever the file really lies.
    """
    files: dict[str, Path] = {}
    for who, tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _external_file(location, path, who)
        size = files[location].stat().st_size
        need = _nbytes(tensor)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", need))
        except ValueError:
            raise ModelError(f"{path}: {who}: its external data entry is not a number: {entries}") from None
        if offset < 0 or min(length, size - offset) < need:
            raise ModelError(
                f"{path}: {who} needs {need:,} bytes at offset {offset:,} of '{location}', which holds {size:,} "
                "in all. The file is cut off, or the weights belong to another model."
            )
        del tensor.external_data[:]
        for key, value in (("location", files[location]), ("offset", offset), ("length", need)):
            tensor.external_data.add(key=key, value=str(value))


def _external_file(location: str, path: Path, who: str) -> Path:
    """The real file that `location` names: inside the model's folder, or beside the real model where that is a link.

    (Model hubs keep a folder of links into a store of blobs; there both the model and its weights are links.)
    """
    folder = path.absolute().parent
    if not location or Path(location).is_absolute() or "\\" in location or "\0" in location:
        raise ModelError(f"{path}: {who} points to '{location}': external data must be a relative path")
    try:
        real = (folder / location).resolve()
    except (OSError, RuntimeError) as e:  # A RuntimeError, where links go round in circles.
        raise ModelError(f"{path}: the weights file '{location}' ({who}) can't be followed: {e}") from e
    climbs = Path(os.path.normpath(location)).is_relative_to(os.pardir)
    if climbs or not (real.is_relative_to(folder.resolve()) or real.parent == path.resolve().parent):
        raise ModelError(f"{path}: {who} points outside the model's folder, to '{location}'. Refused.")
    if not real.is_file():
        raise ModelError(f"{path}: the weights file '{location}' is missing ({who}). Copy it into the model's folder.")
    return real


def _nbytes(tensor: onnx.TensorProto) -> int:
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):
        return 0
    count = 1
    for d in tensor.dims:
        if d < 0:
            raise ModelError(f"tensor '{tensor.name}' has a negative dimension {d}")
        count *= d
    return -(-count * bits // 8)


def _drop_default_inputs(model: ir.Model) -> None:
    kept = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    if len(kept) != len(model.graph.inputs):
        model.graph.inputs[:] = kept


def _name_dimensions(model: ir.Model) -> None:
    """Free dimensions of inputs get names, so that they can be told apart; -1 is not a size, ? not a name."""
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    d
                    if (isinstance(d, int) and d >= 0) or (not isinstance(d, int) and d.value not in (None, "", "?"))
                    else f"{value.name}_{i}"
                    for i, d in enumerate(value.shape)
                ]
            )


def _inline_small(model: ir.Model) -> None:
    """Small tensors are kept in memory: shape inference and onnxruntime want to see them."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= SMALL:
                value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def _lift_big(model: ir.Model) -> None:
    """Mapped tensors become initializers of the main graph: onnxruntime takes only those by reference."""
    main = model.graph
    for graph in list(model.graphs()):
        for node in list(graph):
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            tensor = held.value if held is not None else None
            if isinstance(tensor, ir.ExternalTensor):
                ir.convenience.replace_all_uses_with(
                    node.outputs[0], _add_initializer(main, tensor, node.outputs[0].name), replace_graph_outputs=True
                )
                graph.remove(node)
        if graph is not main:
            for value in list(graph.initializers.values()):
                if isinstance(value.const_value, ir.ExternalTensor):
                    del graph.initializers[value.name or ""]
                    new = _add_initializer(main, value.const_value, value.name)
                    ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)


def _add_initializer(graph: ir.Graph, tensor: ir.ExternalTensor, hint: str | None) -> ir.Value:
    name = hint or "constant"
    while name in graph.initializers:
        name += "_"
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

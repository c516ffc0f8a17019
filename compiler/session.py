"""Run an IR model in onnxruntime without copying a weight: tensors are handed over as they lie in memory or on disk."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from . import process
from .errors import ModelError
from .graph import nodes, subgraphs
from .protos import PLACE, ROUNDED, bare_proto, is_big, nowhere
from .quantization.predecoded import predecode
from .rounding import exactly

NO_KERNEL = ("Attention", "CastLike")
"""Operators that onnxruntime 1.32 has no kernel for at the pinned opset; CastLike is in the definition of Attention."""


@contextlib.contextmanager
def _externalised(model: ir.Model) -> Iterator[dict[str, ir.TensorProtocol]]:
    """While inside, big initializers of the main graph point into a file that need not exist. Yields the real ones.

    Small ones that are mapped are read, so that the protobuf holds them.
    """
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    real: dict[str, ir.TensorProtocol] = {}
    try:
        for value in model.graph.initializers.values():
            t = value.const_value
            if t is None or t.dtype == ir.DataType.STRING:
                continue
            if is_big(t):
                assert value.name is not None
                real[value.name] = t
                place: ir.TensorProtocol = ir.ExternalTensor(
                    PLACE, 0, t.nbytes, t.dtype, shape=ir.Shape(t.shape.numpy()), name=value.name
                )
            elif isinstance(t, ir.ExternalTensor):
                place = ir.Tensor(t.numpy(), dtype=t.dtype, name=value.name)
            else:
                continue
            kept.append((value, t))
            value.const_value = place
        yield real
    finally:
        for value, t in kept:
            value.const_value = t


def slim_proto(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model as a protobuf without its big weights, and these by name. All else is there, so that it can be saved.

    Weights above `weights.SMALL` bytes are external data in a file that doesn't exist: shape inference and the
    checkers never look, and a session gets them through `add_initializer`.
    """
    with _externalised(model) as real:
        return ir.to_proto(model), real


class Session:
    """An onnxruntime session for an IR model, on the CPU, with onnxruntime's own optimisations off.

    With `exact`, nothing is rounded: the model runs without its rounding pairs. `options` takes the place of the frugal
    ones that suit a single run. Of the operators in `written`, onnxruntime gets the definition; `edit` changes the
    protobuf before onnxruntime gets it: names of nodes, say. Packed weights are decoded beforehand, by the definitions
    of compiler/functions.py in numpy; with `bodies`, or with `options`, onnxruntime runs the functions in the model.
    Weights are passed by reference, so the model's tensors must outlive the session (it keeps them).
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        threads: int = 0,
        exact: bool = False,
        options: Any = None,
        written: Collection[str] = (),
        edit: Callable[[onnx.ModelProto], None] | None = None,
        bodies: bool = False,
    ) -> None:
        ort = process.onnxruntime()

        proto, tensors = _runnable(model, exact, frozenset((*NO_KERNEL, *written)))
        if options is None and not bodies:
            predecode(model, proto, tensors, PLACE)
        if edit is not None:
            edit(proto)
        options = options if options is not None else _frugal()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        self._keep: list[Any] = []
        with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
            if tensors:
                # onnxruntime insists that the file exists; a sparse one does, nothing is read from it.
                with (Path(folder) / PLACE).open("wb") as f:
                    f.truncate(max(t.nbytes for t in tensors.values()))
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            for name, tensor in tensors.items():
                value = _ort_value(tensor)
                # Without this reference onnxruntime reads freed memory and the process dies.
                self._keep.append(value)
                options.add_initializer(name, value[0])
            with _saying("onnxruntime can't run the model"):
                self._session = ort.InferenceSession(
                    proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
        self.inputs = [i.name for i in self._session.get_inputs()]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def end_profiling(self) -> Path:
        """Stop the profiler that `options` have started; the file that it wrote."""
        return Path(self._session.end_profiling())

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The named outputs (all by default) for these inputs; extra inputs are ignored. Raises ModelError."""
        names = list(outputs) if outputs is not None else self.outputs
        missing = [i for i in self.inputs if i not in feeds]
        if missing:
            raise ModelError(f"no value for input{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
        arrays = {i: np.asarray(feeds[i]) for i in self.inputs}
        with _saying("onnxruntime failed while running the model"):
            values = self._session.run(names, arrays)
        return {n: np.asarray(v) for n, v in zip(names, values, strict=True)}


class Saved(Session):
    """A session for a file, as its users run it: onnxruntime optimises it, and computes integers in integers."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        ort = process.onnxruntime()

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        with _saying(f"onnxruntime can't run {path.name}"):
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self._session.get_inputs()]
        self.outputs = [o.name for o in self._session.get_outputs()]


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    """onnxruntime's errors, which have no class in common, as a ModelError. No memory is no fault of the model."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as e:
        raise ModelError(f"{what}: {_first_line(e)}") from e


def _frugal() -> Any:
    """Options for a model that runs once: all nodes as they are, and no memory spent on later runs."""
    ort = process.onnxruntime()

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # In the order of the nodes, so that what a node alone reads is made just before it and lives shortly.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Nor may every reader of a dequantised weight get its own copy of the operator, behind all other nodes.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Most models run once: a plan of the memory for later runs is wasted, and so are threads that spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    return options


def _runnable(
    model: ir.Model, exact: bool = False, unknown_ops: Collection[str] = NO_KERNEL
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model as onnxruntime gets it, and its big weights.

    What onnxruntime has no kernel for it would write out behind all other nodes, which then run first and keep what
    they make. So that is written out here, in its place.
    """
    form = exactly(model) if exact else ROUNDED
    unknown = [n for n in nodes(model, *unknown_ops) if n.graph is model.graph]
    read = [form.stands_for.get(v, v) for n in unknown for v in n.inputs if v is not None]
    typed = {*unknown, *(v.producer() for v in read)}
    inner = typed or any(subgraphs(n) for n in model.graph)
    declared = (lambda n: n in typed or n.graph is not model.graph) if inner else nowhere
    proto, tensors = bare_proto(model, declared, form)
    if unknown:
        write_out(proto, unknown_ops)
    return proto, tensors


def write_out(proto: onnx.ModelProto, ops: Collection[str] = NO_KERNEL) -> None:
    """Replace the nodes of these operators in the main graph by their definitions.

    Each by itself: for all of a model at once, onnx's inliner takes time with the square of their number.
    """
    graph = proto.graph
    types = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    for t in graph.initializer:
        types[t.name] = onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
    before = list(graph.node)
    after: list[onnx.NodeProto] = []
    for i, node in enumerate(before):
        wanted = node.op_type in ops and not node.domain
        after.extend(_definition(node, proto, types, ops, f"edgec.inlined.{i}.") if wanted else [node])
    if len(after) > len(before):
        copies = onnx.GraphProto(node=after)
        del graph.node[:]
        graph.node.extend(copies.node)


def _definition(
    node: onnx.NodeProto,
    proto: onnx.ModelProto,
    types: Mapping[str, onnx.ValueInfoProto],
    ops: Collection[str],
    prefix: str,
) -> Sequence[onnx.NodeProto]:
    """The nodes that `node` stands for, their own values named with `prefix`; itself where onnx can't tell them."""
    alone = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    alone.graph.name = "alone"
    alone.graph.node.append(node)
    alone.graph.input.extend(types[n] for n in dict.fromkeys(node.input) if n in types)
    alone.graph.output.extend(types[n] for n in node.output if n in types)
    try:
        wanted = [("", op) for op in ops]
        written = onnx.inliner.inline_selected_functions(alone, wanted, inline_schema_functions=True)
    except RuntimeError:
        # onnx's inliner can't type an input that is left out before one that isn't; then onnxruntime does it its way.
        return [node]
    outer = {"", *node.input, *node.output}
    for inner in written.graph.node:
        for names in (inner.input, inner.output):
            names[:] = [n if n in outer else prefix + n for n in names]
        inner.name = inner.name and prefix + inner.name
    return list(written.graph.node)


def _ort_value(tensor: ir.TensorProtocol) -> tuple[Any, np.ndarray]:
    ort = process.onnxruntime()

    kind = tensor.dtype
    if kind.bitwidth < 8:
        # onnxruntime takes the shape from the array, and reads as many packed bytes as there are: the rest is unused.
        packed = np.frombuffer(tensor.tobytes(), np.uint8)
        array = np.empty(tensor.shape.numpy(), np.uint8)
        array.reshape(-1)[: packed.size] = packed
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(kind)), array
    if kind == ir.DataType.BFLOAT16 or kind.name.startswith("FLOAT8"):
        array = np.ascontiguousarray(tensor.numpy())
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(kind)), array
    array = tensor.numpy()
    if not array.flags["C_CONTIGUOUS"]:
        array = np.ascontiguousarray(array)
    return ort.OrtValue.ortvalue_from_numpy(array), array


def _first_line(error: Exception) -> str:
    text = str(error)
    _, mark, rest = text.rpartition(" : ")
    return (rest if mark and len(rest) > 20 else text).strip().split("\n")[0]

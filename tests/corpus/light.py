"""The nine classic CNNs of the `onnx` package, with random weights instead of ConstantOfShape fillers.

The package ships them without weights: each is a ConstantOfShape of the weight's shape. Here every filler becomes an
initializer drawn with the seed 0: He-normal for kernels, batch-norm statistics near (0, 1). The classifier's last
kernel is then scaled so that the logits have a standard deviation of about 2: the softmax stays far from both uniform
and one-hot, and an error anywhere in the network shows in the output.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

LOGIT_STD = 2.0

_BATCH_NORM_ROLES = ("scale", "bias", "mean", "var")


def make(name: str, out: Path) -> None:
    """Write the light model of that name ("resnet50", "vgg19", …) with random weights to `out`."""
    model = onnx.load(_source(name))
    weights = _draw(model.graph, np.random.default_rng(0))
    _replace_fillers(model.graph, weights)
    model.ir_version = max(model.ir_version, 8)
    last = _last_kernel(model.graph)
    spread = _logits(model, last.output[0]).std()
    kernel = next(i for i in model.graph.initializer if i.name == last.input[1])
    scaled = numpy_helper.to_array(kernel) * np.float32(LOGIT_STD / spread)
    kernel.CopyFrom(numpy_helper.from_array(scaled, kernel.name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)


def _source(name: str) -> Path:
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{Path(name).stem}.onnx"


def _draw(graph: onnx.GraphProto, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random array for the output of every ConstantOfShape, by what it is used as."""
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    roles = {
        name: role
        for node in graph.node
        if node.op_type == "BatchNormalization"
        for name, role in zip(node.input[1:5], _BATCH_NORM_ROLES, strict=True)
    }
    weights = {}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shape = tuple(int(d) for d in shapes[node.input[0]])
            weights[node.output[0]] = _array(shape, roles.get(node.output[0]), rng).astype(np.float32)
    return weights


def _array(shape: tuple[int, ...], role: str | None, rng: np.random.Generator) -> np.ndarray:
    if role in ("scale", "var"):
        return rng.uniform(0.5, 1.5, shape)
    if role is None and len(shape) > 1:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return rng.normal(0, 0.1, shape)


def _replace_fillers(graph: onnx.GraphProto, weights: dict[str, np.ndarray]) -> None:
    """Turn fillers into initializers, and drop shape initializers and graph inputs that nothing else reads."""
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    read = {name for node in nodes for name in node.input}
    kept = [i for i in graph.initializer if i.name in read]
    kept += [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [i for i in graph.input if i.name in read and i.name not in {k.name for k in kept}]
    for field, values in ((graph.node, nodes), (graph.initializer, kept), (graph.input, inputs)):
        del field[:]
        field.extend(values)


def _last_kernel(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(n for n in reversed(graph.node) if n.op_type in ("Gemm", "MatMul", "Conv"))


def _logits(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The value `name` for a seeded normal input, shape as the model declares."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    return np.asarray(session.run([name], feeds)[0])

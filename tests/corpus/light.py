"""The nine classic CNNs of the `onnx` package, with random weights instead of ConstantOfShape fillers.

The package ships them without weights: each is a ConstantOfShape of the weight's shape. Here every filler becomes an
initializer drawn with seed 0, and the result is calibrated on one seeded input so that the network computes something:
batch-norm statistics are those of the signal, other convolutions give zero mean and unit variance per channel, and
logits have a standard deviation of 2. Uncalibrated, DenseNet's output does not depend on its input (correlation of two
outputs: 1 - 1e-13), and no test would notice a damaged layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Array = npt.NDArray[np.float32]

LOGIT_STD = 2.0
EPSILON = 1e-5

_BATCH_NORM_ROLES = ("scale", "bias", "mean", "var")


def make(name: str, out: Path) -> None:
    """Write the light model of that name ("resnet50", "vgg19", …), calibrated, to `out`."""
    model = onnx.load(_source(name))
    _replace_fillers(model.graph, _draw(model.graph, np.random.default_rng(0)))
    model.ir_version = max(model.ir_version, 8)
    _calibrate(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)


def _source(name: str) -> Path:
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{Path(name).stem}.onnx"


def _draw(graph: onnx.GraphProto, rng: np.random.Generator) -> dict[str, Array]:
    """A random array for the output of every ConstantOfShape, by what it is used as."""
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    scales = {n.input[1] for n in graph.node if n.op_type in ("Mul", "BatchNormalization")}
    scales |= {n.input[0] for n in graph.node if n.op_type == "Unsqueeze" and n.output[0] in scales}
    weights = {}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shape = tuple(int(d) for d in shapes[node.input[0]])
            weights[node.output[0]] = _array(shape, node.output[0] in scales, rng).astype(np.float32)
    return weights


def _array(shape: tuple[int, ...], is_scale: bool, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    if is_scale:
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) > 1:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return rng.normal(0, 0.1, shape)


def _replace_fillers(graph: onnx.GraphProto, weights: dict[str, Array]) -> None:
    """Turn fillers into initializers, and drop shape initializers and graph inputs that nothing else reads."""
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    read = {name for node in nodes for name in node.input}
    kept = [i for i in graph.initializer if i.name in read]
    kept += [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [i for i in graph.input if i.name in read - {k.name for k in kept}]
    for rows, values in ((graph.node, nodes), (graph.initializer, kept), (graph.input, inputs)):
        del rows[:]
        rows.extend(values)


def _calibrate(model: onnx.ModelProto) -> None:
    """Set statistics from one run in which every normalised value goes through InstanceNormalization.

    With a batch of one that equals batch normalization by the value's own statistics, at every depth at once.
    """
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    last = next(n for n in reversed(model.graph.node) if n.op_type in ("Gemm", "Conv"))
    to_batch_norm = {n.input[0] for n in model.graph.node if n.op_type == "BatchNormalization"}
    convs = [n for n in model.graph.node if n.op_type == "Conv" and n.output[0] not in to_batch_norm and n is not last]
    values = _run(_probe(model, [n for n in convs if len(n.input) == 3]), [*to_batch_norm, last.output[0]], convs)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            mean, var = _statistics(values[node.input[0]])
            arrays[node.input[3]], arrays[node.input[4]] = mean, var
    for node in convs:
        if len(node.input) == 3:
            mean, var = _statistics(values[node.output[0]])
            std = np.sqrt(var + np.float32(EPSILON))
            arrays[node.input[1]] = arrays[node.input[1]] / std[:, None, None, None]
            arrays[node.input[2]] = (arrays[node.input[2]] - mean) / std
    kernel = _origin(model.graph, last.input[1])
    arrays[kernel] = arrays[kernel] * np.float32(LOGIT_STD / values[last.output[0]].std())
    for initializer in model.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(arrays[initializer.name], initializer.name))


def _probe(model: onnx.ModelProto, convs: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with InstanceNormalization in place of batch norms and after `convs`, whose raw output is `<x>/raw`."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    nodes = list(probe.graph.node)
    del probe.graph.node[:]
    normalised = {n.output[0] for n in convs}
    for node in nodes:
        if node.op_type == "BatchNormalization":
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), EPSILON)
            node = helper.make_node("InstanceNormalization", node.input[:3], node.output[:1], epsilon=epsilon)
        probe.graph.node.append(node)
        if node.op_type == "Conv" and node.output[0] in normalised:
            value, bias = node.output[0], node.input[2]
            channels = next(i.dims[0] for i in model.graph.initializer if i.name == bias)
            for suffix, fill in (("/one", 1), ("/zero", 0)):
                probe.graph.initializer.append(
                    numpy_helper.from_array(np.full(channels, fill, np.float32), value + suffix)
                )
            probe.graph.node[-1].output[0] = value + "/raw"
            args = [value + "/raw", value + "/one", value + "/zero"]
            probe.graph.node.append(helper.make_node("InstanceNormalization", args, [value], epsilon=EPSILON))
    return probe


def _run(probe: onnx.ModelProto, names: list[str], convs: list[onnx.NodeProto]) -> dict[str, Array]:
    """Values of `names`, and the raw outputs of `convs`, for one seeded normal input."""
    raw = [n.output[0] for n in convs if len(n.input) == 3]
    wanted = names + [name + "/raw" for name in raw]
    existing = {o.name for o in probe.graph.output}
    probe.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in wanted if n not in existing)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # the statistics that nothing reads now are reported one by one otherwise
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    return dict(zip(names + raw, session.run(wanted, feeds), strict=True))


def _statistics(value: Array) -> tuple[Array, Array]:
    return value.mean(axis=(0, 2, 3)), value.var(axis=(0, 2, 3))


def _origin(graph: onnx.GraphProto, name: str) -> str:
    """The initializer that `name` is a reshaping of."""
    producers = {o: n for n in graph.node for o in n.output}
    while name in producers:
        name = producers[name].input[0]
    return name

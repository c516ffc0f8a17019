"""What operators cost that are made of others: what their definition costs when it is written out; see docs/cost.md."""

from __future__ import annotations

from collections.abc import Callable

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, exactly, plus, times
from .products import attention_sizes
from .work import Row, Work, less, log2_ceiling, open_, per, product_of, rows, typed

# --- products --------------------------------------------------------------------------------------------------------


def _product(bias: int | None = None) -> Callable[[Op, Dim], Work]:
    """Two per MAC, and one per output element where a bias is given at that input."""

    def rule(op: Op, macs: Dim) -> Work:
        return typed(op, plus(d.mul(macs, 2), op.n_out() if bias is not None and op.has(bias) else 0))

    return rule


def _gemm(op: Op, macs: Dim) -> Work:
    scaled = op.n_out() if op.attr("alpha", 1.0) != 1.0 else 0
    added: Dim = 0
    if op.has(2):
        added = plus(op.n_out(), op.n_in(2) if op.attr("beta", 1.0) != 1.0 else 0)
    return typed(op, plus(d.mul(macs, 2), scaled, added))


def _deform_conv(op: Op, macs: Dim) -> Work:
    """Every factor is interpolated between four neighbours, for each output position and channel of the input."""
    kernel, positions = op.x(1)[2:], op.y()[2:]
    read = times(op.x()[0], op.x()[1], *kernel, *positions)
    bias = op.n_out() if op.has(3) else 0
    return typed(op, plus(d.mul(macs, 2), bias, d.mul(read, 8 if op.has(4) else 7)))


def _einsum(op: Op, macs: Dim) -> Work:
    return typed(op, d.mul(macs, 2) if len(op.inputs) > 1 else less(op.n_in(), op.n_out()))


def _integer(*zeros: int, bias: int | None = None, requantised: bool = False) -> Callable[[Op, Dim], Work]:
    """Products and sums of integers, less the zero points; where requantised, a factor and a rounding per element."""

    def rule(op: Op, macs: Dim) -> Work:
        shifted = plus(*(op.n_in(_ZERO_OF[op.node.op_type][z]) for z in zeros if op.has(z)))
        added = op.n_out() if bias is not None and op.has(bias) else 0
        y = op.n_out()
        return Work(d.mul(y, 2) if requantised else 0, 0, plus(d.mul(macs, 2), shifted, added, y if requantised else 0))

    return rule


_ZERO_OF = {
    "ConvInteger": {2: 0, 3: 1},
    "MatMulInteger": {2: 0, 3: 1},
    "QLinearConv": {2: 0, 5: 3},
    "QLinearMatMul": {2: 0, 5: 3},
}
"""Operator → the input of each zero point → the input that it is taken from."""


def _attention(op: Op, macs: Dim) -> Work:
    batch, heads, lines, keys, head, _ = attention_sizes(op)
    slices = times(batch, heads, lines)
    scores = times(slices, keys)
    scaled = times(batch, heads, head, plus(lines, keys))
    softcap = op.attr("softcap", 0.0) != 0.0
    masked = op.has(3) or op.attr("is_causal", 0) != 0 or op.has(6)
    flops = plus(d.mul(macs, 2), scaled, d.mul(scores, 4 + masked + 2 * softcap), d.mul(slices, -2))
    return Work(flops, d.mul(scores, 1 + softcap))


_ACTIVATIONS = {
    "Affine": (2, 0), "Elu": (3, 1), "HardSigmoid": (4, 0), "LeakyRelu": (2, 0), "Relu": (1, 0), "ScaledTanh": (2, 1),
    "Sigmoid": (3, 1), "Softplus": (1, 2), "Softsign": (3, 0), "Tanh": (0, 1), "ThresholdedRelu": (1, 0),
}  # fmt: skip
"""Activation of a recurrent cell → operations, transcendental functions."""


def _recurrent(gates: int, own: int, uses: tuple[int, ...], default: tuple[str, ...]) -> Callable[[Op, Dim], Work]:
    """Per step, sample and hidden unit: biases of each gate, activations (`uses` says how often each), `own` others."""

    def rule(op: Op, macs: Dim) -> Work:
        steps, batch = op.x()[:2]
        directions, _, hidden = op.x(2)
        if not isinstance(directions, int):
            raise Unknown("how many directions there are is a free dimension")
        names = op.attr("activations") or default * directions
        flops = special = 0
        for name, often in zip(names, uses * directions, strict=True):
            if name not in _ACTIVATIONS:
                raise Unknown(f"activation {name} is not one of the standard's")
            flops += often * _ACTIVATIONS[name][0]
            special += often * _ACTIVATIONS[name][1]
        each = own + 2 * gates * op.has(3) + 6 * (op.node.op_type == "LSTM" and op.has(7))
        each += 2 * sum(uses) * (op.attr("clip") is not None)
        units = times(steps, batch, hidden)
        return Work(plus(d.mul(macs, 2), d.mul(units, flops + directions * each)), d.mul(units, special))

    return rule


# --- normalisation ---------------------------------------------------------------------------------------------------


def _softmax(log: bool) -> Callable[[Op, Dim], Work]:
    def rule(op: Op, macs: Dim) -> Work:
        dims = op.x()
        x, r = d.product(dims), rows(dims, op.attr("axis", -1))
        return Work(less(d.mul(x, 4), d.mul(r, 2)), plus(x, r) if log else x)

    return rule


def _slices(op: Op) -> Dim:
    """How many slices a LayerNormalization or RMSNormalization makes alike."""
    dims = op.x()
    axis = op.attr("axis", -1)
    return d.product(dims[: axis % len(dims)])


def _layer_norm(op: Op, macs: Dim) -> Work:
    kept = len(op.outputs) > 2 and bool(op.outputs[2].uses() or op.outputs[2].is_graph_output())
    return Work(plus(d.mul(op.n_in(), 6 + op.has(2)), d.mul(_slices(op), 4 + kept)))


def _group_norm(op: Op, macs: Dim) -> Work:
    dims = op.x()
    groups = op.attr("num_groups") if op.node.op_type == "GroupNormalization" else dims[1]
    return Work(plus(d.mul(d.product(dims), 7), times(4, dims[0], groups)))


def _batch_norm(op: Op, macs: Dim) -> Work:
    if op.attr("training_mode", 0):
        raise Unknown("training mode is not counted")
    return Work(plus(d.mul(op.n_in(), 4), d.mul(op.n_in(1), 2)))


def _mean_variance(op: Op, macs: Dim) -> Work:
    dims = op.x()
    axes = {a % len(dims) for a in op.attr("axes", (0, 2, 3))}
    slices = d.product([size for i, size in enumerate(dims) if i not in axes])
    return Work(plus(d.mul(d.product(dims), 5), d.mul(slices, 4)))


def _lp_norm(op: Op, macs: Dim) -> Work:
    dims = op.x()
    return Work(less(d.mul(d.product(dims), 3), rows(dims, op.attr("axis", -1)) if op.attr("p", 2) == 1 else 0))


def _lrn(op: Op, macs: Dim) -> Work:
    return per(op, op.n_in(), op.attr("size") + 3, 1)


# --- pooling and resampling ------------------------------------------------------------------------------------------


def _pool(op: Op, macs: Dim) -> Work:
    size = product_of(op.attr("kernel_shape"))
    return per(op, op.n_out(), size if op.node.op_type == "AveragePool" else size - 1)


def _lp_pool(op: Op, macs: Dim) -> Work:
    if op.node.op_type == "GlobalLpPool":
        size, y = exactly(op.n_in(), op.n_out()), op.n_out()
    else:
        size, y = product_of(op.attr("kernel_shape")), op.n_out()
    p = op.attr("p", 2)
    if p in (1, 2):
        return Work(less(d.mul(times(size, y), 2), y if p == 1 else 0))
    return Work(less(times(size, y), y), plus(times(size, y), y))


def _resize(op: Op, macs: Dim) -> Work:
    mode = op.attr("mode", "nearest")
    if mode == "nearest":
        return Work()
    scaled = sum(a != b for a, b in zip(op.x(), op.y(), strict=True))
    if op.attr("antialias", 0) and scaled:
        raise Unknown("the width of an antialiasing filter depends on the scale")
    return per(op, op.n_out(), _weighted(_width(mode) ** scaled))


def _width(mode: str) -> int:
    """Neighbours along each axis that an interpolation reads."""
    found = {"nearest": 1, "linear": 2, "bilinear": 2, "cubic": 4, "bicubic": 4}.get(mode)
    if found is None:
        raise Unknown(f"mode '{mode}' is not one of the standard's")
    return found


def _weighted(neighbours: int) -> int:
    """A weighted sum of so many neighbours."""
    return 2 * neighbours - 1 if neighbours > 1 else 0


def _grid_sample(op: Op, macs: Dim) -> Work:
    places = d.mul(op.n_in(1), 3 if op.attr("align_corners", 0) else 4)
    width = _width(op.attr("mode", "linear"))
    return Work(plus(places, d.mul(op.n_out(), _weighted(width ** (len(op.x()) - 2)))))


def _roi_align(op: Op, macs: Dim) -> Work:
    ratio = op.attr("sampling_ratio", 0)
    if not ratio:
        raise Unknown("how many points are sampled depends on the data")
    # Four neighbours of each point, and the points' mean or maximum.
    return per(op, op.n_out(), 8 * ratio * ratio - (op.attr("mode", "avg") == "max"))


# --- signals, matrices, losses ---------------------------------------------------------------------------------------


def _transform(size: Dim) -> Dim:
    return d.mul(size, 5 * log2_ceiling(size))


def _dft(op: Op, macs: Dim) -> Work:
    dims = op.x()
    axis = op.number(2) if op.has(2) else -2
    if not isinstance(axis, int):
        raise Unknown("the axis is not a constant")
    size = op.number(1) if op.has(1) else dims[axis]
    slices = d.product([s for i, s in enumerate(dims[:-1]) if i != axis % len(dims)])
    return Work(times(slices, plus(_transform(size), d.mul(size, 2 if op.attr("inverse", 0) else 0))))


def _stft(op: Op, macs: Dim) -> Work:
    batch, frames = op.y()[:2]
    size = op.x(2)[0] if op.has(2) else op.number(3)
    return Work(times(batch, frames, plus(_transform(size), size if op.has(2) else 0)))


def _window(op: Op, macs: Dim) -> Work:
    return Work(plus(d.mul(op.n_out(), 7), 5), d.mul(op.n_out(), 2))


def _det(op: Op, macs: Dim) -> Work:
    """By elimination: k divisions, k² products and k² differences for k = n - 1 … 1, and the product of the pivots."""
    size = op.x()[-1]
    if not isinstance(size, int):
        raise Unknown("the size of the matrix is a free dimension")
    k = size - 1
    return per(op, op.n_out(), k * (k + 1) // 2 + 2 * (k * (k + 1) * (2 * k + 1) // 6) + k)


def _rotary(op: Op, macs: Dim) -> Work:
    dims, part = op.x(), op.attr("rotary_embedding_dim", 0)
    if not part:
        return typed(op, d.mul(d.product(dims), 3))
    heads = dims[1] if len(dims) == 4 else op.attr("num_heads")
    return typed(op, times(3, dims[0], heads, dims[2] if len(dims) == 4 else dims[1], part))


def _loss(op: Op, macs: Dim) -> Work:
    labels, weighted = op.n_in(1), op.has(2)
    flops = plus(labels, labels if weighted else 0)
    kind = op.attr("reduction", "mean")
    if kind != "none":
        flops = plus(flops, labels, -1)
    if kind == "mean":
        flops = plus(flops, labels if weighted else 1)
    if op.node.op_type != "SoftmaxCrossEntropyLoss":
        return Work(flops)
    x = op.n_in()
    return Work(plus(flops, d.mul(x, 4), d.mul(labels, -2)), plus(x, labels))


# --- quantisation ----------------------------------------------------------------------------------------------------


def _quantize(op: Op, macs: Dim) -> Work:
    return Work(d.mul(op.n_out(), 2), 0, op.n_out() if op.has(2) else 0)


def _dequantize(op: Op, macs: Dim) -> Work:
    return Work(op.n_out(), 0, op.n_out() if op.has(2) else 0)


def _dynamic_quantize(op: Op, macs: Dim) -> Work:
    x = op.n_in()
    return Work(plus(d.mul(x, 4), 7), 0, x)


def _affine_grid(op: Op, macs: Dim) -> Work:
    """A step and an offset for each line of the grid; then the product."""
    return Work(plus(d.mul(macs, 2), d.mul(plus(*op.y()[1:-1]), 2)))


# --- classical models ------------------------------------------------------------------------------------------------


def _linear(op: Op, macs: Dim) -> Work:
    if op.attr("post_transform", "NONE") not in ("NONE", b"NONE"):
        raise Unknown("what comes after the product is not counted")
    added = times(*op.x()[:-1], len(op.attr("intercepts", ()) or ()))
    return Work(plus(d.mul(macs, 2), added))


def _normalizer(op: Op, macs: Dim) -> Work:
    # Size, sum or maximum of the row, and the division; squares and a root for L2.
    x, r = op.n_in(), rows(op.x(), -1)
    return Work(d.mul(x, 3) if op.attr("norm", "MAX") == "L2" else less(d.mul(x, 3), r))


_INTERPOLATED = "weighted sums of the neighbours that are read (k of them: 2 k - 1); their weights are not counted"
_NORMALISED = "7 x + 4 r: two means, squares, variance, root, quotient, scale and bias"
_POOLED = "y for each element of the window but one; windows that reach over the edge count in full"

ROWS: dict[str, Row] = {
    "AffineGrid": Row("2 per MAC, and 2 for each line of the grid", _affine_grid),
    "Attention": Row(
        "2 per MAC; each query and key scaled; per score 4 + 1 special for softmax (less 2 per row), 1 for a mask, "
        "2 + 1 special for a softcap",
        _attention,
    ),
    "AveragePool": Row("y for each element of the window", _pool),
    "BatchNormalization": Row("4 x, and 2 for each channel", _batch_norm),
    "BlackmanWindow": Row("7 y + 5 + 2 y special", _window),
    "Col2Im": Row("x: each element is added into the output", lambda op, macs: per(op, op.n_in(), 1)),
    "Conv": Row("2 per MAC; y for a bias", _product(2)),
    "ConvInteger": Row("integer: 2 per MAC, 1 for each element that a zero point is taken from", _integer(2, 3)),
    "ConvTranspose": Row("2 per MAC; y for a bias", _product(2)),
    "DFT": Row("5 n ⌈log2 n⌉ for each transform of length n, as for a fast Fourier transform", _dft),
    "DeformConv": Row("2 per MAC; y for a bias; 7 for each element that is interpolated, 8 with a mask", _deform_conv),
    "DequantizeLinear": Row("y; integer: y for a zero point", _dequantize),
    "Det": Row("elimination of each n×n matrix: (4 n³ - 3 n² + 5 n - 6) / 6", _det),
    "DynamicQuantizeLinear": Row("4 x + 7; integer: x", _dynamic_quantize),
    "Einsum": Row("2 per MAC; with one operand x - y", _einsum),
    "GRU": Row(
        "2 per MAC; per step and unit 5, 2 for each of 3 biases, the activations",
        _recurrent(3, 5, (2, 1), ("Sigmoid", "Tanh")),
    ),
    "Gemm": Row("2 per MAC; y for C; y for an alpha, and C's elements for a beta, that is not 1", _gemm),
    "GlobalLpPool": Row("p = 1: 2 x - y; p = 2: 2 x; else x - y + (x + y) special", _lp_pool),
    "GridSample": Row(f"4 for each coordinate (3 with align_corners), {_INTERPOLATED}", _grid_sample),
    "GroupNormalization": Row(_NORMALISED, _group_norm),
    "HammingWindow": Row("7 y + 5 + 2 y special", _window),
    "HannWindow": Row("7 y + 5 + 2 y special", _window),
    "InstanceNormalization": Row(_NORMALISED, _group_norm),
    "LRN": Row("(size + 3) x + x special", _lrn),
    "LSTM": Row(
        "2 per MAC; per step and unit 4, 2 for each of 4 biases, 6 for peepholes, the activations",
        _recurrent(4, 4, (3, 1, 1), ("Sigmoid", "Tanh", "Tanh")),
    ),
    "LayerNormalization": Row(f"{_NORMALISED} (6 x without bias)", _layer_norm),
    "LogSoftmax": Row("4 x - 2 r + (x + r) special", _softmax(True)),
    "LpNormalization": Row("p = 1: 3 x - r; p = 2: 3 x", _lp_norm),
    "LpPool": Row("as GlobalLpPool, over windows", _lp_pool),
    "MatMul": Row("2 per MAC", _product()),
    "MatMulInteger": Row("integer: 2 per MAC, 1 for each element that a zero point is taken from", _integer(2, 3)),
    "MaxPool": Row(_POOLED, _pool),
    "MeanVarianceNormalization": Row("5 x + 4 r", _mean_variance),
    "NegativeLogLikelihoodLoss": Row("per label a sign, a weight, and the sum or mean", _loss),
    "QLinearConv": Row(
        "integer: 2 per MAC, y for a bias, y for the result's zero point, 1 for each element that one is taken from; "
        "2 y to scale and round",
        _integer(2, 5, bias=8, requantised=True),
    ),
    "QLinearMatMul": Row(
        "integer: 2 per MAC, y for the result's zero point, 1 for each element that one is taken from; "
        "2 y to scale and round",
        _integer(2, 5, requantised=True),
    ),
    "QuantizeLinear": Row("2 y; integer: y for a zero point", _quantize),
    "RMSNormalization": Row(
        "4 x + 2 r: squares, mean, root, quotient, scale",
        lambda op, macs: Work(plus(d.mul(op.n_in(), 4), d.mul(_slices(op), 2))),
    ),
    "RNN": Row("2 per MAC; per step and unit 2 for a bias, the activation", _recurrent(1, 0, (1,), ("Tanh",))),
    "Resize": Row(f"nearest: nothing; else {_INTERPOLATED}", _resize),
    "RoiAlign": Row("8 y for each point that is sampled: four neighbours, and the mean", _roi_align),
    "RotaryEmbedding": Row("3 for each element that is rotated", _rotary),
    "STFT": Row("per frame of length n: n for a window, 5 n ⌈log2 n⌉ as for DFT", _stft),
    "Softmax": Row("4 x - 2 r + x special: maximum, difference, exponential, sum, quotient", _softmax(False)),
    "SoftmaxCrossEntropyLoss": Row("LogSoftmax and NegativeLogLikelihoodLoss", _loss),
    "Upsample": Row(f"nearest: nothing; else {_INTERPOLATED}", _resize),
}

_ML = "ai.onnx.ml::"
CLASSICAL: dict[str, Row] = {
    **{
        f"{_ML}{name}": Row("looks up, moves or relabels data: nothing", lambda op, macs: Work())
        for name in (
            "ArrayFeatureExtractor", "CastMap", "CategoryMapper", "DictVectorizer", "FeatureVectorizer", "LabelEncoder",
            "OneHotEncoder", "ZipMap",
        )
    },
    f"{_ML}Binarizer": Row("x: comparisons", lambda op, macs: per(op, op.n_in(), 1)),
    f"{_ML}Imputer": Row("x: comparisons", lambda op, macs: per(op, op.n_in(), 1)),
    f"{_ML}LinearClassifier": Row("2 per MAC; 1 for each intercept; post-transforms are not counted", _linear),
    f"{_ML}LinearRegressor": Row("2 per MAC; 1 for each intercept; post-transforms are not counted", _linear),
    f"{_ML}Normalizer": Row("3 x - r; for L2 3 x", _normalizer),
    f"{_ML}Scaler": Row("2 x", lambda op, macs: Work(d.mul(op.n_in(), 2))),
    **{
        f"{_ML}{name}": open_("which path a tree or kernel takes depends on the data")
        for name in ("SVMClassifier", "SVMRegressor", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
    },
    **{
        f"ai.onnx.preview.training::{name}": open_("training is not counted")
        for name in ("Adagrad", "Adam", "Gradient", "Momentum")
    },
    "ai.onnx.preview::FlexAttention": open_("what it does to scores is a graph of its own"),
}  # fmt: skip

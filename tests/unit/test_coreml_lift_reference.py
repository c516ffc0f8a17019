"""The lifter against definitions written out in numpy, for operators without a value inference of Apple's.

Loops on purpose: slow, short, and nothing in common with the lifter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lifting import run, save

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)


def f(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def lifted(kind: str, inputs: dict[str, Array], fixed: dict[str, Any], path: Path, target: str) -> list[Array]:
    """Save one operator as a package, read it back, run it."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    def body(x: Any, h: Any = None, c: Any = None) -> Any:
        return getattr(mb, kind)(**dict(zip(inputs, (x, h, c), strict=False)), **fixed)

    bodies = {1: lambda x: body(x), 2: lambda x, h: body(x, h), 3: lambda x, h, c: body(x, h, c)}
    specs = [mb.TensorSpec(v.shape) for v in inputs.values()]
    program = mb.program(input_specs=specs, opset_version=ct.target[target])(bodies[len(inputs)])
    return run(save(ct, program, target, path), dict(zip("xhc", inputs.values(), strict=False)))


def compare(
    kind: str, inputs: dict[str, Array], fixed: dict[str, Any], expected: list[Array], path: Path, target: str = "iOS17"
) -> None:
    actual = lifted(kind, inputs, fixed, path / "m.mlpackage", target)
    assert [a.shape for a in actual] == [e.shape for e in expected]
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


# Windows ------------------------------------------------------------------------------------------------------------


def same(size: int, kernel: int, stride: int, lower: bool) -> tuple[int, int]:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd element after (or before, for `same_lower`)."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return (total - total // 2, total // 2) if lower else (total // 2, total - total // 2)


def padding(x: Array, kernel: list[int], strides: list[int], fixed: dict[str, Any]) -> list[tuple[int, int]]:
    kind = fixed.get("pad_type", "valid")
    if kind == "custom":
        return list(zip(fixed["pad"][0::2], fixed["pad"][1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    return [same(n, k, s, kind == "same_lower") for n, k, s in zip(x.shape[2:], kernel, strides, strict=True)]


def convolve(x: Array, weight: Array, fixed: dict[str, Any]) -> Array:
    spatial = x.ndim - 2
    strides, dilations = fixed.get("strides", [1] * spatial), fixed.get("dilations", [1] * spatial)
    groups = fixed.get("groups", 1)
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    xp = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *padding(x, reach, strides, fixed)])
    out = [(n - r) // s + 1 for n, r, s in zip(xp.shape[2:], reach, strides, strict=True)]
    y = np.zeros((x.shape[0], weight.shape[0], *out))
    per_group = weight.shape[0] // groups
    for o, *place in itertools.product(range(weight.shape[0]), *map(range, out)):
        window = tuple(slice(p * s, p * s + r, d) for p, s, r, d in zip(place, strides, reach, dilations, strict=True))
        first = o // per_group * weight.shape[1]
        patch = xp[(slice(None), slice(first, first + weight.shape[1]), *window)]
        y[(slice(None), o, *place)] = (patch * weight[o]).reshape(x.shape[0], -1).sum(1)
    return y + fixed["bias"].reshape(-1, *[1] * spatial) if "bias" in fixed else y


@pytest.mark.parametrize(
    ("shape", "weight", "fixed"),
    [
        ((2, 3, 9), (4, 3, 3), {"bias": f(4)}),
        ((1, 4, 7, 8), (6, 2, 3, 2), {"groups": 2, "strides": [2, 1], "pad_type": "custom", "pad": [1, 0, 2, 1]}),
        ((1, 2, 9, 9), (3, 2, 3, 3), {"dilations": [2, 1], "pad_type": "same"}),
        ((1, 2, 8, 7), (3, 2, 4, 3), {"strides": [2, 3], "pad_type": "same"}),
        ((1, 2, 8, 7), (3, 2, 4, 3), {"strides": [2, 3], "pad_type": "same_lower"}),
        ((1, 4, 6, 6), (4, 1, 3, 3), {"groups": 4, "pad_type": "same"}),
        ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"strides": [1, 2, 1], "pad_type": "custom", "pad": [0, 1, 1, 0, 0, 0]}),
    ],
)
def test_conv(shape: tuple[int, ...], weight: tuple[int, ...], fixed: dict[str, Any], tmp_path: Path) -> None:
    x, w = f(*shape), f(*weight)
    compare("conv", {"x": x}, {"weight": w, **fixed}, [convolve(x, w, fixed)], tmp_path)


def convolve_transposed(x: Array, weight: Array, fixed: dict[str, Any]) -> Array:
    """Every input element adds the kernel, scaled, at its place; then the padding is cut off."""
    spatial = x.ndim - 2
    strides, dilations = fixed.get("strides", [1] * spatial), fixed.get("dilations", [1] * spatial)
    groups = fixed.get("groups", 1)
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    room = [(n - 1) * s + r + 16 for n, s, r in zip(x.shape[2:], strides, reach, strict=True)]
    y = np.zeros((x.shape[0], weight.shape[1] * groups, *room))
    per_in, per_out = x.shape[1] // groups, weight.shape[1]
    for c, *place in itertools.product(range(x.shape[1]), *map(range, x.shape[2:])):
        window = tuple(slice(p * s, p * s + r, d) for p, s, r, d in zip(place, strides, reach, dilations, strict=True))
        first = c // per_in * per_out
        value = x[(slice(None), c, *place)].reshape(-1, *[1] * (spatial + 1))
        y[(slice(None), slice(first, first + per_out), *window)] += value * weight[c]
    full = [(n - 1) * s + r for n, s, r in zip(x.shape[2:], strides, reach, strict=True)]
    begins, sizes = [0] * spatial, full
    if fixed.get("pad_type") == "custom":
        begins = fixed["pad"][0::2]
        sizes = [n - b - e for n, b, e in zip(full, begins, fixed["pad"][1::2], strict=True)]
    if fixed.get("pad_type") == "same":
        sizes = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        begins = [max(n - s, 0) // 2 for n, s in zip(full, sizes, strict=True)]
    if "output_shape" in fixed:
        sizes = fixed["output_shape"][2:]
    cut = y[(..., *(slice(b, b + n) for b, n in zip(begins, sizes, strict=True)))]
    return cut + fixed["bias"].reshape(-1, *[1] * spatial) if "bias" in fixed else cut


@pytest.mark.parametrize(
    ("shape", "weight", "fixed"),
    [
        ((2, 3, 5), (3, 4, 3), {"bias": f(4), "strides": [2]}),
        ((1, 4, 4, 5), (4, 3, 3, 2), {"groups": 2, "strides": [2, 1], "pad_type": "custom", "pad": [1, 0, 0, 1]}),
        ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "pad_type": "same"}),
        ((1, 2, 4, 4), (2, 3, 3, 3), {"dilations": [2, 1]}),
        ((1, 2, 4, 4), (2, 3, 3, 3),
         {"strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1], "output_shape": [1, 3, 8, 8]}),
        ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), {"strides": [2, 1, 2]}),
    ],
)
def test_conv_transpose(shape: tuple[int, ...], weight: tuple[int, ...], fixed: dict[str, Any], tmp_path: Path) -> None:
    x, w = f(*shape), f(*weight)
    compare("conv_transpose", {"x": x}, {"weight": w, **fixed}, [convolve_transposed(x, w, fixed)], tmp_path)


def pool(kind: str, x: Array, fixed: dict[str, Any]) -> Array:
    """Windows as PyTorch's: in ceil mode the last one may reach over the padding, but must not start there."""
    kernel = fixed["kernel_sizes"]
    strides = fixed.get("strides", [1] * len(kernel))
    pads = padding(x, kernel, strides, fixed)
    out = []
    for n, k, s, (b, e) in zip(x.shape[2:], kernel, strides, pads, strict=True):
        count = (n + b + e - k) / s
        count = (math.ceil(count) if fixed.get("ceil_mode") else math.floor(count)) + 1
        out.append(count - 1 if b + e and fixed.get("ceil_mode") and (count - 1) * s >= n + b else count)
    y = np.zeros((*x.shape[:2], *out))
    for place in itertools.product(*map(range, out)):
        inside, declared = [], 1
        for p, n, k, s, (b, e) in zip(place, x.shape[2:], kernel, strides, pads, strict=True):
            first = p * s - b
            inside.append(slice(max(first, 0), min(first + k, n)))
            declared *= min(first + k, n + e) - first
        window = x[(..., *inside)].reshape(*x.shape[:2], -1).astype(np.float64)
        count = window.shape[-1] if fixed.get("exclude_padding_from_average") else declared
        y[(..., *place)] = {
            "max_pool": window.max(-1), "avg_pool": window.sum(-1) / count, "l2_pool": np.sqrt((window**2).sum(-1)),
        }[kind]
    return y


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool", "l2_pool"])
@pytest.mark.parametrize(
    ("shape", "fixed"),
    [
        ((1, 2, 9), {"kernel_sizes": [3], "strides": [2], "pad_type": "valid"}),
        ((1, 2, 7, 8), {"kernel_sizes": [3, 2], "strides": [2, 2], "pad_type": "same"}),
        ((1, 2, 7, 8), {"kernel_sizes": [2, 3], "strides": [2, 2], "pad_type": "same_lower"}),
        ((1, 2, 7, 8), {"kernel_sizes": [3, 3], "strides": [2, 1], "pad_type": "custom", "pad": [1, 1, 0, 2]}),
        ((1, 2, 8, 7), {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "valid", "ceil_mode": True}),
        ((1, 2, 8, 7),
         {"kernel_sizes": [3, 2], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1], "ceil_mode": True}),
        ((1, 2, 6, 6),
         {"kernel_sizes": [2, 2], "strides": [3, 3], "pad_type": "custom", "pad": [1, 1, 1, 1], "ceil_mode": True}),
    ],
)
def test_pools(kind: str, shape: tuple[int, ...], fixed: dict[str, Any], tmp_path: Path) -> None:
    x = f(*shape)
    variants = [{}, {"exclude_padding_from_average": True}] if kind == "avg_pool" else [{}]
    for number, variant in enumerate(variants):
        folder = tmp_path / str(number)
        folder.mkdir()
        compare(kind, {"x": x}, {**fixed, **variant}, [pool(kind, x, {**fixed, **variant})], folder)


def test_pool_3d(tmp_path: Path) -> None:
    x = f(1, 2, 5, 6, 4)
    fixed = {"kernel_sizes": [2, 3, 2], "strides": [1, 2, 2], "pad_type": "custom", "pad": [1, 0, 1, 1, 0, 0]}
    compare("max_pool", {"x": x}, fixed, [pool("max_pool", x, fixed)], tmp_path)


# Normalisation ------------------------------------------------------------------------------------------------------


def test_batch_norm(tmp_path: Path) -> None:
    x, mean, variance, gamma, beta = f(2, 3, 4, 5), f(3), np.abs(f(3)), f(3), f(3)
    def c(v: Array) -> Array:
        return v.reshape(3, 1, 1)
    plain = (x - c(mean)) / np.sqrt(c(variance) + 1e-5)
    compare("batch_norm", {"x": x}, {"mean": mean, "variance": variance}, [plain], tmp_path)
    full = (x - c(mean)) / np.sqrt(c(variance) + 0.25) * c(gamma) + c(beta)
    fixed = {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta, "epsilon": np.float32(0.25)}
    (tmp_path / "full").mkdir()
    compare("batch_norm", {"x": x}, fixed, [full], tmp_path / "full")


def test_instance_norm(tmp_path: Path) -> None:
    x, gamma, beta = f(2, 3, 4, 5), f(3), f(3)
    normal = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 0.125)
    expected = normal * gamma.reshape(3, 1, 1) + beta.reshape(3, 1, 1)
    fixed = {"gamma": gamma, "beta": beta, "epsilon": np.float32(0.125)}
    compare("instance_norm", {"x": x}, fixed, [expected], tmp_path)


def test_local_response_norm(tmp_path: Path) -> None:
    x = f(1, 6, 2, 3)
    sums = np.stack([(x[:, max(c - 1, 0) : c + 2] ** 2).sum(1) for c in range(6)], 1)
    expected = x / (2 + 0.5 / 3 * sums) ** 0.75
    fixed = {"size": 3, "alpha": np.float32(0.5), "beta": np.float32(0.75), "k": np.float32(2)}
    compare("local_response_norm", {"x": x}, fixed, [expected], tmp_path)


# Recurrence ---------------------------------------------------------------------------------------------------------


def sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid, "tanh": np.tanh, "relu": lambda v: np.maximum(v, 0), "linear": lambda v: v,
    "hard_sigmoid": lambda v: np.clip(0.2 * v + 0.5, 0, 1), "scaled_tanh": np.tanh,
}


def lstm(
    x: Array, h: Array, c: Array, w: Array, r: Array, bias: Array, p: Array, acts: list[str], clip: float
) -> tuple[Array, ...]:
    """Gates i, f, o, z; returns all states, the last state and the last cell."""
    gate, cell, out = (ACTIVATIONS[a] for a in acts)
    states = []
    for step in x:
        i, forget, o, z = np.split(step @ w.T + h @ r.T + bias, 4, axis=-1)
        pi, pf, po = np.split(p, 3)
        c = np.clip(gate(forget + pf * c) * c + gate(i + pi * c) * cell(z), -clip, clip)
        h = gate(o + po * c) * out(c)
        states.append(h)
    return np.stack(states), h, c


@pytest.mark.parametrize("clip", [math.inf, 0.25])
@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction: str, sequence: bool, clip: float, tmp_path: Path) -> None:
    s, b, n, hidden = 5, 2, 3, 4
    d = 2 if direction == "bidirectional" else 1
    x, h, c = f(s, b, n), f(b, d * hidden), f(b, d * hidden)
    weights = [[f(4 * hidden, n), f(4 * hidden, hidden), f(4 * hidden), f(3 * hidden)] for _ in range(d)]
    acts = ["hard_sigmoid", "tanh", "scaled_tanh"]
    fixed: dict[str, Any] = {"direction": direction, "output_sequence": sequence}
    if math.isfinite(clip):
        fixed["clip"] = np.float32(clip)
    fixed.update(zip(("recurrent_activation", "cell_activation", "activation"), acts, strict=True))
    for suffix, values in zip(("", "_back"), weights, strict=False):
        names = ("weight_ih", "weight_hh", "bias", "peephole")
        fixed.update({name + suffix: v for name, v in zip(names, values, strict=True)})
    results = []
    for k, values in enumerate(weights):
        backwards = direction == "reverse" or k == 1
        part = slice(k * hidden, (k + 1) * hidden)
        states, last, cell = lstm(x[::-1] if backwards else x, h[:, part], c[:, part], *values, acts, clip)
        results.append((states[::-1] if k == 1 else states, last, cell))
    states, last, cell = (np.concatenate(parts, -1) for parts in zip(*results, strict=True))
    expected = [states if sequence else last[None], last, cell]
    compare("lstm", {"x": x, "initial_h": h, "initial_c": c}, fixed, expected, tmp_path)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("after", [None, False, True])
def test_gru(direction: str, after: bool | None, tmp_path: Path) -> None:
    """Gates r, o, z. `reset_after` exists from iOS 18 on, with a second bias."""
    s, b, n, hidden = 5, 2, 3, 4
    x, h = f(s, b, n), f(b, hidden)
    w, r, bias, extra = f(3 * hidden, n), f(3 * hidden, hidden), f(3 * hidden), f(3 * hidden)
    fixed: dict[str, Any] = {
        "weight_ih": w, "weight_hh": r, "bias": bias, "direction": direction, "output_sequence": True,
        "recurrent_activation": "sigmoid", "activation": "tanh",
    }
    if after is not None:
        fixed.update(reset_after=after, input_bias=extra)
    else:
        extra = np.zeros_like(extra)
    state, states = h, []
    for step in x[::-1] if direction == "reverse" else x:
        xr, xo, xz = np.split(step @ w.T + extra, 3, axis=-1)
        hr, ho, hz = np.split(state @ r.T + bias, 3, axis=-1)
        reset, update = sigmoid(xr + hr), sigmoid(xz + hz)
        _, bo, _ = np.split(bias, 3)
        inner = reset * ho if after else (reset * state) @ np.split(r, 3)[1].T + bo
        state = (1 - update) * np.tanh(xo + inner) + update * state
        states.append(state)
    target = "iOS17" if after is None else "iOS18"
    compare("gru", {"x": x, "initial_h": h}, fixed, [np.stack(states), state], tmp_path, target)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rnn(direction: str, tmp_path: Path) -> None:
    s, b, n, hidden = 4, 2, 3, 5
    x, h, w, r, bias = f(s, b, n), f(b, hidden), f(hidden, n), f(hidden, hidden), f(hidden)
    state = h
    for step in x[::-1] if direction == "reverse" else x:
        state = np.maximum(step @ w.T + state @ r.T + bias, 0)
    fixed = {"weight_ih": w, "weight_hh": r, "bias": bias, "direction": direction, "activation": "relu"}
    compare("rnn", {"x": x, "initial_h": h}, fixed, [state[None], state], tmp_path)


# Resizing -----------------------------------------------------------------------------------------------------------


def interpolated(x: Array, points: tuple[list[float], list[float]]) -> Array:
    """Bilinear samples of an image at rows × columns."""
    y = np.zeros((*x.shape[:2], len(points[0]), len(points[1])))
    for (r, py), (c, px) in itertools.product(enumerate(points[0]), enumerate(points[1])):
        py, px = min(max(py, 0), x.shape[2] - 1), min(max(px, 0), x.shape[3] - 1)
        y0, x0 = int(py), int(px)
        y1, x1 = min(y0 + 1, x.shape[2] - 1), min(x0 + 1, x.shape[3] - 1)
        wy, wx = py - y0, px - x0
        top = (1 - wx) * x[:, :, y0, x0] + wx * x[:, :, y0, x1]
        low = (1 - wx) * x[:, :, y1, x0] + wx * x[:, :, y1, x1]
        y[:, :, r, c] = (1 - wy) * top + wy * low
    return y


POINTS: dict[str, Callable[[int, int, int], float]] = {
    "STRICT_ALIGN_CORNERS": lambda i, n, m: i * (n - 1) / (m - 1),
    "ALIGN_CORNERS": lambda i, n, m: i * (n - 1) / (m - 1) if m > 1 else (n - 1) / 2,
    "DEFAULT": lambda i, n, m: i * n / m,
    "OFFSET_CORNERS": lambda i, n, m: (0.5 + i) * max(1, n - 1) / m,
    "UNALIGN_CORNERS": lambda i, n, m: (i + 0.5) * n / m - 0.5,
}
SIZES = [(3, 5), (8, 9), (4, 2)]


def rows_and_columns(x: Array, size: tuple[int, int], mode: str) -> tuple[list[float], list[float]]:
    rows, columns = ([POINTS[mode](i, n, m) for i in range(m)] for n, m in zip(x.shape[2:], size, strict=True))
    return rows, columns


@pytest.mark.parametrize("mode", POINTS)
@pytest.mark.parametrize("size", SIZES)
def test_resize_bilinear(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    x = f(1, 2, 4, 6)
    expected = [interpolated(x, rows_and_columns(x, size, mode))]
    fixed: dict[str, Any] = {"target_size_height": size[0], "target_size_width": size[1], "sampling_mode": mode}
    compare("resize_bilinear", {"x": x}, fixed, expected, tmp_path)
    (tmp_path / "resize").mkdir()
    fixed = {"shape": [1, *size], "resized_dims": np.uint32(2), "interpolation_mode": "LINEAR", "sampling_mode": mode}
    compare("resize", {"x": x}, fixed, expected, tmp_path / "resize")


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "STRICT_ALIGN_CORNERS"), ({"align_corners": False}, "UNALIGN_CORNERS"),
        ({"align_corners": False, "half_pixel_centers": False}, "DEFAULT"),
    ],
)
def test_upsample_bilinear(options: dict[str, Any], mode: str, tmp_path: Path) -> None:
    x = f(1, 2, 4, 6)
    expected = [interpolated(x, rows_and_columns(x, (8, 9), mode))]
    fixed = {"scale_factor_height": 2.0, "scale_factor_width": 1.5, **options}
    compare("upsample_bilinear", {"x": x}, fixed, expected, tmp_path)


@pytest.mark.parametrize("size", SIZES)
def test_nearest(size: tuple[int, int], tmp_path: Path) -> None:
    x = f(1, 2, 4, 6)
    rows, columns = ([i * n // m for i in range(m)] for n, m in zip(x.shape[2:], size, strict=True))
    fixed: dict[str, Any] = {"target_size_height": size[0], "target_size_width": size[1]}
    compare("resize_nearest_neighbor", {"x": x}, fixed, [x[:, :, rows][:, :, :, columns]], tmp_path)

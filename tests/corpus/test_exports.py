"""The exported networks equal their torch originals, and are symbolic where their mode says so."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from corpus import exports


@pytest.mark.parametrize("mode", ["legacy", "legacy_dyn"])
@pytest.mark.parametrize("name", list(exports.NETS))
def test_exports_equal_the_torch_network(name: str, mode: str) -> None:
    net = exports.NETS[name]
    example = net.example(tiny=True)
    wanted = exports.prepare(net.build_tiny, net.example(tiny=True, batch=4))(*example).detach().numpy()
    path = exports.export(name, mode, tiny=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {port: tensor.numpy() for port, tensor in zip(net.inputs, example, strict=True)})[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert wanted.std() > 0.01
    free = [d.dim_param for i in onnx.load(path).graph.input for d in i.type.tensor_type.shape.dim if d.dim_param]
    assert bool(free) == (mode == "legacy_dyn")

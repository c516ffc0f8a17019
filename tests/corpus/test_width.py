"""Residual streams of exported transformers get narrower, whatever the exporter, exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from channelcheck import Case
from rulenet import count, removals

import passcheck
from corpus import exports, nets_blocks
from edgec.compiler import driver
from edgec.compiler.channels.sharing import unshared
from edgec.passes.mask_channels import MaskChannels
from edgec.passes.remove_channels import RemoveChannels

PLAIN = "canonicalize,fold-constants,fold-shapes,remove-dead-code"
MODES = ("dynamo", "legacy", "dynamo_dyn", "legacy_dyn")
IMAGES, TOKENS = {"sizes": (32, 32)}, {"inputs": ("ids",), "sizes": (16, 16), "vocabularies": (50, 50)}
WIDTHS = {
    # What goes; how wide the streams are, how many norms look at them, and whether these are padded.
    "vit_b_16": ("exact", 64, 5, False),
    "gpt": ("exact", 64, 5, False),
    "gpt_sdpa": ("exact", 64, 5, False),
    "bert12": ("padded", 64, 5, True),
    "convnext_tiny": ("padded", 16 + 32, 6, True),
}
BLOCKS: dict[str, tuple[Callable[[], object], dict[str, object], str, int]] = {
    "llama": (nets_blocks.Llama, TOKENS, "exact", 40),
    # Of two streams, 24 and 32 wide, the first is read by the norm of four joined tokens; the second is never alone.
    "swin": (nets_blocks.Swin, IMAGES, "exact", 32),
    "swin, all": (nets_blocks.Swin, IMAGES, "padded", 24 + 32),
}


def narrower(path: Path, width: str, passes: str | None, rtol: float = 1e-5) -> tuple[int, ir.Model]:
    """How many units more there are than without narrowing, and what is left of the model at half of them."""
    with driver.compile(str(path), level="O1", target="onnx", verify="off", passes=passes) as compiled, unshared(
        compiled.model
    ):
        case = Case.of(compiled.model, width)
        more = count(case)[1] - count(Case.of(compiled.model))[1]
        return more, removals(case, ratios=(0.5,), rtol=rtol)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", list(WIDTHS))
def test_exported_transformers(name: str, mode: str) -> None:
    width, size, norms, padded = WIDTHS[name]
    more, removed = narrower(exports.export(name, mode, tiny=True), width, PLAIN)
    assert more == size
    pads = [n for n in removed.graph if n.op_type == "Pad"]
    assert len(pads) == (norms if padded else 0)


@pytest.mark.parametrize(
    ("mode", "passes"), [("dynamo", PLAIN), ("legacy_dyn", PLAIN), ("legacy", None), ("dynamo_dyn", None)]
)
@pytest.mark.parametrize("name", list(BLOCKS))
def test_hard_networks(name: str, mode: str, passes: str | None, tmp_path: Path) -> None:
    build, options, width, size = BLOCKS[name]
    net = exports.Net(build, build, **options)  # type: ignore[arg-type]
    path = tmp_path / "net.onnx"
    exports.write(exports.prepare(net.build, net.example(batch=4)), net, mode, path)
    more, _ = narrower(path, width, passes)
    assert more == size


@pytest.mark.parametrize("name", ["vit_b_16", "bert12"])
def test_by_the_passes(name: str) -> None:
    """Half of all channels by the pass, removed by the pass, which finds them from the numbers alone."""
    width, size, *_ = WIDTHS[name]
    path = exports.export(name, "legacy", tiny=True)
    with driver.compile(str(path), level="O1", target="onnx", verify="off", passes=PLAIN) as compiled:
        masked = compiled.model.clone()
        assert MaskChannels(of="channels", align=1, width=width).run(masked, passcheck.context("onnx")) > 0
        smaller = passcheck.check_pass(masked, RemoveChannels(), target="onnx", rtol=1e-5)
        scales = [n.inputs[1] for n in smaller.graph if n.op_type == "LayerNormalization"]
        live = {int(np.count_nonzero(v.const_value.numpy())) for v in scales}  # type: ignore[union-attr]
        assert live == {size // 2}

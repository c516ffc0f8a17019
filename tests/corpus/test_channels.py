"""What can be pruned in exported networks is found whatever the exporter, and removed exactly, at every value."""

from __future__ import annotations

from pathlib import Path

import pytest
from channelcheck import Case
from rulenet import count, removals

from corpus import exports, nets_blocks
from edgec.compiler import driver
from edgec.compiler.channels.sharing import unshared

PLAIN = "canonicalize,fold-constants,fold-shapes,remove-dead-code"
IMAGES, TOKENS = {"sizes": (32, 32)}, {"inputs": ("ids",), "sizes": (16, 16), "vocabularies": (50, 50)}
BLOCKS = {
    # 8 of the stem in each of two halves tied by shuffling, two branches of 8 in the middle.
    "shufflenet": (nets_blocks.ShuffleNet, IMAGES, (0, 32), (0, 32)),
    # 3 + 3 + 4 heads; hidden 48 + 48 + 64, and 8 dimensions of q, k and v in each block; fused, v has its own 8.
    "swin": (nets_blocks.Swin, IMAGES, (10, 184), (10, 208)),
    # In each of two blocks 3 groups of heads of 2 queries each, 56 hidden, 4 pairs of dimensions, 8 dimensions of v.
    "llama": (nets_blocks.Llama, TOKENS, (10, 136), (10, 136)),
    "llama_pairs": (lambda: nets_blocks.Llama(True), TOKENS, (10, 136), (10, 136)),
    # 4 groups of the norm; 8 + 12 + 10 + 8 channels, and 6 of the shuffled pixels.
    "unet": (nets_blocks.UNet, {"sizes": (16, 16)}, (4, 44), (4, 44)),
    "detector": (nets_blocks.Detector, IMAGES, (0, 124), (0, 124)),
    # 24 hidden units of each expert, the width of the stream that they read, and of the one that they write.
    "experts": (nets_blocks.Experts, TOKENS, (0, 64), (0, 64)),
    # 12 of the embedding, 16 pairs of units in each of two layers, 20 of the last.
    "recurrent": (nets_blocks.Recurrent, TOKENS, (0, 64), (0, 64)),
}


def case_of(path: Path, passes: str | None, check: tuple[int, int] | None = None) -> tuple[int, int]:
    """The units of a file, after all pruning that is tried was found exact."""
    options = {"level": "O1", "target": "onnx", "verify": "off", "passes": passes}
    with driver.compile(str(path), **options) as compiled, unshared(compiled.model):
        case = Case.of(compiled.model)
        found = count(case)
        assert check is None or found == check
        removals(case, ratios=(0.5,))
        return found


@pytest.mark.parametrize("mode", ["dynamo", "legacy", "legacy_dyn"])
@pytest.mark.parametrize("name", list(BLOCKS))
def test_units_of_hard_networks(name: str, mode: str, tmp_path: Path) -> None:
    build, options, plain, fused = BLOCKS[name]
    net = exports.Net(build, build, **options)
    path = tmp_path / "net.onnx"
    exports.write(exports.prepare(net.build, net.example(batch=4)), net, mode, path)
    if name.startswith("llama") and mode.endswith("_dyn"):
        # All layers read one table of angles, cut to the length of the input: its columns go from both. Of tables of
        # which pairs read one half, the other is 4 columns each that nobody needs.
        plain = fused = (10, 132 if name == "llama" else 140)
    case_of(path, PLAIN, plain)
    case_of(path, None, fused)


@pytest.mark.parametrize("name", list(exports.NETS))
def test_exporters_make_no_difference(name: str) -> None:
    modes = ("legacy", "legacy_dyn", "dynamo")
    assert len({case_of(exports.export(name, mode, tiny=True), None) for mode in modes}) == 1
    plain = {case_of(exports.export(name, mode, tiny=True), PLAIN) for mode in modes}
    assert all(found[1] > 0 for found in plain)

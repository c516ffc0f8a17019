"""Reports to test with: one with everything in it, and a real one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from edgec.compiler import graph
from edgec.compiler.guard.layers import Layer
from edgec.compiler.guard.task import Score
from edgec.compiler.numerics import Difference
from edgec.compiler.passbase import Context, Pass
from edgec.compiler.records import Latency, PassRecord, Proof, Report, Stats
from edgec.compiler.rounding import insert_pair
from edgec.compiler.tradeoff import Choice, Point, Tradeoff
from edgec.compiler.verify import Comparison

NASTY = "<b>&\"'</script><script>alert(1)</script> [red]x[/red] ${body} {0} \N{GREEK SMALL LETTER ALPHA}"
"""Text that breaks whatever doesn't escape it: HTML, its attributes, a script, rich's markup, templates."""

RAN = "The saved package was read back and run in onnxruntime. Apple's own compiler did not run."


def figures(name: str, max_rel: float, snr_db: float, top1: float | None = None) -> Comparison:
    return Comparison({name: Difference(3 * max_rel, max_rel, snr_db, 1 - max_rel**2 / 2, 0.5, top1)})


def tradeoff(name: str = "fc", output: str = "logits") -> Tradeoff:
    """Two weights, of which one stays as it is; a width that breaks the outputs, and one that was not measured."""
    weights = (Choice(name, 4, 520, 2000, 0.002), Choice("last", 16, 1000, 1000, 0.0))
    same = (Point(380, 0.4, math.inf, 2), Point(770, 0.01, 0.012, 4), Point(1500, 1e-4, None, 8))
    frontier = (Point(380, 0.4), Point(900, 0.006), Point(1520, 0.002), Point(3000, 0.0))
    return Tradeoff(123, Point(1520, 0.002, 0.0021), same, frontier, weights, (output,))


def full(text: str = "mobile", output: str = "logits") -> Report:
    """A report that uses every field. `text` stands wherever the text comes from a model or a user."""
    equal = figures(output, 0.0, math.inf)
    lossy = figures(output, 6.3e-3, 47.1, 1.0)
    broken = Comparison({output: Difference.failed(f"shape [1, 3] instead of [1, 4] in {text}")})
    score = Score(text, 0.9042, 0.9036, 0.0006, 1000, True, 0.01)
    passes = [
        PassRecord("canonicalize", False, "ok", 34, 0.0124, 0.09, 173, exact=equal),
        PassRecord("fold-constants", nodes=173, seconds=0.004),
        PassRecord("fuse-gelu", nodes=173, seconds=0.001, notes=[f"{text}: the constant is 1.4, not sqrt 2"]),
        PassRecord("fold-batch-norm", False, "ok", 34, 0.041, 0.1, 122, exact=figures(output, 8.4e-7, 121.9)),
        PassRecord(
            "fuse-gemm", False, "undone", 3, 0.01, 0.1, 122, exact=broken, why=f"changed {text}", reproducer=text
        ),
        PassRecord(
            "round-weights{bits=8}",
            True,
            "ok",
            54,
            0.21,
            0.1,
            122,
            loss=lossy,
            notes=[text, "kept: Conv_3"],
            score=score,
            kept=(text,),
            retreat=[f"over --max-drop 0.01: {text}", f"1 of 54 tensors: '{text}'"],
            layers=[
                Layer(text, "Conv", 31.2, 31.2),
                Layer("fc", "Gemm", 22.7, 27.5),
                Layer("last", "Add", 30, math.inf),
            ],
            tradeoff=tradeoff(text, output),
        ),
        PassRecord("pack-weights", False, "ok", 54, 1.08, 0.1, 122, exact=equal),
        PassRecord("legalize", status="skipped", nodes=122),
    ]
    return Report(
        source=f"models/{text}.onnx",
        output=f"{text}.mlpackage",
        level="O2",
        target="ios18",
        precision="fp16",
        versions={"python": "3.11.7", "edgec": "0.1.0", "onnx": text},
        pipeline=[p.spec for p in passes],
        inputs=[f"{text}: float [1,3,224,224]"],
        outputs=[f"{output}: float [1,1000]"],
        given_inputs=True,
        before=Stats(173, 2_554_968, 10_219_872, 10_409_511, 56_510_400, {"Conv": 52, "Identity": 34, text: 1}),
        after=Stats(122, 2_542_856, 2_601_112, 2_702_345, None, {"Conv": 52, "Relu": 14}),
        passes=passes,
        contract=[f"{text}: int64 → int32"],
        names={f"/{text}": "x_0"},
        warnings=[f"{text} stays in float32"],
        proof=Proof(figures(output, 3.9e-7, 124.6), lossy, [], RAN, True, 1e-4, 0.42, score=score),
        accuracy=(0.9042, 0.9036),
        samples=1000,
        latency=Latency(0.0232, 0.0127, 12),
        seconds={"load": 0.08, "passes": 1.9, "proof": 0.42},
        peak_bytes=612_000_000,
    )


@dataclass(frozen=True)
class Liar(Pass):
    """A pass that says it is exact and isn't: every Relu becomes Abs."""

    name: ClassVar[str] = "lie"

    def run(self, model: ir.Model, ctx: Context) -> int:
        ctx.note("rewrote what should have been left")
        found = list(graph.nodes(model, "Relu"))
        for node in found:
            graph.replace_value(node.outputs[0], graph.insert_before(node, "Abs", node.inputs).outputs[0])
            graph.remove([node])
        return len(found)


@dataclass(frozen=True)
class Half(Pass):
    """A lossy pass: the outputs of all MatMuls are rounded to half precision."""

    name: ClassVar[str] = "half"
    lossy: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        found = list(graph.nodes(model, "MatMul"))
        for node in found:
            insert_pair(node.outputs[0])
        return len(found)


def compiled(folder: Path) -> Report:
    """The report of a real compilation: exact passes, a lossy one, one that is undone, labelled inputs."""
    import edgec

    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 25]>
        small (float[N,4] x) => (float[N,3] logits) <float[4,3] w> {
            a = Identity(x)  b = MatMul(a, w)  c = Relu(b)  logits = Identity(c)
        }""")
    rng = np.random.default_rng(0)
    # One output is positive and one negative before the Relu: rounding shows in the one, the lie in the other.
    w = np.abs(rng.standard_normal((4, 3))).astype(np.float32) * np.array([1, -1, 1], np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    onnx.save(proto, folder / "small.onnx")
    np.savez(folder / "in.npz", x=rng.random((1, 4), np.float32))
    with edgec.compile(
        folder / "small.onnx", target="onnx", shapes={"x": (1, 4)}, inputs=folder / "in.npz", workdir=folder,
        passes="remove-no-ops", extra_passes=[Half(), Liar()], reproducers=folder,
    ) as compilation:  # fmt: skip
        compilation.save(folder / "out.onnx")
        return compilation.report

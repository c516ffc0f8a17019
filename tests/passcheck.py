"""One helper that every pass test goes through: what a pass promises, checked by running the model before and after.

    from passcheck import check_pass, ops

    model = check_pass('''
        <ir_version: 10, opset_import: ["" : 25]>
        agraph (float[2,3] x) => (float[2,3] y) <float one = {1.0}> { y = Mul(x, one) }
    ''', RemoveNoOps(), rewrites=1)
    assert ops(model) == {"Identity": 1}
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from edgec.compiler import checks, graph, numerics, shapes
from edgec.compiler.errors import ModelError
from edgec.compiler.passbase import Context, Pass
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise
from edgec.compiler.targets import OPSET, find_target
from edgec.compiler.weights import Scratch

Source = ir.Model | onnx.ModelProto | str


def context(target: str = "ios18", inputs: Mapping[str, np.ndarray] | None = None) -> Context:
    """A context to run a pass with."""
    return Context(find_target(target), Scratch(), inputs or {})


def load(source: Source) -> ir.Model:
    """A copy of `source` as passes see it: opset 25, constants lifted to initializers, shapes inferred."""
    proto = onnx.parser.parse_model(source) if isinstance(source, str) else source
    if isinstance(proto, onnx.ModelProto):
        imports = {o.domain: o.version for o in proto.opset_import}
        if imports.get("", OPSET) != OPSET:
            proto = onnx.version_converter.convert_version(proto, OPSET)
        model = ir.from_proto(proto)
    else:
        model = proto.clone()
    assert model.opset_imports[""] == OPSET, f"opset {model.opset_imports['']} instead of {OPSET}"
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.NameFixPass()(model)
    shapes.infer(model)
    return model


def fingerprint(model: ir.Model) -> str:
    """A digest of everything that `model` computes with: nodes, names, attributes and weights, not declared shapes."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def ops(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator there are, in all graphs; `domain::op` outside the standard domain."""
    return Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in graph.nodes(model))


def check_pass(
    source: Source,
    p: Pass,
    *,
    rewrites: int | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    ctx: Context | None = None,
    target: str = "ios18",
    rtol: float = 1e-5,
    seeds: int = 3,
    idempotent: bool = True,
) -> ir.Model:
    """Run `p` on a copy of `source` and assert what every pass promises. Returns the rewritten model.

    - the count is honest: 0 exactly when nothing changed; `rewrites` states it, if given;
    - onnx's full checker and strict shape inference accept the result; inputs and outputs are unchanged;
    - onnxruntime computes the same outputs, max |difference| ≤ `rtol` · max |output|, for `inputs`, or for `seeds`
      synthesised sets of them (symbolic dimensions as in `input_shapes`, a free batch of 1, 2 and 3); a lossy pass
      needs a `rtol` of its own;
    - a second run finds nothing more (`idempotent`).
    """
    model = load(source)
    ctx = ctx or context(target)
    feeds = [dict(inputs)] if inputs is not None else [_synthesise(model, s, input_shapes) for s in range(seeds)]
    if not ctx.inputs:
        ctx.inputs = feeds[0]
    interface = checks.Interface.of(model)
    session = Session(model, threads=1)
    before = [session.run(f) for f in feeds]
    print_before, text_before = fingerprint(model), str(ir.to_proto(model).graph)[:2000]

    count = p.run(model, ctx)

    changed = fingerprint(model) != print_before
    assert changed == (count > 0), f"{p.name} counted {count} rewrites, the model {'' if changed else 'un'}changed"
    if rewrites is not None:
        assert count == rewrites, f"{p.name} made {count} rewrites, not {rewrites}. Notes: {ctx.notes}\n{text_before}"
    shapes.infer(model)
    checks.check_structure(model, interface)
    session = Session(model, threads=1)
    for feed, expected in zip(feeds, before, strict=True):
        _assert_close(numerics.compare(expected, session.run(feed)), p.name, rtol)
    if idempotent:
        again = model.clone()
        more = p.run(again, context(ctx.target.name, inputs=ctx.inputs))
        assert more == 0, f"{p.name} found {more} more rewrites in its own result"
    return model


def run(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by onnxruntime, its own optimisations off."""
    return Session(model, threads=1).run(inputs)


def _synthesise(model: ir.Model, seed: int, input_shapes: Mapping[str, Sequence[int]] | None) -> dict[str, np.ndarray]:
    """Inputs of another batch size for each seed, where the model leaves it free: a pass may not have fixed it."""
    try:
        return synthesise(model, seed, input_shapes, batch=1 + seed)
    except ModelError:
        return synthesise(model, seed, input_shapes)


def _assert_close(found: Mapping[str, numerics.Difference], name: str, rtol: float) -> None:
    for output, d in found.items():
        assert d.mismatch is None, f"{name} broke output '{output}': {d.mismatch}"
        assert d.max_rel <= rtol, f"{name} changed output '{output}': {d}"

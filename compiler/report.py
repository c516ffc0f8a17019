"""The report as a JSON document, and writing it: report.json for programs, report.html for people.

docs/report.md describes every field, report.schema.json (next to this file) is the schema. Adding a field keeps the
version; renaming, removing or changing the meaning of one makes a new version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError
from .guard.layers import Layer
from .guard.task import Score
from .numerics import Difference
from .place import place_text
from .records import PassRecord, Proof, Report, Stats
from .report_tradeoff import to_json as tradeoff_json
from .verify import Comparison

VERSION = 1
SCHEMA = Path(__file__).with_name("report.schema.json")


def to_json(report: Report) -> dict[str, Any]:
    """The report as a document of plain JSON values, keys in a fixed order; see docs/report.md."""
    return {
        "version": VERSION,
        "source": report.source,
        "output": report.output,
        "level": report.level,
        "target": report.target,
        "precision": report.precision,
        "versions": dict(report.versions),
        "interface": {
            "inputs": list(report.inputs),
            "outputs": list(report.outputs),
            "renamed": dict(report.names),
            "contract": list(report.contract),
        },
        "samples": {"count": report.samples, "given": report.given_inputs},
        "before": _stats(report.before),
        "after": _stats(report.after),
        "pipeline": list(report.pipeline),
        "passes": [_pass(p) for p in report.passes],
        "proof": None if report.proof is None else _proof(report.proof),
        "accuracy": _accuracy(report),
        "metric": score_json(None if report.proof is None else report.proof.score),
        "latency": _latency(report),
        "warnings": list(report.warnings),
        "seconds": {step: _figure(s) for step, s in report.seconds.items()},
        "peak_bytes": report.peak_bytes,
    }


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Output → its figures; see docs/report.md."""
    return {name: _difference(d) for name, d in comparison.outputs.items()}


def score_json(score: Score | None) -> dict[str, Any] | None:
    """A metric before and after; see docs/report.md."""
    if score is None:
        return None
    return {
        "name": score.name,
        "before": _figure(score.before),
        "after": _figure(score.after),
        "drop": _figure(score.drop),
        "samples": score.samples,
        "larger_is_better": score.larger_is_better,
        "max_drop": _figure(score.max_drop),
    }


def interface_lines(renamed: Mapping[str, str], contract: Sequence[str]) -> list[str]:
    """What differs at the file's interface, a sentence each; a new name that the contract tells is not told again."""
    told = [(a, b) for a, b in renamed.items() for line in contract if f"'{a}'" in line and f"'{b}'" in line]
    return [f"'{a}' is called '{b}' in the file" for a, b in renamed.items() if (a, b) not in told] + list(contract)


def write(report: Report, path: Path) -> None:
    """Write the report to `path`, .json or .html by its suffix; what is there stays until the new one is whole.

    Raises UsageError for another suffix, EdgecError when the file can't be written.
    """
    form = _FORMS.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"can't write a report to '{path}': its name must end in {' or '.join(_FORMS)}")
    place_text(path, form(report), "the report ")


def _json_text(report: Report) -> str:
    return json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _html_text(report: Report) -> str:
    from .report_html import to_html

    return to_html(to_json(report), report.analyses)


_FORMS: Mapping[str, Callable[[Report], str]] = {".json": _json_text, ".html": _html_text}


def _figure(x: float | None) -> float | str | None:
    """JSON has no infinity and no NaN: they become the strings `inf`, `-inf` and `nan`."""
    return None if x is None else float(x) if math.isfinite(x) else str(float(x))


def _stats(s: Stats) -> dict[str, Any]:
    return {
        "nodes": s.nodes,
        "parameters": s.parameters,
        "weight_bytes": s.weight_bytes,
        "file_bytes": s.file_bytes,
        "macs": s.macs,
        "ops": dict(s.ops),
    }


def _difference(d: Difference) -> dict[str, Any]:
    return {
        "max_abs": _figure(d.max_abs),
        "max_rel": _figure(d.max_rel),
        "snr_db": _figure(d.snr_db),
        "cosine": _figure(d.cosine),
        "equal": _figure(d.equal),
        "top1": _figure(d.top1),
        "mismatch": d.mismatch,
    }


def _comparison(c: Comparison | None) -> dict[str, Any] | None:
    """The worst figures over all outputs, and each output's own."""
    if c is None:
        return None
    return {
        "max_abs": _figure(c.max_abs),
        "max_rel": _figure(c.max_rel),
        "snr_db": _figure(c.snr_db),
        "cosine": _figure(c.cosine),
        "top1": _figure(c.top1),
        "outputs": comparison_json(c),
    }


def _pass(p: PassRecord) -> dict[str, Any]:
    return {
        "spec": p.spec,
        "lossy": p.lossy,
        "status": p.status,
        "rewrites": p.rewrites,
        "seconds": _figure(p.seconds),
        "check_seconds": _figure(p.check_seconds),
        "nodes": p.nodes,
        "exact": _comparison(p.exact),
        "loss": _comparison(p.loss),
        "metric": score_json(p.score),
        "retreat": list(p.retreat),
        "kept": list(p.kept),
        "layers": None if p.layers is None else [_layer(x) for x in p.layers],
        "tradeoff": None if p.tradeoff is None else tradeoff_json(p.tradeoff),
        "notes": list(p.notes),
        "why": p.why or None,
        "reproducer": p.reproducer or None,
    }


def _layer(x: Layer) -> dict[str, Any]:
    return {"name": x.name, "op": x.op, "snr_db": _figure(x.snr_db), "own_snr_db": _figure(x.own_db), "own": x.own}


def _proof(p: Proof) -> dict[str, Any]:
    return {
        "ok": p.ok,
        "ran": p.ran,
        "exact": _comparison(p.exact),
        "exact_tolerance": _figure(p.exact_tolerance),
        "loss": _comparison(p.loss),
        "problems": list(p.problems),
        "probed": p.probed,
        "seconds": _figure(p.seconds),
    }


def _latency(report: Report) -> dict[str, Any] | None:
    found = report.latency
    if found is None:
        return None
    return {"before": _figure(found.before), "after": _figure(found.after), "runs": found.runs, "threads": 1}


def _accuracy(report: Report) -> dict[str, Any] | None:
    if report.accuracy is None:
        return None
    before, after = report.accuracy
    return {"before": _figure(before), "after": _figure(after), "samples": report.samples}

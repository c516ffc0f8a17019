"""What mask-channels loses by each measure of importance, on labelled pictures: the tables of docs/pruning.md.

    python -m benchmarks.prune_digits [--fits] [--photographs] [--out docs/prune_digits]

Run from the repository root with the Python that edgec is installed in. The digit recogniser is that of
examples/digits: masked and fitted on the first 512 of its images, measured on the other 488. `--fits` fits as well,
which takes some ten seconds of processor time a row; `--photographs` masks EfficientNet-Lite0 and needs Pillow: there
are 20 photographs, so each half is measured with masks from the other. OUT.json keeps what was measured; rows that are
there are not measured again. The tables in docs/pruning.md are written anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.compiler import shapes
from edgec.compiler.data import Samples
from edgec.compiler.passbase import Context, Pass
from edgec.compiler.pipelines import PREPARE
from edgec.compiler.plugins import find_pass
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.frontends.onnx import load

from . import harness

DIGITS = Path("examples/digits")
CALIBRATION = 512
MEASURES = ("l1", "l2", "bn", "geometric-median", "activation", "reconstruction", "taylor", "fisher")
SPECS = {
    **{
        f"{by}, {share:.0%}": f"mask-channels{{ratio={share},by={by},align=4%s}}"
        for share in (0.5, 0.75) for by in MEASURES
    },
    **{f"{by}, global, 50%": f"mask-channels{{by={by},align=4,spread=global%s}}" for by in ("l2", "taylor", "fisher")},
    **{f"{by}, no labels, 50%": f"mask-channels{{by={by},align=4%s}}" for by in ("taylor", "fisher")},
}  # fmt: skip
PHOTOGRAPHS = {
    f"{by}, {share:.0%}": f"mask-channels{{ratio={share},by={by}}}"
    for share in (0.1, 0.2) for by in (*MEASURES, "taylor, no labels", "fisher, no labels")
}  # fmt: skip
START, END = "<!-- benchmarks/prune_digits.py writes from here -->", "<!-- to here -->"
Row = dict[str, Any]


def prepared(source: str | Path) -> ir.Model:
    """As -O0 leaves it, before masking."""
    model = load(source)
    context = Context(find_target("onnx"), Scratch())
    for name in PREPARE:
        find_pass(name).run(model, context)
        shapes.infer(model)
    return model


def masked(
    model: ir.Model, step: Pass, inputs: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> tuple[ir.Model, Row]:
    """A masked copy, what the pass said it took, and the processor seconds."""
    runs = Samples.of(model, inputs).runs
    context = Context(find_target("onnx"), Scratch(), runs[0], given=True, runs=runs, labels=labels)
    copy, start = model.clone(), time.process_time()
    step.run(copy, context)
    seconds = time.process_time() - start
    (said,) = [n for n in context.notes if "groups of slices" in n]
    return copy, {"MACs": said.split(": ")[1].split(" of macs")[0], "CPU s": f"{seconds:.1f}"}


def right(model: ir.Model, inputs: Mapping[str, np.ndarray], labels: np.ndarray) -> int:
    """How many samples get their label."""
    runs, (output, *_) = Samples.of(model, inputs).runs, model.graph.outputs
    session = Session(model)
    found = [session.run(r, [str(output.name)])[str(output.name)] for r in runs]
    return int((np.concatenate(found).argmax(1) == labels).sum())


def digits(name: str, spec: str, fits: bool, row: Row) -> Row:
    """One row: masked, and masked and fitted."""
    data = np.load(DIGITS / "digits.npz")
    image, labels = data["image"], data["labels"]
    model = prepared(DIGITS / "digits.onnx")
    given = {"image": image[:CALIBRATION]}
    known = None if "no labels" in name else labels[:CALIBRATION]
    test, wanted = {"image": image[CALIBRATION:]}, labels[CALIBRATION:]
    if "masked" not in row:
        copy, said = masked(model, find_pass(spec % ""), given, known)
        row |= {"MACs that go": said["MACs"], "by": name.rpartition(",")[0]}
        row |= {"masked": f"{right(copy, test, wanted) / len(wanted):.1%}", "CPU s": said["CPU s"]}
    if fits and "masked and fitted" not in row:
        copy, _ = masked(model, find_pass(spec % ",compensate=true"), given, known)
        row["masked and fitted"] = f"{right(copy, test, wanted) / len(wanted):.1%}"
    return row


def photographs(name: str, spec: str, row: Row) -> Row:
    """One row: how many of the 20 are right after each half was measured with a mask from the other."""
    from .quantize_tasks import CROPS, pictures

    if row:
        return row
    task = pictures()
    model = prepared(task.model)
    count, seconds, said = 0, 0.0, {}
    before = 0
    for fold, other in zip(task.folds, reversed(task.folds), strict=True):
        assert fold.labels is not None and other.labels is not None
        known = None if "no labels" in name else other.labels
        central = {n: a[:: len(CROPS)] for n, a in fold.calibration.items()}
        step = find_pass(spec.replace(", no labels", ""))
        copy, said = masked(model, step, central, known)
        before += right(model, fold.test, fold.labels)
        count += right(copy, fold.test, fold.labels)
        seconds += float(said["CPU s"])
    return {
        "MACs that go": said["MACs"], "by": name.rpartition(",")[0], "before": f"{before} of 20",
        "right": f"{count} of 20", "CPU s": f"{seconds / 2:.1f}",
    }  # fmt: skip


def write(rows: Mapping[str, Mapping[str, Row]], out: Path, page: Path) -> None:
    """OUT.json, and what is between the marks of the page."""
    out.with_suffix(".json").write_text(json.dumps({"machine": harness.machine(), **rows}, indent=1) + "\n")
    whole = page.read_text()
    if START not in whole:
        return
    before, rest = whole.split(START, 1)
    columns = ("MACs that go", "by", "masked", "masked and fitted", "CPU s")
    parts = [START, ""]
    if rows["digits"]:
        parts += [harness.markdown([{c: r.get(c) for c in columns} for r in rows["digits"].values()]), ""]
    if rows["photographs"]:
        words = "EfficientNet-Lite0 on 20 photographs, not fitted; each half was measured with masks from the other:"
        parts += [words, ""]
        parts += [harness.markdown(list(rows["photographs"].values())), ""]
    page.write_text(before + "\n".join([*parts, END]) + rest.split(END, 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", action="store_true")
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/prune_digits"))
    options = parser.parse_args()
    held = options.out.with_suffix(".json")
    kept = json.loads(held.read_text()) if held.exists() else {}
    rows: dict[str, dict[str, Row]] = {part: kept.get(part, {}) for part in ("digits", "photographs")}
    jobs: dict[str, tuple[Mapping[str, str], Callable[[str, str, Row], Row]]] = {
        "digits": (SPECS, lambda name, spec, row: digits(name, spec, options.fits, row))
    }
    if options.photographs:
        jobs["photographs"] = PHOTOGRAPHS, photographs
    for part, (specs, job) in jobs.items():
        for name, spec in specs.items():
            rows[part][name] = job(name, spec, rows[part].get(name, {}))
            print(part, name, rows[part][name], flush=True)
            write(rows, options.out, Path("docs/pruning.md"))


if __name__ == "__main__":
    main()

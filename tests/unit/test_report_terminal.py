"""The summary in the terminal: what it says, that it fits, that nothing in a model's names breaks it.

To accept a changed look: `EDGEC_UPDATE_GOLDEN=1 python -m pytest tests/unit/test_report_terminal.py`; read the diff.
"""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from reports import NASTY, compiled, full
from rich.console import Console

from edgec.compiler.numerics import Difference
from edgec.compiler.records import Report
from edgec.compiler.report_terminal import OUTPUTS, print_comparison, print_summary, print_table
from edgec.compiler.verify import Comparison

GOLDEN = Path(__file__).parents[1] / "golden" / "summary.txt"


def shown(
    report: Report, width: int = 100, *, terminal: bool = False, verbose: bool = False, times: bool = False
) -> str:
    out = io.StringIO()
    colours: Literal["standard", "auto"] = "standard" if terminal else "auto"
    console = Console(file=out, width=width, highlight=False, force_terminal=terminal, color_system=colours)
    print_summary(report, console, verbose=verbose, times=times)
    return out.getvalue()


def test_golden() -> None:
    found = shown(full(), 80)
    if os.environ.get("EDGEC_UPDATE_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_and_has_no_colour_in_a_pipe(width: int) -> None:
    text = shown(full(), width, verbose=True, times=True)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_undone_is_red_on_a_terminal() -> None:
    text = shown(full(), terminal=True)
    assert "\x1b[1;31mUndone" in text
    assert "changed mobile" in text


def test_a_real_compilation(tmp_path: Path) -> None:
    text = shown(compiled(tmp_path))
    assert "proven" in text and "NOT" not in text
    assert "Undone lie" in text and "it changed the function" in text
    assert "to reproduce:" in text
    assert "read back and run in onnxruntime" in text
    assert "measured on the given inputs" in text


def test_notes_are_counted_and_shown_only_when_asked_for() -> None:
    brief, long = shown(full()), shown(full(), verbose=True)
    assert "3 notes" in brief and "-v" in brief and "sqrt 2" not in brief
    assert "sqrt 2" in long and "-v" not in long


def test_times_show_every_pass_with_its_check() -> None:
    text = shown(full(), times=True)
    assert "fold-constants" in text and "check" in text
    assert "fold-constants" not in shown(full())


def test_names_are_printed_as_they_are() -> None:
    assert "[red]x[/red]" in shown(full(NASTY), 400)


def test_an_unproven_file_is_called_so() -> None:
    report = full()
    report.proof = None
    assert "Not proven" in shown(report)


def test_a_failed_proof_says_what_is_wrong() -> None:
    report = full()
    assert report.proof is not None
    report.proof.ok, report.proof.problems = False, ["block0 is assigned twice"]
    report.proof.exact = Comparison({"logits": Difference(1.0, 0.31, 9.8, 0.9, 0.0)})
    text = shown(report)
    assert "NOT PROVEN" in text and "FAILED" in text and "block0 is assigned twice" in text and "✗ exact" in text


def test_of_many_outputs_the_worst_are_shown() -> None:
    found = Comparison({f"out{i}": Difference(i, i / 100, 60 - i, 1.0) for i in range(40)})
    out = io.StringIO()
    print_comparison(found, Console(file=out, width=100))
    rows = [line for line in out.getvalue().splitlines() if "out3" in line]
    assert [row.split()[0] for row in rows] == [f"out{i}" for i in range(40 - OUTPUTS, 40)]
    assert f"{40 - OUTPUTS} more outputs" in out.getvalue()


def test_outputs_that_can_not_be_compared_say_why() -> None:
    out = io.StringIO()
    print_comparison(Comparison({"y": Difference.failed("shape [2] instead of [3]")}), Console(file=out, width=100))
    assert "shape [2] instead of [3]" in out.getvalue() and str(math.inf) not in out.getvalue()


def test_a_terminal_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    report = full()
    report.after.macs = report.before.macs
    print_summary(report, Console(file=file, width=80))
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert "->" in text and "?" not in text


def test_tables_align_numbers_and_keep_brackets() -> None:
    out = io.StringIO()
    print_table(Console(file=out, width=80), "Things", ("name", "count"), [("a[b]", 5), ("c", 12_000)])
    assert out.getvalue().splitlines()[1:] == ["Things (2)", "name   count", "a[b]       5", "c     12,000", ""]


def test_in_a_narrow_table_long_text_wraps_and_names_stay_whole() -> None:
    out = io.StringIO()
    rows = [("a-long-pass-name", "exact", "", "what it does " * 12)]
    print_table(Console(file=out, width=60), "Passes", ("name", "kind", "options", "summary"), rows)
    lines = out.getvalue().splitlines()
    assert lines[3].startswith("a-long-pass-name  exact  what it does")
    assert "options" not in out.getvalue() and max(map(len, lines)) <= 60
    assert out.getvalue().replace("\n", " ").count("what it") >= 8


def test_rich_is_imported_only_when_something_is_printed() -> None:
    code = "import sys, edgec.compiler.report_terminal; print('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"

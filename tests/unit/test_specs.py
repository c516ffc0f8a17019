"""One spec syntax: parsing, building, and what is said when it is wrong."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.compiler.errors import UsageError
from edgec.compiler.passbase import Context, Pass, Spec, build, parse_spec, split_specs


@dataclass(frozen=True)
class Sample(Pass):
    """A pass with one option of each kind."""

    name: ClassVar[str] = "sample"
    count: int = 1
    ratio: float = 0.5
    deep: bool = False
    by: Literal["l1", "l2"] = "l1"
    keep: str | None = None
    axes: tuple[int, ...] = ()

    def run(self, model: ir.Model, ctx: Context) -> int:
        return 0


def make(text: str) -> Pass:
    return build(Sample, parse_spec(text))


def test_options_arrive_with_their_types() -> None:
    made = make("sample{count=3, ratio=1e-3,deep=true,by=l2,keep=conv*,axes=1+2}")
    assert made == Sample(3, 1e-3, True, "l2", "conv*", (1, 2))


def test_a_spec_is_printed_as_it_can_be_read() -> None:
    assert make("sample").spec == "sample"
    assert make("sample{count=1,by=l2}").spec == "sample{by=l2}"
    assert make(make("sample{count=3,by=l2}").spec) == make("sample{count=3,by=l2}")


@given(st.integers(-99, 99), st.floats(0, 1), st.booleans(), st.sampled_from(["l1", "l2"]))
def test_any_options_survive_printing_and_reading(count: int, ratio: float, deep: bool, by: str) -> None:
    made = Sample(count, ratio, deep, by)  # type: ignore[arg-type]
    assert make(made.spec) == made


def test_commas_inside_braces_do_not_split() -> None:
    assert split_specs("a, b{x=1,y=2},c:D{k=3}") == ["a", "b{x=1,y=2}", "c:D{k=3}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample{nope=1}", "no option 'nope'; its options: count, ratio, deep, by, keep, axes"),
        ("sample{count=x}", "option 'count' of pass 'sample': 'x' is not an integer"),
        ("sample{ratio=x}", "'x' is not a number"),
        ("sample{deep=maybe}", "'maybe' is not true or false"),
        ("sample{by=l3}", "'l3' is not one of l1, l2"),
        ("sample{count}", "'count' in pass spec 'sample{count}' is not of the form option=value"),
        ("sample{count=1,deep=true,count=2}", "option 'count' is given twice in pass spec"),
        ("sample{count=1", "is not a pass spec"),
        ("", "is not a pass spec"),
    ],
)
def test_a_wrong_spec_says_what_is_right(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("{", r"\{").replace("}", r"\}")):
        make(text)


@given(st.text(max_size=30))
def test_no_text_crashes_the_parser(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_spec(text), Spec)

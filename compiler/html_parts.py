"""Elements of HTML, escaped by construction (`tag` escapes what is not `Html`), and what a report repeats."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is HTML already."""


def tag(name: str, *inside: str, **attributes: str | bool | None) -> Html:
    """An element. Text inside, unless it is Html, and values are escaped. `class_` means class, `data_v` data-v."""
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v not in (None, False)}
    opened = "".join(f" {k}" if v is True else f' {k}="{html.escape(str(v))}"' for k, v in given.items())
    if name == "input":
        return Html(f"<input{opened}>")
    return Html(f"<{name}{opened}>{''.join(i if isinstance(i, Html) else html.escape(i) for i in inside)}</{name}>")


def number(x: Any) -> float:
    """A figure of the document; infinities and NaN are strings there."""
    return math.nan if x is None else float(x)


def card(label: str, big: str, small: str) -> Html:
    """A figure of the first screen: what it is, the figure, and a word on it."""
    inside = [tag("div", label, class_="label"), tag("div", big, class_="big"), tag("div", small, class_="small")]
    return tag("div", *inside, class_="card")


def bars(name: str, before: int | None, after: int | None, top: int, form: Callable[[int | None], str]) -> Html:
    """A row of the bar grid: name, the two bars, `top` wide at most, and the two values as `form` writes them."""
    drawn = [
        tag("div", class_="bar" + extra + ("" if n else " none"), style=f"width:{100 * (n or 0) / (top or 1):.2f}%")
        for n, extra in ((before, ""), (after, " after"))
    ]
    values = [tag("div", form(before), class_="soft"), tag("div", form(after))]
    return Html(tag("div", name, class_="name") + tag("div", *drawn) + tag("div", *values, class_="value"))


def cell(value: float, text: str) -> Html:
    """A right-aligned cell that sorts by `value`; an unknown one sorts first."""
    key = value if math.isfinite(value) else 1e300 if value > 0 else -1e300
    return tag("td", text, class_="n", data_v=repr(key))


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Html]) -> Html:
    """A table whose columns sort on a click. A head is its text and its class: "n" for numbers, else ""."""
    cells = [tag("th", tag("button", text, type="button"), class_=kind or None) for text, kind in heads]
    return tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows))


def definitions(rows: Iterable[tuple[str, str]]) -> Html:
    """A list of names and what they stand for."""
    return tag("dl", *(part for key, value in rows for part in (tag("dt", key), tag("dd", value))))

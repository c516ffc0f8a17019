"""What the terminal's reports are made of: tables without lines, headings with lines under them, and printing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

# For terminals and pipes whose encoding has none of these.
_ASCII = str.maketrans(
    {"→": "->", "✓": "+", "✗": "x", "×": "x", "·": "-", "…": "...", "≤": "<=", "≥": ">=", "–": "-", "’": "'"}
    | {"µ": "u", "│": "|", "├": "|", "└": "`", "█": "#"}
    | dict.fromkeys("▌▋▊▉", "#")
    | dict.fromkeys("▏▎▍", "")
)

OK, BAD, DIM, HEAD = "green", "bold red", "dim", "bold"


def counted(n: int, what: str) -> str:
    """`1 sample`, `2 samples`, `3 passes`."""
    plural = what if n == 1 else what + ("es" if what.endswith("s") else "s")
    return f"{n:,} {plural}"


def section(head: Text, lines: Sequence[str | Text]) -> Table:
    """A heading with indented lines under it; what is wrapped stays indented."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid()
    grid.add_column(overflow="fold")
    grid.add_row(head)
    for line in lines:
        grid.add_row(Padding(line if isinstance(line, Text) else Text(line), (0, 0, 0, 2)))
    return grid


def table_of(*columns: tuple[str, str, bool]) -> Table:
    """A table without lines: (heading, justification, whether long cells are folded) per column."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=DIM, show_edge=False)
    for heading, justify, long in columns:
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=not long)  # type: ignore[arg-type]
    return table


def emit(console: Console, parts: Sequence[RenderableType], indent: int = 0) -> None:
    """Print the parts; in an encoding that lacks our arrows and ticks, with something similar."""
    from rich.padding import Padding

    with console.capture() as held:
        for part in parts:
            console.print(Padding(part, (0, 0, 0, indent)) if part else "")
    text = "\n".join(line.rstrip(" ") for line in held.get().split("\n"))
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
    console.file.write(text)

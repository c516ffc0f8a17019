"""Pages that are one file: template, styles and scripts put together; no network, light and dark, safe to open."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).parent
ANALYSIS = ("core.js", "treemap.js", "plots.js", "layers.js", "overview.js")
"""The scripts that draw analyses, in the order in which they need each other."""


def page(title: str, body: str, data: Mapping[str, Any], scripts: Iterable[str], styles: Iterable[str]) -> str:
    """A whole page. `data`: id of a script element → the JSON value in it. Only `scripts`, by their hash, may run."""
    script = "".join(_read(name) for name in scripts)
    values = (f'<script type="application/json" id="{name}">{_json(value)}</script>' for name, value in data.items())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_read("page.html")).substitute(
        title=html.escape(title),
        script_hash=f"sha256-{digest}",
        style="".join(_read(name) for name in styles),
        body=body,
        data="\n".join(values),
        script=script,
    )


def _read(name: str) -> str:
    return FOLDER.joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    # Inside a script element only `</` and `<!--` mean something to HTML: no `<` stays as it is.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")

"""docs/cost.md says what the code does."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from edgec.compiler.cost import arithmetic, products

PAGE = Path(__file__).parents[2] / "docs" / "cost.md"


def test_the_formulas_of_fully_connected_networks_hold() -> None:
    failed, attempted = doctest.testfile(str(PAGE), module_relative=False)
    assert attempted >= 8
    assert failed == 0


def test_the_table_of_operators_is_the_code_s() -> None:
    table = PAGE.read_text().split("| operators | cost |\n|---|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == [f"| {', '.join(names)} | {says} |" for says, names in arithmetic.described()]


def test_the_derivation_adds_up() -> None:
    rows = PAGE.read_text().split("## ViT-B/16, by hand")[1].split("**all**")[0]
    tokens, width = 197, 768
    formulas = [
        196 * 768 * 3 * 16 * 16,
        12 * tokens * width * 3 * width,
        12 * tokens * tokens * width,
        12 * tokens * tokens * width,
        12 * tokens * width * width,
        12 * 2 * tokens * width * 3072,
        width * 1000,
    ]
    written = [int(n.replace(",", "")) for n in re.findall(r"\| ([\d,]+) \|$", rows, re.M)]
    assert written == formulas
    assert sum(formulas) == 17_563_828_224
    assert sum(formulas[1:5]) == 6_292_703_232


def test_every_operator_with_products_is_named() -> None:
    definition = PAGE.read_text().split("**MAC**")[1].split("\n\n")[0]
    for name in products.MACS:
        family = name.removeprefix("QLinear").removesuffix("Integer")
        assert family in definition or name.startswith("ai.onnx.ml::")

"""Large arrays in C order: the same numbers, whoever copies them."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.compiler.copying import BIG, in_rows


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int8, np.float64])
@pytest.mark.parametrize("shape", [(300, 411), (1, BIG), (3, 5), (BIG,), (7, 64, 256)])
def test_an_array_in_rows_holds_what_it_held(shape: tuple[int, ...], kind: type) -> None:
    array = (np.random.default_rng(0).standard_normal(shape) * 50).astype(kind)
    array.reshape(-1)[0] = np.nan if np.issubdtype(kind, np.floating) else 1
    for form in (array, array.T, array[::-1], array.T[1:], np.broadcast_to(array[:1], array.shape)):
        found = in_rows(form)
        assert found.flags.c_contiguous and found.dtype == kind
        np.testing.assert_array_equal(found, form)


def test_what_lies_in_rows_is_not_copied() -> None:
    array = np.zeros((300, 400), np.float16)
    assert np.shares_memory(in_rows(array), array)

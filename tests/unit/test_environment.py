"""What a report says of the process that made it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from edgec.compiler.environment import peak_bytes


def test_a_program_does_not_answer_for_the_memory_of_the_one_that_started_it() -> None:
    array = np.ones(40_000_000)
    code = "from edgec.compiler.environment import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert peak_bytes() > array.nbytes
    assert 0 < int(done.stdout) < array.nbytes


def test_the_peak_stays_after_memory_is_given_back() -> None:
    before = peak_bytes()
    array = np.ones(before // 8 + 5_000_000)
    after = peak_bytes()
    del array
    assert after > before
    assert peak_bytes() > 0.9 * after  # the kernel counts pages per processor and adds them up now and then

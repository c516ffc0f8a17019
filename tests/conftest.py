"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# Hypothesis counts seconds on the wall: a busy machine, or what the first example imports, must not fail a test. What
# has to be fast is tested by processor time.
settings.register_profile("edgec", deadline=None)
settings.load_profile("edgec")

"""Settings of all property tests: time is measured elsewhere, and a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("cema", deadline=None)
settings.register_profile("deep", deadline=None, max_examples=5000)  # pytest --hypothesis-profile=deep
settings.load_profile("cema")

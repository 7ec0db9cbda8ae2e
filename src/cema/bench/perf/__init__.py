"""``cema bench perf``: how fast and how small, each figure beside its target, everything compared in the same run."""

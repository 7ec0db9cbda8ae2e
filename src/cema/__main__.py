"""``python -m cema`` is ``cema``."""

from cema.cli.main import run

run()

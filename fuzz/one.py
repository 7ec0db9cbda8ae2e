"""One target under atheris: ``python fuzz/one.py NAME FOLDER [libFuzzer's options]``; ``run.py`` runs them all.

FOLDER holds the corpus, which begins with the target's seeds and is gone on with at the next run; a file in its place
is one input to be repeated. Ends with the first exception that is not one of the target's ``ALLOWED``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import atheris

TARGETS = Path(__file__).parent / "targets"
INSTRUMENTED = ["cema", "PIL", "tomllib"]
"""Whose branches guide the fuzzer: ours, and the readers in Python that our decoders rely on."""


def load(name: str) -> ModuleType:
    """A target by its file name, with all that it imports under instrumentation."""
    spec = importlib.util.spec_from_file_location(name, TARGETS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with atheris.instrument_imports(include=INSTRUMENTED):
        spec.loader.exec_module(module)
    return module


def main(name: str, inputs: Path, *options: str) -> None:
    target = load(name)
    if not inputs.is_file():
        inputs.mkdir(parents=True, exist_ok=True)
        for seed in target.SEEDS:
            (inputs / hashlib.sha256(seed).hexdigest()).write_bytes(seed)

    def one_input(data: bytes) -> None:
        with contextlib.suppress(target.ALLOWED):
            target.run(data)

    atheris.Setup([sys.argv[0], str(inputs), *options], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])

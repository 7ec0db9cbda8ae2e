"""What users bring to the benchmark as ``module:name``: a method, a data set, a model; from the current folder, too."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cema.errors import ConfigError


def load_own(path: str) -> Any:
    """The object at ``module:name``. Raises ConfigError, whatever the module does when it is imported."""
    module, _, name = path.partition(":")
    try:
        with _current_folder():
            return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be imported: {type(error).__name__}: {error}",
            hint="expected module:name, importable or in the current folder",
        ) from error


def code_digest(names: Iterable[str]) -> str:
    """Digest of the files of those ``module:name`` among the names, empty if there are none: a finished cell is not
    taken for one of code that has changed since. What these files import is not looked at."""
    files = [_file_of(name.partition(":")[0]) for name in names if ":" in name]
    contents = [file.read_bytes() for file in files if file is not None]
    return hashlib.sha256(b"".join(contents)).hexdigest() if contents else ""


def _file_of(module: str) -> Path | None:
    """None for one that cannot be found: it is named when it is loaded."""
    try:
        with _current_folder():
            spec = importlib.util.find_spec(module)
    except Exception:  # whatever a parent package does when it is imported
        return None
    file = Path(spec.origin) if spec is not None and spec.origin is not None else None
    return file if file is not None and file.is_file() else None


@contextmanager
def _current_folder() -> Iterator[None]:
    """An installed command does not look there by itself."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)

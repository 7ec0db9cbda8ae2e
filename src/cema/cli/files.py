"""Files that commands write. With secrets in them, only their owner may read them, and none is ever replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cema.errors import ConfigError


@contextmanager
def private_file(out: str) -> Iterator[Path | None]:
    """A new file that only its owner can read; removed again if the block fails. None for standard output."""
    if out == "-":
        yield None
        return
    path = Path(out)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise ConfigError(
            f"cannot create {path}: {error.strerror}", hint="choose another name; an existing file is never replaced"
        ) from error
    try:
        yield path
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise


def write_file(path: Path, data: bytes) -> None:
    """A file without secrets; an existing one is replaced. Raises ConfigError."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be written: {error.strerror}") from error

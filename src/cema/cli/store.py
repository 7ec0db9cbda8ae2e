"""What the administrative commands share: ``-c cema.toml``, and the store behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from cema.cloud.store import open_store
from cema.cloud.store.base import Store
from cema.config import ServeConfig, load_serve

F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """``-c cema.toml``, as the parsed configuration ``config``."""

    def load(_context: click.Context, _parameter: click.Parameter, value: Path) -> ServeConfig:
        return load_serve(value)

    return click.option(
        "-c", "--config", required=True, type=click.Path(path_type=Path), callback=load, help="The cloud's cema.toml."
    )(command)


@contextmanager
def opened(config: ServeConfig) -> Iterator[Store]:
    """The store of a configuration, closed afterwards."""
    store, _ = open_store(config)
    try:
        yield store
    finally:
        store.close()

"""What the administrative commands share: ``-c cema.toml``, and the store behind it.

The store is imported on use: ``cema update import`` runs on devices, where its libraries do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cema.cli.output import json_option
from cema.config import ServeConfig
from cema.config_files import load_serve

if TYPE_CHECKING:
    from cema.cloud.store.base import BlobStore, Store

F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """``-c cema.toml``, as the parsed configuration ``config``."""

    def load(_context: click.Context, _parameter: click.Parameter, value: Path) -> ServeConfig:
        return load_serve(value)

    return click.option(
        "-c", "--config", required=True, type=click.Path(path_type=Path), callback=load, help="The cloud's cema.toml."
    )(command)


@contextmanager
def opened_both(config: ServeConfig) -> Iterator[tuple[Store, BlobStore]]:
    """Store and blobs of a configuration, closed afterwards."""
    from cema.cloud.store import open_store

    store, blobs = open_store(config)
    try:
        yield store, blobs
    finally:
        store.close()


@contextmanager
def opened(config: ServeConfig) -> Iterator[Store]:
    """The store of a configuration, closed afterwards."""
    with opened_both(config) as (store, _):
        yield store


def add_switch(commands: click.Group, switch: Callable[[ServeConfig, str, bool, bool], None], **texts: str) -> None:
    """Commands ``pause NAME`` and ``resume NAME``. switch: is given configuration, name, whether to pause, and whether
    to answer in JSON. texts: what each says of itself."""
    for command, text in texts.items():

        @commands.command(command, help=text)
        @config_option
        @click.argument("name")
        @json_option
        def run(config: ServeConfig, name: str, as_json: bool, paused: bool = command == "pause") -> None:
            switch(config, name, paused, as_json)

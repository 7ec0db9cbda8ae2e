"""``cema update``: the published versions of a group, read from the store, and the way back to one of them."""

from __future__ import annotations

from typing import Any

import click

from cema.cli.output import emit_json, json_option
from cema.cli.store import config_option, opened
from cema.cloud.keys import signing_key
from cema.cloud.rollback import roll_back
from cema.cloud.store import open_store
from cema.cloud.store.rows import now_ms, update_as_dict
from cema.config import ServeConfig


@click.group()
def update() -> None:
    """List, show and take back published versions."""


@update.command("list")
@config_option
@click.option("--group", required=True, help="Group whose versions are shown.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="Newest versions to show.")
@json_option
def list_updates(config: ServeConfig, group: str, limit: int, as_json: bool) -> None:
    """Show a group's versions, newest first."""
    with opened(config) as store:
        found = [update_as_dict(row) for row in store.updates(group, limit)]
    if as_json:
        emit_json({"group": group, "updates": found})
        return
    for row in found:
        click.echo(
            f"{row['version']}  {row['created']}  {row['method']}  {row['size_bytes']} bytes  {_origin(row)}  "
            f"{row['content_id'][:12]}"
        )


def _origin(row: dict[str, Any]) -> str:
    if row["rollback_of"] is None:
        return f"{row['samples']} samples"
    return f"rollback of {row['rollback_of']} to {row['restores'] or 'the source'}"


@update.command()
@config_option
@click.option("--group", required=True, help="Group of the version.")
@click.argument("version", type=click.IntRange(1))
@json_option
def show(config: ServeConfig, group: str, version: int, as_json: bool) -> None:
    """Show one version: its content, its figures and the samples it learned from."""
    with opened(config) as store:
        row = update_as_dict(store.update(group, version))
        row["sample_ids"] = [sample_id.hex() for sample_id in store.update_samples(group, version)]
    if as_json:
        emit_json({"group": group, **row})
        return
    for key, value in row.items():
        click.echo(f"{key:12} {', '.join(value) if isinstance(value, list) else value}")


@update.command()
@config_option
@click.option("--group", required=True, help="Group that goes back.")
@click.option("--to", required=True, type=click.IntRange(0), help="Version to restore, 0 = the source.")
@json_option
def rollback(config: ServeConfig, group: str, to: int, as_json: bool) -> None:
    """Publish an older version again, as a new one: devices take it, and the group goes on learning from there."""
    store, blobs = open_store(config)
    try:
        row = update_as_dict(roll_back(store, blobs, group, to, key=signing_key(config), now_ms=now_ms()))
    finally:
        store.close()
    if as_json:
        emit_json({"group": group, **row})
        return
    click.echo(
        f"group {group}: version {row['version']} takes back {row['rollback_of']} and restores {to or 'the source'}"
    )

"""``cema update``: the published versions of a group, read from the store."""

from __future__ import annotations

import click

from cema.cli.output import emit_json, json_option
from cema.cli.store import config_option, opened
from cema.cloud.store.rows import update_as_dict
from cema.config import ServeConfig


@click.group()
def update() -> None:
    """List and show published versions."""


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
        origin = f"rollback of {row['rollback_of']}" if row["rollback_of"] else f"{row['samples']} samples"
        click.echo(
            f"{row['version']}  {row['created']}  {row['method']}  {row['size_bytes']} bytes  {origin}  "
            f"{row['content_id'][:12]}"
        )


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

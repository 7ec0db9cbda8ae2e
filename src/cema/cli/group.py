"""``cema group``: the fleets of this cloud, read from the store, and the switch of each."""

from __future__ import annotations

import click

from cema.cli.output import emit_json, json_option
from cema.cli.store import add_switch, config_option, opened
from cema.cloud.store.rows import group_as_dict, now_ms
from cema.config import ServeConfig


@click.group()
def group() -> None:
    """List and show groups, switch their adaptation off and on."""


@group.command("list")
@config_option
@json_option
def list_groups(config: ServeConfig, as_json: bool) -> None:
    """Show all groups with version and queue."""
    with opened(config) as store:
        found = [group_as_dict(row) for row in store.groups()]
    if as_json:
        emit_json({"groups": found})
        return
    for row in found:
        click.echo(
            f"{row['group']}  version {row['latest_version']}  pending {row['pending']}  "
            f"images {row['samples_seen']}  adaptation {row['adaptation']}{'  paused' if row['paused'] else ''}"
        )


@group.command()
@config_option
@click.argument("name")
@json_option
def show(config: ServeConfig, name: str, as_json: bool) -> None:
    """Show one group with its devices."""
    with opened(config) as store:
        row = group_as_dict(store.group(name))
        row["devices"] = [device.device_id for device in store.devices(name)]
    if as_json:
        emit_json(row)
        return
    for key, value in row.items():
        click.echo(f"{key:16} {', '.join(value) if isinstance(value, list) else value}")


def _switch(config: ServeConfig, name: str, paused: bool, as_json: bool) -> None:
    with opened(config) as store:
        row = group_as_dict(store.pause(name, paused, now_ms()))
    if as_json:
        emit_json(row)
        return
    since = f", paused since {row['paused']}" if row["paused"] else ""
    click.echo(f"group {name}: adaptation is {row['adaptation']}{since}")


add_switch(
    group,
    _switch,
    pause="Switch a group off: its devices go back to the source and upload nothing, from their next poll on.",
    resume="Switch a group on again, as far as its configuration lets it.",
)

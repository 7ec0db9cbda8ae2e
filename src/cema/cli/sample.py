"""``cema sample``: what devices uploaded. Works on the cloud's store."""

from __future__ import annotations

import click

from cema.cli.output import emit_json, json_option
from cema.cli.store import config_option, opened
from cema.config import ServeConfig


@click.group()
def sample() -> None:
    """Delete what devices uploaded."""


@sample.command()
@config_option
@click.option("--device", required=True, help="Device whose samples are deleted.")
@click.option("--group", help="Only those of this group; default: all.")
@json_option
def delete(config: ServeConfig, device: str, group: str | None, as_json: bool) -> None:
    """Delete a device's samples for good; no worker trains on them any more, and versions that did say so."""
    with opened(config) as store:
        counts = store.delete_samples(device, group)
    if as_json:
        emit_json({"device_id": device, "deleted": counts})
        return
    by_group = ", ".join(f"{count} of group {name}" for name, count in counts.items())
    click.echo(f"samples of device {device} deleted: {by_group or 'there were none'}")

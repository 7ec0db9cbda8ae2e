"""``cema sample``: what devices uploaded. Works on the cloud's store."""

from __future__ import annotations

import click

from cema.cli.output import emit_json, json_option
from cema.cli.store import config_option, opened
from cema.config import ServeConfig
from cema.errors import ConfigError


@click.group()
def sample() -> None:
    """Delete what devices uploaded, and change the key that it is encrypted with."""


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


@sample.command()
@config_option
@json_option
def rotate_key(config: ServeConfig, as_json: bool) -> None:
    """Add a key that pictures are encrypted with from the next start of the service on; older ones stay readable."""
    from cema.cloud.store import sample_keys

    keys = sample_keys(config)
    if not keys.seals:
        raise ConfigError("expected server.encrypt_samples = true in cema.toml, it is false", hint="switch it on first")
    name = keys.add()
    if as_json:
        emit_json({"key": name, "file": str(keys.path)})
    else:
        click.echo(f"sample key {name} added to {keys.path}; restart the service to use it")

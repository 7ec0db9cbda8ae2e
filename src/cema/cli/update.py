"""``cema update``: the published versions of a group, the way back to one of them, and their way as a file.

All but ``import`` work on the cloud's store. ``import`` runs on devices: the cloud's libraries are imported on use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cema.cli.files import write_file
from cema.cli.output import emit_json, json_option
from cema.cli.store import config_option, opened, opened_both
from cema.config import ServeConfig
from cema.config_files import load_device


@click.group()
def update() -> None:
    """List, show, take back and carry published versions."""


@update.command("list")
@config_option
@click.option("--group", required=True, help="Group whose versions are shown.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="Newest versions to show.")
@json_option
def list_updates(config: ServeConfig, group: str, limit: int, as_json: bool) -> None:
    """Show a group's versions, newest first."""
    from cema.cloud.store.rows import update_as_dict

    with opened(config) as store:
        found = [update_as_dict(row) for row in store.updates(group, limit)]
    if as_json:
        emit_json({"group": group, "updates": found})
        return
    for row in found:
        click.echo(
            f"{row['version']}  {row['created']}  {row['method']}  {row['size_bytes']} bytes  {_origin(row)}  "
            f"{row['content_id'][:12]}{_marks(row)}"
        )


def _origin(row: dict[str, Any]) -> str:
    if row["rollback_of"] is None:
        return f"{row['samples']} samples"
    return f"rollback of {row['rollback_of']} to {row['restores'] or 'the source'}"


def _marks(row: dict[str, Any]) -> str:
    return f"  learned from {row['deleted_samples']} deleted samples" if row["deleted_samples"] else ""


@update.command()
@config_option
@click.option("--group", required=True, help="Group of the version.")
@click.argument("version", type=click.IntRange(1))
@json_option
def show(config: ServeConfig, group: str, version: int, as_json: bool) -> None:
    """Show one version: its content, its figures and the samples it learned from."""
    from cema.cloud.store.rows import update_as_dict

    with opened(config) as store:
        row = update_as_dict(store.update(group, version))
        row["sample_ids"] = [sample_id.hex() for sample_id in store.update_samples(group, version)]
    if as_json:
        emit_json({"group": group, **row})
        return
    for key, value in row.items():
        click.echo(f"{key:15} {', '.join(value) if isinstance(value, list) else value}")


@update.command()
@config_option
@click.option("--group", required=True, help="Group that goes back.")
@click.option("--to", required=True, type=click.IntRange(0), help="Version to restore, 0 = the source.")
@json_option
def rollback(config: ServeConfig, group: str, to: int, as_json: bool) -> None:
    """Publish an older version again, as a new one: devices take it, and the group goes on learning from there."""
    from cema.cloud.keys import signing_key
    from cema.cloud.rollback import roll_back
    from cema.cloud.store.rows import now_ms, update_as_dict

    with opened_both(config) as (store, blobs):
        row = update_as_dict(roll_back(store, blobs, group, to, key=signing_key(config), now_ms=now_ms()))
    if as_json:
        emit_json({"group": group, **row})
        return
    click.echo(
        f"group {group}: version {row['version']} takes back {row['rollback_of']} and restores {to or 'the source'}"
    )


@update.command("export")
@config_option
@click.option("--group", required=True, help="Group of the version.")
@click.option("--version", type=click.IntRange(1), help="Version to export; default: the latest.")
@click.option("--bundle", "with_bundle", is_flag=True, help="Add the group's bundle, for devices that have not got it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@json_option
def export_file(
    config: ServeConfig, group: str, version: int | None, with_bundle: bool, out: Path, as_json: bool
) -> None:
    """Write a version to a file, for devices that the cloud cannot reach."""
    from cema.cloud.keys import signing_key
    from cema.cloud.update_export import export_update

    with opened_both(config) as (store, blobs):
        row, data = export_update(store, blobs, group, version, with_bundle=with_bundle, key=signing_key(config))
    write_file(out, data)
    if as_json:
        emit_json({"group": group, "version": row.version, "fingerprint": row.fingerprint, "bundle": with_bundle,
                   "file": str(out), "size_bytes": len(data)})  # fmt: skip
    else:
        click.echo(f"version {row.version} of group {group} is in {out} ({len(data)} bytes): 'cema update import' it")


@update.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-c", "--config", required=True, type=click.Path(path_type=Path), help="The device's device.toml.")
@json_option
def import_file(file: Path, config: Path, as_json: bool) -> None:
    """On a device whose agent is stopped: verify an exported file and take it over."""
    from cema.edge.carried import import_update
    from cema.wire.update_file import read_update_file

    device = load_device(config)
    done = import_update(device, read_update_file(file))
    manifest = done.manifest
    if as_json:
        emit_json({"device_id": device.device_id, "group": manifest.group, "version": manifest.version,
                   "fingerprint": manifest.fingerprint, "rollback_of": manifest.rollback_of,
                   "new_bundle": done.new_bundle, "changed": done.changed})  # fmt: skip
        return
    with_bundle = " with its bundle" if done.new_bundle else ""
    text = f"has taken over version {manifest.version}{with_bundle}" if done.changed else "has this version already"
    click.echo(f"device {device.device_id} {text}")

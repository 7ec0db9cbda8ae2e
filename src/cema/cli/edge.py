"""``cema edge``: run the agent on a folder or a stream of image files, look at what it reports."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click
import msgspec

from cema.cli.output import emit_json, json_option
from cema.config import DeviceConfig
from cema.config_files import load_device
from cema.edge.agent import EdgeAgent
from cema.edge.slots import STATUS_FILE
from cema.errors import CemaError, ConfigError, ImageError, NotFoundError
from cema.types import Prediction

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@click.group()
def edge() -> None:
    """The device: predict, and stay adapted."""


@edge.command()
@click.option("--device", type=click.Path(dir_okay=False), help="device.toml, as written by 'cema device enrol'.")
@click.option("--cloud", help="Address of the cloud, instead of --device.")
@click.option("--group", help="Group of this device.")
@click.option("--device-id", help="Name of this device.")
@click.option("--token-file", type=click.Path(dir_okay=False), help="File with the token (or CEMA_TOKEN).")
@click.option("--public-key-file", type=click.Path(dir_okay=False), help="File with the cloud's public key.")
@click.option("--insecure", is_flag=True, help="Accept unsigned updates: only on a trusted link.")
@click.option("--allow-plain-http", is_flag=True, help="Accept http:// beyond this machine: only on an encrypted link.")
@click.option("--images", required=True, help="Folder of images, or - for file names on standard input.")
@click.option("--state", type=click.Path(file_okay=False), help="State folder.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Images per prediction.")
@click.option("--settle", "settle_s", type=click.FloatRange(0, 3600), default=5.0, show_default=True,
              help="Seconds to wait at the end for the outbox to drain.")  # fmt: skip
@json_option
def run(
    device: str | None, cloud: str | None, group: str | None, device_id: str | None, token_file: str | None,
    public_key_file: str | None, insecure: bool, allow_plain_http: bool, images: str, state: str | None, batch: int,
    settle_s: float, as_json: bool,
) -> None:  # fmt: skip
    """Predict images; one line of JSON for each."""
    given = (cloud, group, device_id, token_file, public_key_file, insecure)
    config = load_device(device) if device else _config(*given)
    if allow_plain_http:
        config = msgspec.structs.replace(config, uplink=msgspec.structs.replace(config.uplink, allow_plain_http=True))
    if state:
        config = msgspec.structs.replace(config, state_dir=state)
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with EdgeAgent(config) as agent:
            for chunk in _chunks(_paths(images), batch):
                _predict(agent, chunk)
            agent.settle(settle_s)
    except KeyboardInterrupt:
        return  # asked to stop: the agent is closed, what was selected lies in the outbox
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@edge.command()
@click.option("--state", required=True, type=click.Path(file_okay=False), help="State folder of the agent.")
@json_option
def status(state: str, as_json: bool) -> None:
    """What the agent last reported."""
    try:
        report = msgspec.json.decode((Path(state) / STATUS_FILE).read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError) as error:
        raise NotFoundError(f"expected {STATUS_FILE} in {state}: {error}", hint="has an agent run there?") from error
    if as_json:
        emit_json(report)
        return
    for name, value in report.items():
        click.echo(f"{name:16} {value}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _config(
    cloud: str | None, group: str | None, device_id: str | None, token_file: str | None, key_file: str | None,
    insecure: bool,
) -> DeviceConfig:  # fmt: skip
    if not cloud or not group:
        raise ConfigError("expected --device, or --cloud with --group", hint="cema edge run --help")
    key = None
    if key_file:
        try:
            key = Path(key_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"expected a public key in {key_file}: {error}") from error
    fields = {
        "url": cloud, "group": group, "device_id": device_id or "device", "token_file": token_file,
        "public_key": key, "verify_updates": not insecure,
    }  # fmt: skip
    try:
        return msgspec.convert(fields, DeviceConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"expected usable options: {error}") from error


def _paths(images: str) -> Iterator[Path]:
    if images == "-":
        yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        return
    folder = Path(images)
    if not folder.is_dir():
        raise ConfigError(f"expected a folder of images, got {images}")
    yield from sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _chunks(paths: Iterator[Path], size: int) -> Iterator[list[Path]]:
    chunk: list[Path] = []
    for path in paths:
        chunk.append(path)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _predict(agent: EdgeAgent, paths: list[Path]) -> None:
    lines: dict[Path, dict[str, object]] = {}
    good: list[tuple[Path, bytes]] = []
    for path in paths:
        try:
            good.append((path, path.read_bytes()))
        except OSError as error:
            lines[path] = _error_line(path, ImageError(f"expected a readable file: {error.strerror}"))
    while good:
        try:
            predictions = agent.predict([data for _, data in good])
        except ImageError as error:
            bad, _ = good.pop(_index(error))
            lines[bad] = _error_line(bad, error)
            continue
        lines.update((path, _line(path, said, agent)) for (path, _), said in zip(good, predictions, strict=True))
        break
    for path in paths:
        emit_json(lines[path])


def _index(error: ImageError) -> int:
    index = error.values.get("index")
    assert isinstance(index, int)
    return index


def _line(path: Path, said: Prediction, agent: EdgeAgent) -> dict[str, object]:
    return {
        "image": str(path), "label": said.label, "class": agent.classes[said.label], "probability": said.probability,
        "entropy": said.entropy, "version": said.version, "selected": said.selected,
    }  # fmt: skip


def _error_line(path: Path, error: CemaError) -> dict[str, object]:
    return {"image": str(path), "error": {"code": error.code, "message": error.message, "hint": error.hint}}

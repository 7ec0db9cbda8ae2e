"""A version on foot: exported from the cloud's store, imported on a device whose agent is stopped, by the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cema.cli.main import main
from cema.errors import (
    BaseMismatchError,
    CemaError,
    ConfigError,
    ConflictError,
    MessageError,
    NotFoundError,
    SignatureError,
    SizeLimitError,
    UpdateContentError,
    UpdateError,
)
from cema.wire import update_file
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.update_file import UpdateFile, read_update_file

NOWHERE = "http://127.0.0.1:1"
# what a device has not got: importing any of it fails there
EDGE_ONLY = """
import sys
for name in ("torch", "onnx", "onnxscript", "fastapi", "sqlalchemy", "alembic", "prometheus_client", "uvicorn"):
    sys.modules[name] = None
from cema.cli.main import run
run()
"""


def cema(*arguments: object) -> Any:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False, standalone_mode=False)
    return json.loads(done.stdout)


class Carrier:
    """Whoever walks between the cloud and the device cam with a stick."""

    def __init__(self, fleet: Any) -> None:
        self.fleet, self.folder = fleet, fleet.folder
        self.cloud, self.device = self.folder / "cema.toml", self.folder / "device.toml"
        self.file = self.folder / "stick.cema"
        self.cloud.write_text("[server]\nport = 0\ndata_dir = '.'\n")
        self.configure()

    def configure(self, **changes: Any) -> None:
        config = self.fleet.configured(url=NOWHERE, **changes)
        values = {name: getattr(config, name) for name in ("url", "group", "device_id", "token", "public_key")}
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
        self.device.write_text("\n".join([*lines, "state_dir = 'state'", "[runtime]", "threads = 1"]) + "\n")

    def export(self, *options: object) -> Any:
        return cema("update", "export", "-c", self.cloud, "--group", "g", "--out", self.file, *options)

    def take_over(self) -> Any:
        return cema("update", "import", self.file, "-c", self.device)

    def change(self, **changes: Any) -> None:
        """Write another file in the place of the exported one."""
        content = msgspec.structs.replace(read_update_file(self.file), **changes)
        self.file.write_bytes(msgspec.msgpack.encode(content))

    def state(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "state").glob("*") if path.is_file()}

    def refused(self, kind: type[CemaError], text: str) -> CemaError:
        before = self.state()
        with pytest.raises(kind, match=text) as caught:
            self.take_over()
        after = self.state()
        after.pop("lock", None)
        before.pop("lock", None)
        assert after == before, "a refused file changes nothing"
        return caught.value

    def running(self) -> int:
        """The version with which the device starts, far from any network."""
        agent = self.fleet.device(url=NOWHERE)
        version = agent.predict(self.fleet.images[:1])[0].version
        agent.close()
        return int(version)


@pytest.fixture
def carrier(fleet: Any) -> Carrier:
    return Carrier(fleet)


def test_a_device_without_a_network_starts_with_what_was_carried_to_it(carrier: Carrier) -> None:
    told = carrier.export("--bundle")
    assert (told["version"], told["bundle"], told["size_bytes"]) == (3, True, carrier.file.stat().st_size)
    done = carrier.take_over()
    assert (done["version"], done["new_bundle"], done["changed"]) == (3, True, True)
    agent = carrier.fleet.device(url=NOWHERE)
    expected = carrier.fleet.said_with(carrier.fleet.fetched(3).parameters)
    assert [said.probability for said in agent.predict(carrier.fleet.images)] == expected


def test_with_the_bundle_at_hand_the_update_alone_is_enough(carrier: Carrier) -> None:
    carrier.export("--bundle", "--version", 1)
    carrier.take_over()
    carrier.export("--version", 2)
    assert carrier.file.stat().st_size < 4096
    assert carrier.take_over() == {
        "device_id": "cam", "group": "g", "version": 2, "rollback_of": None, "new_bundle": False, "changed": True,
        "fingerprint": carrier.fleet.bundle.manifest.fingerprint,
    }  # fmt: skip
    assert carrier.running() == 2


def test_the_same_file_again_changes_nothing(carrier: Carrier) -> None:
    carrier.export("--bundle")
    carrier.take_over()
    before = carrier.state()
    done = carrier.take_over()
    assert (done["version"], done["new_bundle"], done["changed"]) == (3, False, False)
    assert carrier.state() == before


def test_while_the_agent_runs_the_folder_is_its_own(carrier: Carrier) -> None:
    carrier.export("--bundle")
    agent = carrier.fleet.device()
    with pytest.raises(ConflictError, match="agent of device 'cam' is running") as caught:
        carrier.take_over()
    assert "stop it" in caught.value.hint
    agent.close()
    carrier.take_over()
    assert carrier.running() == 3


def test_an_older_version_is_refused_and_a_rollback_is_not(carrier: Carrier) -> None:
    carrier.export("--bundle")
    carrier.take_over()
    carrier.export("--version", 2)
    carrier.refused(UpdateContentError, "expected a version above 3, got 2")
    carrier.fleet.back(2)
    carrier.export()
    assert carrier.take_over()["rollback_of"] == 3
    assert carrier.running() == 4
    carrier.fleet.publish(5)
    carrier.export()
    carrier.take_over()
    carrier.export("--version", 4)
    carrier.refused(UpdateContentError, "expected a version above 5, got 4")
    assert carrier.running() == 5


def test_an_old_version_does_not_come_back_with_its_old_bundle(
    carrier: Carrier, make_tiny_bundle: Callable[[int], Bundle]
) -> None:
    carrier.export("--bundle")
    old = carrier.file.read_bytes()
    carrier.take_over()
    fleet = carrier.fleet
    fleet.bundle = make_tiny_bundle(9)
    blob = fleet.service.blobs.put(encode_bundle(fleet.bundle))
    fleet.service.store.put_group("g", fleet.bundle.manifest.fingerprint, blob, "on", 1)
    fleet.publish(4)
    carrier.export()
    assert "--bundle" in carrier.refused(BaseMismatchError, "is for bundle").hint
    carrier.export("--bundle")
    done = carrier.take_over()
    assert (done["version"], done["new_bundle"]) == (4, True)
    assert carrier.running() == 4
    carrier.file.write_bytes(old)
    carrier.refused(UpdateContentError, "expected a version above 4, got 3")


def test_what_the_clouds_key_has_not_signed_is_not_parsed(carrier: Carrier, monkeypatch: pytest.MonkeyPatch) -> None:
    carrier.export("--bundle")
    good = read_update_file(carrier.file)
    for name in ("update", "bundle"):
        parsed: list[object] = []
        with monkeypatch.context() as watched:
            watched.setattr("cema.wire.update.deserialize", parsed.append)
            data = bytearray(getattr(good, name))
            data[len(data) // 2] ^= 1
            carrier.change(update=good.update, bundle=good.bundle)
            carrier.change(**{name: bytes(data)})
            carrier.refused(SignatureError, "not from the key")
        assert parsed == []
    for field in ("signature", "bundle_signature"):
        carrier.file.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(good, **{field: ""})))
        carrier.refused(SignatureError, "64 bytes")
    other = msgspec.structs.replace(good, signature=good.bundle_signature)
    carrier.file.write_bytes(msgspec.msgpack.encode(other))
    carrier.refused(SignatureError, "not from the key")


def test_a_file_is_verified_even_by_a_device_that_trusts_its_network(carrier: Carrier) -> None:
    carrier.export("--bundle")
    carrier.configure(public_key=None)
    with carrier.device.open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write("verify_updates = false\n" + text)
    carrier.refused(ConfigError, "expected public_key in device.toml")


def test_the_file_of_another_group_is_refused(carrier: Carrier) -> None:
    carrier.export("--bundle")
    carrier.configure(group="other")
    carrier.refused(UpdateContentError, "expected an update for group other, got 'g'")


def test_a_device_that_moved_to_another_group_is_not_held_back_by_the_versions_of_the_old_one(
    carrier: Carrier,
) -> None:
    carrier.export("--bundle")
    carrier.take_over()
    carrier.fleet.device(url=NOWHERE, group="before").close()
    carrier.export("--version", 1)
    assert carrier.take_over()["version"] == 1
    assert carrier.running() == 1


def test_a_damaged_state_folder_is_repaired_by_a_file(carrier: Carrier) -> None:
    carrier.export("--bundle")
    carrier.take_over()
    for path in (carrier.folder / "state").glob("[bs][ul]*"):
        path.write_bytes(b"damaged")
    done = carrier.take_over()
    assert (done["version"], done["new_bundle"], done["changed"]) == (3, True, True)
    assert carrier.running() == 3


def test_without_any_bundle_there_is_nothing_to_update(carrier: Carrier) -> None:
    carrier.export()
    assert "--bundle" in carrier.refused(NotFoundError, "expected a bundle").hint


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"", MessageError, "msgpack UpdateFile"),
        (b"not a file of ours", MessageError, "msgpack UpdateFile"),
        (msgspec.msgpack.encode(UpdateFile(update=b"", signature="", protocol=2)), UpdateError, "protocol 1, got 2"),
        (msgspec.msgpack.encode(UpdateFile(update=b"u" * 5000, signature="")), SizeLimitError, "at most 4096"),
    ],
    ids=["empty", "garbage", "later protocol", "too large"],
)
def test_a_file_that_is_none_is_named(
    carrier: Carrier, data: bytes, kind: type[CemaError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_file, "MAX_FILE_BYTES", 4096)
    carrier.file.write_bytes(data)
    carrier.refused(kind, text)


def test_a_file_that_is_not_there_is_named(carrier: Carrier) -> None:
    carrier.refused(ConfigError, "No such file")


def test_what_cannot_be_exported_is_named(carrier: Carrier) -> None:
    with pytest.raises(NotFoundError, match="no version 9"):
        carrier.export("--version", 9)
    with pytest.raises(NotFoundError, match="has no version yet"):
        cema("update", "export", "-c", carrier.cloud, "--group", "other", "--out", carrier.file)
    store = carrier.fleet.service.store
    store.put_group("g", "another", store.group("g").bundle_blob, "on", 1)
    with pytest.raises(ConflictError, match="is for bundle"):
        carrier.export("--bundle")
    assert not carrier.file.exists()
    carrier.export()  # for devices that still have the old one
    with pytest.raises(ConfigError, match="cannot be written"):
        cema("update", "export", "-c", carrier.cloud, "--group", "g", "--out", carrier.folder)


def test_a_device_imports_without_the_clouds_libraries(carrier: Carrier) -> None:
    carrier.export("--bundle")

    def on_the_device(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", EDGE_ONLY, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = on_the_device("update", "import", carrier.file, "-c", carrier.device)
    assert (done.returncode, done.stdout) == (0, "device cam has taken over version 3 with its bundle\n")
    again = on_the_device("update", "import", carrier.file, "-c", carrier.device)
    assert again.stdout == "device cam has this version already\n"
    listed = on_the_device("update", "list", "-c", carrier.cloud, "--group", "g")
    assert listed.returncode == 10
    assert "pip install 'cema[cloud]'" in listed.stderr
    assert on_the_device("update", "--help").returncode == 0

"""``cema serve`` as a real process, and the administrative commands on its store."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import trustme
import urllib3

from cema.cloud.store import open_store
from cema.cloud.store.base import NewUpdate, StepCommit
from cema.config_files import load_device, load_serve
from cema.errors import DamagedError, StorageError
from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.messages import SampleBatch

COMMAND = [sys.executable, "-c", "from cema.cli.main import run; run()"]


@pytest.fixture
def config(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    (tmp_path / "tiny.bundle").write_bytes(encode_bundle(tiny_bundle))
    return write_config(tmp_path)


def write_config(folder: Path, server: str = "", processes: int = 0) -> Path:
    path = folder / "cema.toml"
    path.write_text(
        f"[server]\nport = 0\ndata_dir = 'data'\n{server}\n[worker]\nprocesses = {processes}\n"
        "[groups.g]\nbundle = 'tiny.bundle'\nedge_model = 'digits-edge'\nmethod = 'bn'\n"
    )
    return path


def cema(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def cema_json(*arguments: str | Path) -> Any:
    done = cema(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


class Serve:
    """A running ``cema serve``; killed at the end whatever happened."""

    def __init__(self, config: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "-c", str(config), *options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], 120)
        assert readable, "the service did not start in time"
        self.first_line = self.process.stdout.readline()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Serve:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def served(config: Path) -> Iterator[Serve]:
    with Serve(config, "--json") as made:
        yield made


def test_serve_answers_as_soon_as_it_says_so_and_stops_cleanly(config: Path, served: Serve) -> None:
    hello = json.loads(served.first_line)
    assert hello["groups"] == ["g"]
    device = config.parent / "device.toml"
    cema_json("device", "enrol", "-c", config, "--group", "g", "--name", "cam", "--url", hello["url"], "--out", device)
    identity = load_device(device)
    headers = {"Authorization": f"Bearer {identity.token}"}
    with urllib3.PoolManager() as http:
        bundle = http.request("GET", f"{hello['url']}/v1/groups/g/bundle", headers=headers, timeout=30)
    assert identity.public_key is not None
    signing.verify(bundle.data, bundle.headers["cema-signature"], identity.public_key)
    assert served.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_behind(config: Path, number: int) -> None:
    write_config(config.parent, processes=2)
    with Serve(config) as served:
        assert served.first_line.startswith("cema serving 1 groups on http://127.0.0.1:")
        workers = workers_of(served, 2)
        assert served.stop(number) == 0
        assert not [worker for worker in workers if worker.is_running()]


def test_workers_end_when_the_service_is_killed(config: Path) -> None:
    write_config(config.parent, processes=1)
    with Serve(config) as served:
        workers = workers_of(served, 1)
        served.stop(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive


def workers_of(served: Serve, count: int) -> list[Any]:
    for _ in range(100_000):
        children: list[Any] = psutil.Process(served.process.pid).children()
        if len(children) == count:
            return children
    raise AssertionError(f"{count} workers never started")


def test_serve_speaks_https_itself(config: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(config.parent / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(config.parent / "cert.pem")
    authority.cert_pem.write_to_path(config.parent / "ca.pem")
    write_config(config.parent, server="tls_certificate = 'cert.pem'\ntls_key = 'key.pem'")
    with Serve(config, "--json") as served:
        url = json.loads(served.first_line)["url"]
        assert url.startswith("https://")
        with urllib3.PoolManager(ca_certs=str(config.parent / "ca.pem")) as http:
            assert http.request("GET", f"{url}/healthz", timeout=30).status == 200
        assert served.stop() == 0


def test_a_port_that_is_taken_is_a_configuration_error(config: Path, served: Serve) -> None:
    port = json.loads(served.first_line)["url"].rsplit(":", 1)[1]
    config.write_text(config.read_text().replace("port = 0", f"port = {port}"))
    done = cema("serve", "-c", config)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr


def test_a_missing_bundle_is_named(config: Path) -> None:
    (config.parent / "tiny.bundle").unlink()
    done = cema("serve", "-c", config, "--json")
    assert done.returncode == 3
    assert json.loads(done.stderr.splitlines()[-1])["code"] == "bundle_invalid"


def test_a_lost_sample_key_ends_the_start_with_what_to_do(config: Path) -> None:
    write_config(config.parent, "encrypt_samples = true\nsample_key_file = 'volume/samples.key'")
    with Serve(config, "--json") as served:
        assert served.stop() == 0
    key = config.parent / "volume" / "samples.key"
    key.unlink()
    raw = sqlite3.connect(config.parent / "data" / "cema.db")
    raw.execute(
        "INSERT INTO samples (group_name, sample_id, codec, state, received_ms, key_name) "
        "VALUES ('g', x'00', 'png', 'pending', 1, 'lost')"
    )
    raw.commit()
    raw.close()
    done = cema("serve", "-c", config, "--json")
    failure = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, failure["code"]) == (StorageError.exit_code, StorageError.code)
    assert f"expected sample key lost in {key}, which has none" in failure["message"]
    assert not key.exists()


def test_a_damaged_database_ends_the_start_with_what_to_do_and_doctor_sees_it(config: Path) -> None:
    def database() -> dict[str, Any]:
        (found,) = [
            each for each in json.loads(cema("doctor", "-c", config, "--json").stdout) if each["number"] == "D25"
        ]
        return dict(found)

    assert database()["text"].startswith("no database yet")
    with Serve(config, "--json") as served:
        assert served.stop() == 0
    assert database()["ok"]
    file = config.parent / "data" / "cema.db"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    done = cema("serve", "-c", config, "--json")
    failure = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, failure["code"]) == (DamagedError.exit_code, DamagedError.code)
    assert "restore cema.db from a backup" in failure["hint"]
    assert not database()["ok"]
    assert database()["fix"] == failure["hint"]
    assert file.read_bytes() == whole[: len(whole) // 2], "nobody has touched it"
    file.write_bytes(whole)
    with Serve(config, "--json") as served:
        assert served.stop() == 0


def enrol(config: Path, *options: str | Path) -> Sequence[str | Path]:
    return ("device", "enrol", "-c", config, "--group", "g", "--name", "cam", "--url", "http://127.0.0.1:1", *options)


def test_enrolment_writes_a_private_file_and_works_before_the_first_serve(config: Path) -> None:
    out = config.parent / "device.toml"
    told = cema_json(*enrol(config, "--out", out))
    assert "token" not in told
    assert out.stat().st_mode & 0o777 == 0o600
    identity = load_device(out)
    assert (identity.group, identity.device_id, identity.public_key) == ("g", "cam", told["public_key"])
    assert identity.token is not None
    assert identity.token not in (config.parent / "data" / "cema.db").read_bytes().decode("latin-1")


def test_a_device_is_listed_revoked_and_enrolled_anew(config: Path) -> None:
    assert cema(*enrol(config, "--out", "-")).returncode == 0
    (row,) = cema_json("device", "list", "-c", config)["devices"]
    assert (row["device_id"], row["group"], row["revoked"]) == ("cam", "g", None)
    again = cema(*enrol(config, "--out", config.parent / "second.toml"))
    assert again.returncode == 6
    assert not (config.parent / "second.toml").exists(), "a failed enrolment leaves no file"
    assert cema_json("device", "revoke", "-c", config, "cam")["revoked"] is not None
    tomllib.loads(cema(*enrol(config, "--out", "-")).stdout)
    assert "last seen never" in cema("device", "list", "-c", config).stdout


def test_an_existing_file_is_never_replaced(config: Path) -> None:
    out = config.parent / "device.toml"
    out.write_text("precious")
    assert cema(*enrol(config, "--out", out)).returncode == 2
    assert out.read_text() == "precious"
    assert cema_json("device", "list", "-c", config)["devices"] == []


def test_unknown_names_exit_with_not_found(config: Path) -> None:
    for arguments in (
        ("device", "enrol", "-c", config, "--group", "x", "--name", "cam", "--url", "http://h", "--out", "-"),
        ("device", "revoke", "-c", config, "cam"),
        ("group", "show", "-c", config, "x"),
        ("update", "list", "-c", config, "--group", "x"),
        ("update", "show", "-c", config, "--group", "g", "1"),
    ):
        assert cema(*arguments).returncode == 6, arguments


def test_groups_and_versions_are_shown(config: Path) -> None:
    cema(*enrol(config, "--out", "-"))
    publish(config)
    (row,) = cema_json("group", "list", "-c", config)["groups"]
    assert (row["group"], row["latest_version"], row["adaptation"]) == ("g", 1, "on")
    assert cema_json("group", "show", "-c", config, "g")["devices"] == ["cam"]
    (listed,) = cema_json("update", "list", "-c", config, "--group", "g")["updates"]
    shown = cema_json("update", "show", "-c", config, "--group", "g", "1")
    assert listed["content_id"] == shown["content_id"]
    assert (shown["version"], shown["size_bytes"], shown["method"]) == (1, 7, "bn")
    assert (shown["metrics"], shown["rollback_of"], shown["sample_ids"]) == ({"loss": 0.5}, None, [])
    assert cema("group", "list", "-c", config).stdout.startswith("g  version 1  pending 0")
    assert "latest_version   1" in cema("group", "show", "-c", config, "g").stdout
    assert cema("update", "list", "-c", config, "--group", "g").stdout.startswith("1  1970-01-01T00:00:00+00:00  bn")
    assert "content_id" in cema("update", "show", "--group", "g", "1", "-c", config).stdout


def publish(config: Path) -> None:
    store, blobs = open_store(load_serve(config))
    fingerprint = store.group("g").fingerprint
    report = SampleBatch(device_id="cam", boot_id=os.urandom(16), fingerprint=fingerprint, samples_seen=64, samples=[])
    store.add_samples("g", report, 1)
    store.claim("w", 1, lease_ms=1, tick_images=64, publish_interval_ms=0)
    update = NewUpdate(1, blobs.put(b"content"), "signature", 7, "bn", {"loss": 0.5})
    store.commit_step(StepCommit("g", "w", 1, 1, 0, update=update), 1)
    store.close()


def test_the_web_process_never_loads_torch() -> None:
    script = "import sys, cema.cli.serve; sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0

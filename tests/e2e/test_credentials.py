"""A device's life over TLS, with the commands as people type them: enrolled once, own key, next key, revoked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import urllib3

from cema.config import DeviceConfig, SelectionConfig
from cema.config_files import load_device
from cema.edge import EdgeAgent
from cema.edge.identity import KEY_FILE

pytestmark = pytest.mark.e2e
COMMAND = [sys.executable, "-m", "cema"]
IMAGES = list(np.random.default_rng(3).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8))
PAUSE_S, LIMIT_S = 0.05, 60.0


class Cloud:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.child: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str, fails: bool = False) -> Any:
        done = subprocess.run([*COMMAND, *arguments, "--json"], cwd=self.folder, capture_output=True, check=False)
        assert bool(done.returncode) == fails, done.stderr
        return json.loads(done.stderr if fails and not done.stdout else done.stdout)

    def serve(self) -> None:
        log = (self.folder / "serve.log").open("wb")
        self.child = subprocess.Popen(
            [*COMMAND, "serve", "-c", "cema.toml", "--json"], cwd=self.folder, stdout=subprocess.PIPE, stderr=log
        )
        log.close()
        guard = threading.Timer(120, self.child.kill)
        guard.start()
        assert self.child.stdout is not None
        hello = json.loads(self.child.stdout.readline())
        guard.cancel()
        self.url, self.admin_url = hello["url"], hello["admin_url"]

    def ask(self, path: str, token: str, method: str = "GET") -> tuple[int, Any]:
        with urllib3.PoolManager(ca_certs=str(self.folder / "tls/ca.pem")) as http:
            headers = {"Authorization": f"Bearer {token}"}
            answer = http.request(method, self.admin_url + path, headers=headers, timeout=30)
        return answer.status, answer.json()

    def device(self) -> Any:
        (row,) = self.run("device", "list", "-c", "cema.toml")["devices"]
        return row


@pytest.fixture
def cloud(tmp_path: Path, digits_bundle: bytes) -> Iterator[Cloud]:
    from cema.cli.tls import THIS_MACHINE

    (tmp_path / "edge.bundle").write_bytes(digits_bundle)
    made = Cloud(tmp_path)
    shown = made.run("tls", "init", "--name", "cloud.example")
    assert shown["names"] == ["cloud.example", *THIS_MACHINE]
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in shown["server"].items())
    (tmp_path / "cema.toml").write_text(
        f"[server]\nport = 0\npoll_interval_s = 0.02\n{settings}[worker]\nprocesses = 0\n"
        "[groups.g]\nbundle = 'edge.bundle'\nedge_model = 'digits-edge'\nmethod = 'bn'\n"
    )
    made.serve()
    yield made
    assert made.child is not None
    made.child.terminate()
    made.child.communicate(timeout=60)


def eventually(condition: Callable[[], object]) -> None:
    deadline, pause = time.monotonic() + LIMIT_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        pause.wait(PAUSE_S)


def impatient(path: Path) -> DeviceConfig:
    """A device that sends everything at once and asks all the time."""
    config = load_device(path)
    uplink = msgspec.structs.replace(
        config.uplink, poll_wait_s=0.2, max_latency_s=0.02, backoff_min_s=0.05, backoff_max_s=0.2
    )
    return msgspec.structs.replace(config, uplink=uplink, selection=SelectionConfig(enabled=False))


def test_a_devices_life(cloud: Cloud) -> None:
    enrol = ("device", "enrol", "-c", "cema.toml", "--group", "g", "--name", "cam", "--url", cloud.url)
    told = cloud.run(*enrol, "--one-time", "--valid-hours", "1")
    assert "token" not in told
    assert cloud.device()["enrolment_until"] is not None
    assert [f["ok"] for f in cloud.run("doctor", "--device", "device.toml") if f["number"] == "D13"] == [True]

    config = impatient(cloud.folder / "device.toml")
    with EdgeAgent(config) as agent:
        agent.predict(IMAGES)
        assert agent.settle(LIMIT_S)
        first = (Path(config.state_dir) / KEY_FILE).read_bytes()
        assert cloud.device()["enrolment_until"] is None

        assert cloud.run("device", "rotate", "-c", "cema.toml", "cam")["rotate"]
        eventually(lambda: not cloud.device()["rotate"])
        assert (Path(config.state_dir) / KEY_FILE).read_bytes() != first
        agent.predict(IMAGES)
        assert agent.settle(LIMIT_S)
        assert agent.status()["uploaded"] == 2 * len(IMAGES)
        assert agent.status()["last_error"] is None

        assert [f["ok"] for f in cloud.run("doctor", "--device", "device.toml")] == [True] * 7
        reader = cloud.run("user", "add", "-c", "cema.toml", "ron", "--role", "reader")["token"]
        cloud.run("user", "add", "-c", "cema.toml", "ann", "--role", "operator", "--out", "ann.token")
        assert (cloud.folder / "ann.token").stat().st_mode & 0o777 == 0o600
        operator = (cloud.folder / "ann.token").read_text().strip()
        assert cloud.ask("/v1/admin/devices", reader)[1]["devices"] == [cloud.device()]
        assert cloud.ask("/v1/admin/devices/cam/revoke", reader, "POST")[0] == 403
        assert cloud.ask("/v1/admin/devices/cam/revoke", operator, "POST")[0] == 200
        eventually(lambda: str(agent.status()["last_error"]).startswith("unauthenticated"))
        agent.predict(IMAGES)
        eventually(lambda: agent.status()["outbox_samples"] == len(IMAGES))
    (finding,) = [f for f in cloud.run("doctor", "--device", "device.toml", fails=True) if f["number"] == "D13"]
    assert "revoked" in finding["text"]

    cloud.run("user", "revoke", "-c", "cema.toml", "ann")
    assert cloud.ask("/v1/admin/devices", operator)[0] == 401
    assert [row["revoked"] is None for row in cloud.run("user", "list", "-c", "cema.toml")["users"]] == [False, True]

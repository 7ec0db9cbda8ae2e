"""Real processes: ``cema serve`` with its worker, and what devices need to reach it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cema.cloud.export import build_bundle
from cema.cloud.models import load_model
from cema.wire.bundle import encode_bundle

CEMA = [sys.executable, "-m", "cema"]
GROUP = "digits"
START_LIMIT_S = 120.0


class Service:
    """``cema serve`` as an operator runs it; may be killed and started again on the same port and data."""

    cema, group = CEMA, GROUP

    def __init__(self, folder: Path, bundle: bytes) -> None:
        self.folder = folder
        (folder / "edge.bundle").write_bytes(bundle)
        self.port = 0
        self.child: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Returns when it accepts requests."""
        (self.folder / "cema.toml").write_text(
            f"[server]\nport = {self.port}\npoll_interval_s = 0.02\n"
            "[worker]\nlease_s = 2\nthreads = 1\npublish_min_interval_s = 0\nidle_interval_s = 0.01\n"
            f"[groups.{GROUP}]\nbundle = 'edge.bundle'\n"
            "edge_model = 'digits-edge'\nfoundation_model = 'digits-foundation'\n"
        )
        with (self.folder / "serve.log").open("ab") as log:
            self.child = subprocess.Popen(
                [*CEMA, "serve", "-c", "cema.toml", "--json"], cwd=self.folder, stdout=subprocess.PIPE, stderr=log
            )
        guard = threading.Timer(START_LIMIT_S, self.child.kill)
        guard.start()
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        guard.cancel()
        assert line, (self.folder / "serve.log").read_text()[-2000:]
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """kill -9: web process at once, its workers when they notice."""
        assert self.child is not None
        self.child.send_signal(signal.SIGKILL)
        self.child.communicate()

    def stop(self) -> int:
        assert self.child is not None
        self.child.terminate()
        self.child.communicate(timeout=60)
        return self.child.returncode

    def enrol(self, name: str) -> Path:
        self.run("device", "enrol", "-c", "cema.toml", "--group", GROUP, "--name", name, "--url", self.url,
                 "--out", f"{name}.toml")  # fmt: skip
        return self.folder / f"{name}.toml"

    def run(self, *arguments: str) -> str:
        """A command of the operator's; returns what it prints."""
        done = subprocess.run([*CEMA, *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def digits_bundle() -> bytes:
    model = load_model("digits-edge")
    assert model.preprocess is not None
    assert model.classes is not None
    bundle = build_bundle(model.module, name=model.name, preprocess=model.preprocess, classes=model.classes)
    return encode_bundle(bundle)


@pytest.fixture
def service(tmp_path: Path, digits_bundle: bytes) -> Iterator[Service]:
    found = Service(tmp_path, digits_bundle)
    found.start()
    yield found
    if found.child is not None and found.child.poll() is None:
        found.stop()

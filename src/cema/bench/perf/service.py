"""A real ``cema serve`` on this machine, and real devices of it, for figures that need both sides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cema.cloud.parent import PARENT_FD_VARIABLE
from cema.config import DeviceConfig
from cema.config_files import load_device
from cema.errors import BenchError
from cema.wire.bundle import Bundle, encode_bundle

GROUP = "perf"
START_LIMIT_S = 90.0
STOP_LIMIT_S = 15.0
_CEMA = [sys.executable, "-m", "cema"]


@dataclass
class Service:
    """The web process of one group, without workers; a context manager that leaves nothing behind.

    cpu: the core it may use, None = all. Killed (``process.kill()``), it may be started again, on the same port.
    """

    bundle: Bundle
    edge_model: str
    cpu: int | None = None
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="cema-perf-", ignore_cleanup_errors=True)
    )
    _port: int = 0

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def __enter__(self) -> Self:
        (self.folder / "edge.bundle").write_bytes(encode_bundle(self.bundle))
        self.start()
        return self

    def start(self) -> None:
        """Returns when it accepts requests. Raises BenchError if it does not."""
        lines = ["[server]", f"port = {self._port}", "[admin]", "port = 0", "[worker]", "processes = 0"]
        lines += [f"[groups.{GROUP}]", 'bundle = "edge.bundle"', f'edge_model = "{self.edge_model}"']
        (self.folder / "cema.toml").write_text("\n".join([*lines, 'method = "source"', ""]))
        with (self.folder / "cloud.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_CEMA, "serve", "-c", "cema.toml", "--json"], cwd=self.folder, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, env={**os.environ, PARENT_FD_VARIABLE: "0"},
            )  # fmt: skip
        timer = threading.Timer(START_LIMIT_S, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            raise BenchError(f"the service did not start: {(self.folder / 'cloud.log').read_text()[-500:]}")
        said = json.loads(line)
        self.url, self.admin_url = str(said["url"]), str(said["admin_url"])
        self._port = int(self.url.rpartition(":")[2])
        if self.cpu is not None:
            os.sched_setaffinity(self.process.pid, {self.cpu})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()

    def enrol(self, name: str) -> DeviceConfig:
        """A new device, as its ``device.toml`` describes it."""
        file = self.folder / f"{name}.toml"
        command = ["device", "enrol", "-c", "cema.toml", "--group", GROUP, "--name", name, "--url", self.url]
        done = subprocess.run([*_CEMA, *command, "--out", str(file)], cwd=self.folder, capture_output=True, check=False)
        if done.returncode:
            raise BenchError(f"the device could not be enrolled: {done.stderr.decode()[-500:]}")
        return load_device(file)

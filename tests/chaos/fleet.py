"""The system under test: a cloud with its worker, four devices in two groups, a disk and a link for each."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cema.bench.datasets import load_dataset
from cema.cloud.parent import PARENT_FD_VARIABLE
from chaos.disks import Disk
from chaos.evidence import DATABASE, PRISTINE, Facts, Recorder, learned_by_version
from chaos.link import Link
from chaos.plan import CLOUD, EDGES, GROUPS
from chaos.processes import Kept, workers_of

EDGE_DISK_MIB, CLOUD_DISK_MIB = 24, 256
START_LIMIT_S = 60.0
"""For the network or the first start of the cloud."""
MEMORY_S = 1.0
MEMORY_STEP_MIB = 8
"""Between two looks at the processes' memory; what grew by less than this is not put on record."""
KEPT_LINES = 64
CEMA = [sys.executable, "-m", "cema"]
CEMA_TOML = """
[server]
host = "127.0.0.1"
port = {port}
data_dir = "cloud-disk/data"
poll_interval_s = 0.05
drain_s = 5
behind_tls_proxy = true
[admin]
port = 0
[worker]
lease_s = 3
threads = 1
publish_min_interval_s = 0.2
[retention]
keep_versions = 1000000
"""
GROUP_TOML = """
[groups.{name}]
bundle = "digits.bundle"
edge_model = "digits-edge"
foundation_model = "digits-foundation"
method = "cema"
"""
DEVICE_TOML = """
connect_timeout_s = 2
read_timeout_s = 5
poll_wait_s = 5
heartbeat_s = 1
max_latency_s = 0.5
backoff_min_s = 0.1
backoff_max_s = 2
ca_file = "tls/ca.pem"
[runtime]
threads = 1
"""
"""Goes on in table [uplink]: patience is shorter than on devices, so that ten minutes show what days would."""


@dataclass
class Edge:
    """One device. recent: the last lines of its diary."""

    name: str
    disk: Disk
    link: Link
    clock_file: Path
    process: Kept
    recent: deque[Facts] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))

    @property
    def state(self) -> Path:
        return self.disk.folder / "state"


class Fleet:
    """Everything that runs. folder: of the run, with evidence in a folder of its own that no fault touches."""

    def __init__(self, folder: Path, record: Recorder) -> None:
        self.folder, self.evidence, self._record = folder, folder / "evidence", record
        (self.evidence / "cloud" / PRISTINE).mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.new_event_loop()
        self._port = 0
        self._learned: dict[str, int] = {}
        self._closing = threading.Event()
        self._ready = threading.Event()
        self.clock_file = folder / "cloud.clock"
        self.cloud = Kept(CLOUD, self._spawn_cloud, record, self._cloud_says)
        self.disk = Disk(folder / "cloud-disk" / "data", CLOUD_DISK_MIB, self._cloud_pids)
        self.edges: dict[str, Edge] = {}
        self._threads = [
            threading.Thread(target=self._loop.run_forever, name="network"),
            threading.Thread(target=self._watch_memory, name="memory"),
        ]

    def start(self) -> None:
        """Build, enrol, start all; returns once the cloud answers."""
        self.clock_file.write_text("0")
        self._run("tls", "init", "--dir", "tls", "--name", "127.0.0.1")
        self._run("bundle", "build", "digits-edge", "--out", "digits.bundle")
        np.save(self.folder / "images.npy", np.stack(list(load_dataset("digits", None).images)))
        self._write_config()
        for thread in self._threads:
            thread.start()
        self.cloud.start()
        if not self._ready.wait(START_LIMIT_S):
            raise TimeoutError((self.evidence / "serve.log").read_text()[-2000:])
        for name in EDGES:
            self.edges[name] = self._edge(name)
        for edge in self.edges.values():
            edge.process.start()

    def stop(self) -> None:
        """Devices first, then the cloud, each by SIGTERM; then evidence is taken from their disks."""
        for edge in self.edges.values():
            edge.process.stop()
        if self._ready.is_set():
            self.cloud.stop()
        self._closing.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join()
        self.note_learned()
        shutil.copytree(self.disk.folder, self.evidence / "cloud", dirs_exist_ok=True)

    def note_learned(self) -> None:
        """Put on record which samples have been learned from since last time, and by which version."""
        with suppress(sqlite3.Error):
            now = learned_by_version(self.disk.folder / DATABASE)
            fresh = {key: version for key, version in now.items() if self._learned.get(key) != version}
            self._learned |= fresh
            self._record("learned", fresh=fresh)

    def latest_versions(self) -> dict[str, int]:
        """Of each group; empty while the database cannot be read."""
        try:
            with closing(sqlite3.connect(f"file:{self.disk.folder / DATABASE}?mode=ro", uri=True)) as database:
                return dict(database.execute("SELECT name, latest_version FROM groups").fetchall())
        except sqlite3.Error:
            return {}

    def acknowledged(self, name: str) -> int:
        """Samples that this device has in the store; -1 while the database cannot be read."""
        try:
            with closing(sqlite3.connect(f"file:{self.disk.folder / DATABASE}?mode=ro", uri=True)) as database:
                query = "SELECT count(*) FROM samples WHERE device_id = ?"
                return int(database.execute(query, (name,)).fetchone()[0])
        except sqlite3.Error:
            return -1

    def _edge(self, name: str) -> Edge:
        disk = Disk(self.folder / f"{name}-disk", EDGE_DISK_MIB, lambda: self._pids(name))
        others = [group for group in sorted(set(GROUPS.values())) if group != GROUPS[name]]
        link = Link(name, self._record, lambda: self._port, others)
        asyncio.run_coroutine_threadsafe(link.start(self._tls()), self._loop).result(START_LIMIT_S)
        self._run("device", "enrol", "-c", "cema.toml", "--group", GROUPS[name], "--name", name,
                  "--url", f"https://127.0.0.1:{link.port}", "--out", f"{name}.toml", "--one-time")  # fmt: skip
        device = self.folder / f"{name}.toml"
        text = device.read_text().replace(f'"cema-state/{name}"', f'"{name}-disk/state"')
        device.write_text(text + ("" if "[uplink]" in text else "[uplink]\n") + DEVICE_TOML)
        clock_file = self.folder / f"{name}.clock"
        clock_file.write_text("0")
        process = Kept(name, lambda: self._spawn_edge(name), self._record, lambda line: self._edge_says(name, line))
        return Edge(name, disk, link, clock_file, process)

    def _tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "tls" / "server.pem", self.folder / "tls" / "server.key")
        return context

    def _write_config(self) -> None:
        groups = "".join(GROUP_TOML.format(name=name) for name in sorted(set(GROUPS.values())))
        (self.folder / "cema.toml").write_text(CEMA_TOML.format(port=self._port) + groups)

    def _spawn_cloud(self) -> subprocess.Popen[bytes]:
        shifted = Path(__file__).parent / "shifted_clock"
        path = os.pathsep.join([str(shifted), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"PYTHONPATH": path, "CEMA_CHAOS_CLOCK": str(self.clock_file)}
        return self._popen([*CEMA, "serve", "-c", "cema.toml", "--json"], "serve.log", environment)

    def _spawn_edge(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "chaos.edge_driver", f"{name}.toml", "images.npy", f"{name}.clock",
                   str(EDGES.index(name))]  # fmt: skip
        return self._popen(command, f"{name}.log", {})

    def _popen(self, command: list[str], log: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.evidence / log).open("ab") as errors:
            return subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={**os.environ, **environment, PARENT_FD_VARIABLE: "0"},
            )  # fmt: skip

    def _cloud_says(self, line: bytes) -> None:
        self._port = int(json.loads(line)["url"].rpartition(":")[2])
        self._write_config()  # the next start takes the same port
        self._record("cloud ready")
        self._ready.set()

    def _edge_says(self, name: str, line: bytes) -> None:
        with (self.evidence / f"{name}.jsonl").open("ab") as diary:
            diary.write(line)
        with suppress(ValueError):  # a kill may cut a line off
            self.edges[name].recent.append(json.loads(line))

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*CEMA, *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout

    def _pids(self, name: str) -> list[int]:
        pid = self.edges[name].process.pid
        return [] if pid is None else [pid]

    def _cloud_pids(self) -> list[int]:
        pid = self.cloud.pid
        return [] if pid is None else [pid, *(worker.pid for worker in workers_of(pid))]

    def _watch_memory(self) -> None:
        most: dict[str, float] = {}
        while not self._closing.wait(MEMORY_S):
            named: list[tuple[str, Any]] = [(name, edge.process.pid) for name, edge in self.edges.items()]
            named += [(CLOUD, self.cloud.pid), *(("worker", worker.pid) for worker in workers_of(self.cloud.pid))]
            for name, pid in named:
                with suppress(psutil.Error):
                    mib = psutil.Process(pid).memory_info().rss / 2**20 if pid else 0.0
                    if mib > most.get(name, 0.0) + MEMORY_STEP_MIB:
                        most[name] = mib
                        self._record("memory", name=name, mib=round(mib))


def diary_time(edge: Edge, event: str) -> float:
    """When it last wrote such a line; minus infinity if that is long ago."""
    return max((line["t"] for line in edge.recent.copy() if line["event"] == event), default=-float("inf"))

"""The system under test: a cloud on one core, drivers with devices on the other, and who looks at the cloud."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import urllib3

from cema.bench.perf.models import PerfPair
from cema.bench.perf.resident import resident_mib
from cema.bench.perf.service import Service
from cema.cloud.keys import signing_key
from cema.cloud.store import open_store
from cema.config_files import load_serve
from cema.wire import signing
from cema.wire.tokens import new_token, token_digest
from load.evidence import Cpu, Evidence, Probe
from load.plan import CLOUD_CORE, DEVICES_CORE, GROUP, DriverPlan, Order, Plan

LOOK_S = 1.0
PROBE_LIMIT_S = 10.0
READER = "reader"


_NS = 1e-9


def cpu_of(pid: int) -> tuple[float, float]:
    """Seconds that the threads of a process have run, and have waited for a core."""
    ran_ns = waited_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            ran, waited, _ = (task / "schedstat").read_text().split()
            ran_ns, waited_ns = ran_ns + int(ran), waited_ns + int(waited)
    return ran_ns * _NS, waited_ns * _NS


def pinned(core: int) -> set[int] | None:
    """A core of its own, where there is one."""
    allowed = sorted(os.sched_getaffinity(0))
    return {allowed[core]} if len(allowed) > core else None


class Driver:
    """One process with many devices; its lines become evidence."""

    def __init__(self, plan_file: Path, evidence: Evidence, log: Path) -> None:
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "load.driver", str(plan_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors,
            )  # fmt: skip
        if core := pinned(DEVICES_CORE):
            os.sched_setaffinity(self._child.pid, core)
        self._evidence, self._log = evidence, log
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def order(self, order: Order) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(msgspec.json.encode(order) + b"\n")
        self._child.stdin.flush()

    def end(self, limit_s: float) -> None:
        """Wait for its books."""
        try:
            self._child.wait(limit_s)
        finally:
            self.kill()

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            said = json.loads(line)
            self._evidence.note(said)
            if said["event"] == "ready":
                self.ready.set()


class Cloud:
    """A real ``cema serve`` without workers. ``watch`` looks at its memory and pages each second."""

    def __init__(self, evidence: Evidence) -> None:
        pair = PerfPair("digits-edge", "digits-foundation", None)
        core = pinned(CLOUD_CORE)
        self.service = Service(pair.bundle, pair.edge_name, cpu=min(core) if core else None)
        self._evidence, self._over = evidence, threading.Event()
        self._token = secrets.token_hex()
        self._thread = threading.Thread(target=self._watch)

    @property
    def folder(self) -> Path:
        return self.service.folder

    def start(self) -> None:
        self.service.__enter__()
        self._thread.start()

    def enrol(self, names: list[str]) -> tuple[str, list[tuple[str, str]]]:
        """The cloud's public key, and a token for each name; also a reader of ours."""
        config = load_serve(self.folder / "cema.toml")
        store, _ = open_store(config)
        devices = [(name, new_token()) for name in names]
        for name, token in devices:
            store.enrol(name, GROUP, token_digest(token), 1)
        store.add_user(READER, READER, token_digest(self._token), 1)
        store.close()
        return signing.public_key(signing_key(config)), devices

    def stored(self) -> list[bytes]:
        """Ids of all samples."""
        with closing(sqlite3.connect(self.folder / "cema-data" / "cema.db")) as database:
            return [bytes(row[0]) for row in database.execute("SELECT sample_id FROM samples")]

    def stop(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
            self.service.__exit__(None, None, None)

    def _watch(self) -> None:
        http = urllib3.PoolManager(retries=False, timeout=PROBE_LIMIT_S)
        while not self._over.wait(LOOK_S):
            pid = self.service.process.pid
            with suppress(OSError, StopIteration):
                self._evidence.memory.append((time.monotonic(), pid, resident_mib(pid)))
                self._evidence.cpu.append(Cpu(time.monotonic(), pid, *cpu_of(pid)))
            self._probe(http, f"{self.service.url}/healthz")
            self._probe(http, f"{self.service.url}/readyz")
            self._probe(http, f"{self.service.admin_url}/metrics")
        http.clear()

    def _probe(self, http: urllib3.PoolManager, url: str) -> None:
        began_s = time.monotonic()
        try:
            status = http.request("GET", url, headers={"Authorization": f"Bearer {self._token}"}).status
        except (urllib3.exceptions.HTTPError, OSError):
            status = 0
        self._evidence.probes.append(Probe(began_s, url.rpartition("/")[2], status, time.monotonic() - began_s))


def drivers(cloud: Cloud, plan: Plan, evidence: Evidence) -> list[Driver]:
    """Processes whose devices are ready, and see nothing yet."""
    key, devices = cloud.enrol([f"device-{number}" for number in range(plan.devices)])
    made = []
    for number in range(plan.drivers):
        file = cloud.folder / f"driver-{number}.json"
        told = DriverPlan(
            url=cloud.service.url, public_key=key, bundle=str(cloud.folder / "edge.bundle"),
            state=str(cloud.folder / f"driver-{number}"), acknowledged=str(acknowledged_file(cloud, number)),
            devices=devices[number :: plan.drivers], seed=number,
        )  # fmt: skip
        file.write_bytes(msgspec.json.encode(told))
        made.append(Driver(file, evidence, cloud.folder / "drivers.log"))
    return made


def acknowledged_file(cloud: Cloud, number: int) -> Path:
    return cloud.folder / f"driver-{number}.acknowledged"

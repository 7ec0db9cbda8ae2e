"""Starts the demo's processes and hands on what they report: one ``cema serve``, one edge process per group.

Everything lives in one temporary folder and ends with the demo: also on Ctrl-C, also when a child dies.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from cema.cloud.parent import PARENT_FD_VARIABLE
from cema.demo.edge_process import EdgeEvent, EdgePlan
from cema.demo.scenario import Scenario
from cema.errors import DemoError

START_LIMIT_S = 90.0
"""For the cloud to come up: importing torch on a slow disk takes most of it."""
STOP_LIMIT_S = 15.0
LOG_TAIL_CHARACTERS = 2000
_DEVICE_TUNING = """
[selection]
e_max_warmup_samples = 64

[outbox]
commit_interval_s = 0.01

[uplink]
max_latency_s = 0.02
heartbeat_s = 0.5
batch_samples = 64

[runtime]
threads = 1
"""
"""The demo is a time lapse: what takes minutes on a real link happens in seconds. Warm-up as in the benchmark."""


@dataclass(frozen=True)
class DemoOptions:
    """images: per edge, 0 = the scenario's. seconds: stop streaming after this long, 0 = never."""

    scenario: Scenario
    data: Path | None
    edges: int
    images: int
    seconds: float
    seed: int
    method: str


class Demo:
    """The running demo; a context manager that leaves no process behind."""

    def __init__(self, options: DemoOptions, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self._folder = tempfile.TemporaryDirectory(prefix="cema-demo-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._children: list[subprocess.Popen[bytes]] = []
        self._events: queue.SimpleQueue[EdgeEvent | None] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        self.names = [f"edge-{index + 1}" for index in range(options.edges)]

    def __enter__(self) -> Demo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Bundle -> cloud -> enrolment -> edges."""
        self.say("building the bundle (torch -> ONNX)")
        self._build_bundle()
        self._write_config()
        self.say("starting the cloud")
        url = self._start_cloud()
        self.say(f"cloud at {url}; starting {len(self.names)} edges")
        for index, name in enumerate(self.names):
            self._start_edge(index, name, url)

    def events(self) -> list[EdgeEvent]:
        """What arrived since the last call; waits shortly for the first."""
        found = []
        try:
            item = self._events.get(timeout=0.2)
            while True:
                if item is not None:
                    found.append(item)
                item = self._events.get_nowait()
        except queue.Empty:
            return found

    @property
    def running(self) -> bool:
        """Whether an edge still streams. Raises DemoError when cloud or edge died."""
        cloud, *edges = self._children
        if cloud.poll() is not None:
            raise DemoError(f"the cloud process ended with exit code {cloud.returncode}: {self._tail('cloud')}")
        for name, edge in zip(self.names, edges, strict=True):
            if edge.poll():
                raise DemoError(f"{name} ended with exit code {edge.returncode}: {self._tail(name)}")
        return any(reader.is_alive() for reader in self._readers)

    def stop(self) -> None:
        """Edges first, then the cloud; politely, then not."""
        for child in reversed(self._children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT_S
        for child in reversed(self._children):
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for child in self._children:
            if child.stdout:
                child.stdout.close()

    def _build_bundle(self) -> None:
        from cema.cloud.export import build_bundle
        from cema.cloud.models import load_model
        from cema.wire.bundle import encode_bundle

        scenario = self.options.scenario
        model = load_model(scenario.edge_model, scenario.weights(self.options.data)[0])
        assert model.preprocess is not None
        assert model.classes is not None
        bundle = build_bundle(model.module, name=model.name, preprocess=model.preprocess, classes=model.classes)
        (self.folder / "edge.bundle").write_bytes(encode_bundle(bundle))

    def _write_config(self) -> None:
        scenario = self.options.scenario
        edge_weights, foundation_weights = scenario.weights(self.options.data)
        group = {
            "bundle": "edge.bundle",
            "edge_model": scenario.edge_model,
            "foundation_model": scenario.foundation_model,
            "edge_weights": edge_weights,
            "foundation_weights": foundation_weights,
            "method": self.options.method,
            "seed": self.options.seed,
        }
        method_options = scenario.method_options.get(self.options.method, {})
        lines = ["[server]", "port = 0", "poll_interval_s = 0.02", "", "[worker]"]
        lines += [f"threads = {scenario.worker_threads}", "publish_min_interval_s = 0", "idle_interval_s = 0.01"]
        for name in self.names:
            lines += ["", f"[groups.{name}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in group.items() if value is not None]
            lines += [f"options.{key} = {json.dumps(value)}" for key, value in method_options.items()]
        (self.folder / "cema.toml").write_text("\n".join(lines) + "\n")

    def _start_cloud(self) -> str:
        child = self._spawn("cloud", [*_CEMA, "serve", "-c", "cema.toml", "--json"])
        timer = threading.Timer(START_LIMIT_S, child.kill)
        timer.start()
        assert child.stdout is not None
        line = child.stdout.readline()
        timer.cancel()
        if not line:
            raise DemoError(f"the cloud did not start: {self._tail('cloud')}")
        return str(json.loads(line)["url"])

    def _start_edge(self, index: int, name: str, url: str) -> None:
        options, device = self.options, self.folder / f"{name}.toml"
        enrol = ["device", "enrol", "-c", "cema.toml", "--group", name, "--name", name, "--url", url]
        enrol += ["--out", str(device)]
        done = subprocess.run([*_CEMA, *enrol], cwd=self.folder, capture_output=True, check=False)
        if done.returncode:
            raise DemoError(f"{name} could not be enrolled: {done.stderr.decode()[-LOG_TAIL_CHARACTERS:]}")
        device.write_text(device.read_text() + _DEVICE_TUNING)
        scenario = options.scenario
        plan = EdgePlan(
            name=name,
            device=str(device),
            bundle=str(self.folder / "edge.bundle"),
            dataset=scenario.dataset,
            data=str(options.data) if options.data else None,
            phases=[(p.condition, n) for p, n in scenario.phases(index, options.images or scenario.images)],
            batch_size=scenario.batch_size,
            seed=options.seed * len(self.names) + index,
            seconds=options.seconds,
        )
        path = self.folder / f"{name}.plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        child = self._spawn(name, [sys.executable, "-m", "cema.demo.edge_process", str(path)])
        reader = threading.Thread(target=self._read, args=(child,), name=f"read-{name}", daemon=True)
        self._readers.append(reader)
        reader.start()

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            # A session of its own: Ctrl-C reaches only the demo, which then stops its children in order.
            child = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, env={**os.environ, PARENT_FD_VARIABLE: "0"},
            )  # fmt: skip
        self._children.append(child)
        return child

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._events.put(msgspec.json.decode(line, type=EdgeEvent))

    def _tail(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]


_CEMA = [sys.executable, "-m", "cema"]

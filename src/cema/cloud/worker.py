"""An adaptation worker: leases one group at a time from the store, adapts it, gives it back.

Shares nothing with the web process but the store, so a step never delays an upload, and a worker may die at any
instruction: the lease runs out and another one goes on from the last committed step.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from cema.cloud.adapt.base import Schedule
from cema.cloud.controller import Controller, Publishing
from cema.cloud.keys import signing_key
from cema.cloud.memory import keep_freed_memory
from cema.cloud.parent import exit_with_parent
from cema.cloud.pool import ModelPool
from cema.cloud.store import open_store
from cema.cloud.store.base import BlobStore, GroupRow, Store
from cema.config import ServeConfig
from cema.config_files import load_serve
from cema.errors import CemaError, ConfigError, ConflictError, StorageError
from cema.signals import Stop, Stopping
from cema.telemetry import configure_logging

log = logging.getLogger(__name__)

HOUSEKEEPING_INTERVAL_S = 60.0
"""Between two looks for expired ids and unreferenced blobs; cheap, and nothing waits for it."""
RETENTION_INTERVAL_S = 3600.0
"""Between two looks for samples beyond the limits of ``[retention]``: a group that has any is then loaded anew."""
NO_LIMIT = 1 << 40
"""More samples than any store holds."""
SLICE_S = 2.0
"""For so long a group that has many uploads waiting is served before others have their turn; the step under way is
finished."""
RETRY_AFTER_ERROR_S = 5.0
"""Pause of a group whose tick failed, so that one broken group cannot keep the worker busy; never longer than a lease.
Of the worker itself, if the store failed."""


class Worker:
    """Runs ticks of whatever group is due.

    name: unique among living workers. clock_ms: Unix time. clock_s: monotonic.
    """

    def __init__(
        self, config: ServeConfig, store: Store, blobs: BlobStore, *, name: str, clock_ms: Callable[[], int],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.config, self.store, self.blobs = config, store, blobs
        self.name, self.clock_ms, self._clock_s = name, clock_ms, clock_s
        self._controllers: dict[str, Controller] = {}
        self._pool = ModelPool(blobs)
        self._next_housekeeping_ms = self._next_retention_ms = 0

    def run(self, stop: Stopping) -> None:
        """Until ``stop`` is set, whatever fails; the step under way is finished and committed."""
        while not stop.is_set():
            try:
                pause_s = 0.0 if self.once(stop.is_set) else self.config.worker.idle_interval_s
            except StorageError:  # a full disk, say: another process would find the same, after loading torch again
                log.exception("the store failed; looking again in %.0f s", RETRY_AFTER_ERROR_S)
                pause_s = RETRY_AFTER_ERROR_S
            stop.wait(pause_s)

    def once(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Serve one group that is due; False if none was."""
        self._housekeeping()
        settings = self.config.worker
        row = self.store.claim(
            self.name,
            self.clock_ms(),
            lease_ms=round(settings.lease_s * 1000),
            tick_images=Schedule.tick_images,
            publish_interval_ms=round(settings.publish_min_interval_s * 1000),
        )
        if row is None:
            return False
        keepalive = _Keepalive(lambda: self._renew(row.name), settings.lease_s / 3)
        try:
            with keepalive:
                controller, until_s = self._controller(row), self._clock_s() + SLICE_S
                controller.tick(row, lambda: stop() or self._clock_s() >= until_s)
        except ConflictError as error:
            log.warning("group %s: %s; loading it anew", row.name, error)
            self._drop(row.name)
        except CemaError:
            # The lease is kept: it runs out by itself, and until then other groups are served.
            log.exception("group %s: tick failed", row.name)
            self._drop(row.name)
            pause_s = min(RETRY_AFTER_ERROR_S, settings.lease_s)
            self.store.renew(row.name, self.name, self.clock_ms(), round(pause_s * 1000))
            return True
        self.store.release(row.name, self.name)
        return True

    def _controller(self, row: GroupRow) -> Controller:
        """The group's controller, from memory if it is still what the store says, else loaded."""
        known = self._controllers.get(row.name)
        there = (row.lineage, row.revision, row.checkpoint)
        if known is not None and (known.lineage, known.revision, known.checkpoint) == there:
            return known
        self._drop(row.name)
        group = self.config.groups.get(row.name)
        if group is None:
            raise ConfigError(f"group {row.name!r} is in the store but not in the configuration of this worker")
        bundle, shared = self._pool.models(group, row.bundle_blob)
        publishing = Publishing(
            group.method,
            signing_key(self.config),
            round(self.config.worker.publish_min_interval_s * 1000),
            self.config.worker.update_encoding,
        )
        controller = Controller(
            row,
            bundle,
            shared,
            self.store,
            self.blobs,
            publishing,
            worker=self.name,
            seed=group.seed,
            clock_ms=self.clock_ms,
            replay_dir=Path(self.config.server.data_dir),
            seal_replay=self.config.server.encrypt_samples,
        )
        self._controllers[row.name] = controller
        log.info("group %s loaded: method %s, version %d", row.name, group.method, row.latest_version)
        return controller

    def _renew(self, group: str) -> None:
        self.store.renew(group, self.name, self.clock_ms(), round(self.config.worker.lease_s * 1000))

    def _housekeeping(self) -> None:
        now = self.clock_ms()
        if now < self._next_housekeeping_ms:
            return
        self._next_housekeeping_ms = now + round(HOUSEKEEPING_INTERVAL_S * 1000)
        retention = self.config.retention
        for blob in self.store.forget(
            now, id_memory_ms=round(retention.id_memory_s * 1000), keep_versions=retention.keep_versions
        ):
            self.blobs.delete(blob)
        self._retain(now)
        for row in self.store.groups():  # what was deleted must not stay in the memory of a group that rests
            known = self._controllers.get(row.name)
            if known is not None and known.revision != row.revision:
                self._drop(row.name)

    def _retain(self, now_ms: int) -> None:
        """Delete samples beyond the limits of ``[retention]``, if there are any."""
        limits = self.config.retention
        if now_ms < self._next_retention_ms or not (limits.sample_age_s or limits.samples_per_group):
            return
        self._next_retention_ms = now_ms + round(RETENTION_INTERVAL_S * 1000)
        before_ms = now_ms - round(limits.sample_age_s * 1000) if limits.sample_age_s else 0
        for group, count in self.store.expire_samples(before_ms, limits.samples_per_group or NO_LIMIT).items():
            log.info("group %s: %d samples deleted: [retention]", group, count)

    def _drop(self, group: str) -> None:
        known = self._controllers.pop(group, None)
        if known is not None:
            known.shared.leave(known)


class _Keepalive:
    """Renews a lease from a thread while a long step runs."""

    def __init__(self, renew: Callable[[], None], interval_s: float) -> None:
        self._renew, self._interval_s = renew, interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="lease", daemon=True)

    def _loop(self) -> None:
        while not self._done.wait(self._interval_s):
            try:
                self._renew()
            except StorageError as error:  # the step goes on; its end is checked against the lease
                log.warning("the lease could not be renewed: %s", error)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


@click.command()
@click.option("-c", "--config", "config_file", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--index", default=0, show_default=True, help="Number of this worker on the machine.")
def main(config_file: str, index: int) -> None:
    """Run one adaptation worker until SIGTERM; started by ``cema serve``."""
    configure_logging()
    exit_with_parent()
    keep_freed_memory()
    config = load_serve(config_file)
    threads = config.worker.threads or max(1, (os.cpu_count() or 1) // max(config.worker.processes, 1))
    torch.set_num_threads(threads)
    stop = Stop.on_signals()
    store, blobs = open_store(config, for_pictures=True)
    Worker(config, store, blobs, name=f"{os.getpid()}-{index}", clock_ms=lambda: time.time_ns() // 1_000_000).run(stop)
    store.close()


if __name__ == "__main__":
    main()

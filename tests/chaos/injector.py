"""Does to the system what the plan says, each fault in a thread of its own, and puts on record what came of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from chaos.damage import damage
from chaos.evidence import DATABASE, OUTBOX, POINTER, PRISTINE, Recorder, read_outbox, read_slots
from chaos.fleet import Fleet
from chaos.plan import Fault
from chaos.processes import stopped, workers_of

HOUR_S, DAY_S = 3600.0, 86_400.0
EDGE_JUMPS_S = (-30 * DAY_S, -DAY_S, -HOUR_S, HOUR_S, DAY_S, 30 * DAY_S)
"""Beyond the outbox's expiry in both directions."""
CLOUD_JUMPS_S = (-DAY_S, -HOUR_S, HOUR_S, DAY_S)
"""Below the time for which the cloud remembers ids (8 days): beyond it, it may forget them, and says so."""
DELAY_S = (0.02, 0.4)
PATIENCE_S = 20.0
"""For something to be there that can be broken: a worker that is just being started, a first update."""
LOOK_S = 0.05


class Injector:
    """Breaks one fleet."""

    def __init__(self, fleet: Fleet, record: Recorder) -> None:
        self._fleet, self._record = fleet, record
        self._over = threading.Event()

    def run(self, faults: Sequence[Fault]) -> None:
        """All faults at their time; returns when the last one is over."""
        began_s, threads = time.monotonic(), []
        for fault in faults:
            self._over.wait(max(0.0, began_s + fault.at_s - time.monotonic()))
            threads.append(threading.Thread(target=self._inject, args=(fault,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _inject(self, fault: Fault) -> None:
        do: Callable[[Fault], bool] = getattr(self, "_" + fault.kind.replace(" ", "_"))
        began_s = time.monotonic()
        done = do(fault)
        self._record("fault", kind=fault.kind, target=fault.target, began=began_s, done=done)

    def _wait(self, fault: Fault) -> bool:
        self._over.wait(fault.lasts_s)
        return True

    # processes

    def _kill_edge(self, fault: Fault) -> bool:
        with self._fleet.edges[fault.target].process.down() as found:
            self.note_state(fault.target)
        return found

    def _stop_edge(self, fault: Fault) -> bool:
        process = self._fleet.edges[fault.target].process
        with process.fault:
            if (pid := process.pid) is None:
                return False
            with stopped(pid, fault.target, self._record):
                return self._wait(fault)

    def _kill_web(self, fault: Fault) -> bool:
        with self._fleet.cloud.down() as found:
            self._fleet.note_learned()
        return found

    def _stop_web(self, fault: Fault) -> bool:
        with self._fleet.cloud.fault:
            if (pid := self._fleet.cloud.pid) is None:
                return False
            with stopped(pid, "cloud", self._record):
                return self._wait(fault)

    def _kill_worker(self, fault: Fault) -> bool:
        if not (pid := self._worker()):
            return False
        self._record("kill", name="worker", pid=pid)
        os.kill(pid, signal.SIGKILL)
        return True

    def _stop_worker(self, fault: Fault) -> bool:
        if not (pid := self._worker()):
            return False
        with stopped(pid, "worker", self._record):
            return self._wait(fault)

    def _worker(self) -> int:
        """Its process id, as soon as there is one; 0 if none comes."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not (workers := workers_of(self._fleet.cloud.pid)) and time.monotonic() < deadline_s:
            self._over.wait(LOOK_S)
        return workers[0].pid if workers else 0

    # the network

    def _cut_link(self, fault: Fault) -> bool:
        link = self._fleet.edges[fault.target].link
        link.cut()
        self._wait(fault)
        link.mend()
        return True

    def _delay_link(self, fault: Fault) -> bool:
        link = self._fleet.edges[fault.target].link
        link.delay(random.Random(fault.draw).uniform(*DELAY_S))
        self._wait(fault)
        link.mend()
        return True

    def _duplicate(self, fault: Fault) -> bool:
        link = self._fleet.edges[fault.target].link
        if fault.draw % 2:
            link.double_next()
        else:
            link.repeat_next(elsewhere=False)
        return True

    def _corrupt_link(self, fault: Fault) -> bool:
        self._fleet.edges[fault.target].link.corrupt_next(fault.draw)
        return True

    def _misroute(self, fault: Fault) -> bool:
        self._fleet.edges[fault.target].link.repeat_next(elsewhere=True)
        return True

    # disks and what is on them

    def _fill_edge_disk(self, fault: Fault) -> bool:
        edge = self._fleet.edges[fault.target]
        with edge.disk.full():
            if fault.draw % 2:  # and it has to start with that
                with edge.process.down():
                    self.note_state(fault.target)
            return self._wait(fault)

    def _fill_cloud_disk(self, fault: Fault) -> bool:
        self._record("disk full", name="cloud")
        with self._fleet.disk.full():
            self._wait(fault)
        self._record("disk free", name="cloud")
        return True

    def _damage_outbox(self, fault: Fault) -> bool:
        if fault.draw % 3 == 0:  # under the hands of the process that has it open
            return self._damage_of(fault, OUTBOX)
        return self._damage_at_rest(fault, OUTBOX)

    def _damage_slots(self, fault: Fault) -> bool:
        return self._damage_at_rest(fault, "slot-?")

    def _damage_bundle(self, fault: Fault) -> bool:
        return self._damage_at_rest(fault, "bundle-" + "?" * 64)

    def _damage_pointer(self, fault: Fault) -> bool:
        return self._damage_at_rest(fault, POINTER)

    def _damage_key(self, fault: Fault) -> bool:
        return self._damage_at_rest(fault, "key*.json")

    def _damage_status(self, fault: Fault) -> bool:
        return self._damage_of(fault, "status.json")

    def _damage_at_rest(self, fault: Fault, pattern: str) -> bool:
        """kill -9, damage, and the device has to start with that."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not list(self._fleet.edges[fault.target].state.glob(pattern)) and time.monotonic() < deadline_s:
            self._over.wait(LOOK_S)
        with self._fleet.edges[fault.target].process.down():
            self.note_state(fault.target)
            return self._damage_of(fault, pattern)

    def _damage_of(self, fault: Fault, pattern: str) -> bool:
        files = sorted(self._fleet.edges[fault.target].state.glob(pattern))
        for file in random.Random(fault.draw).sample(files, len(files)):
            if how := damage(file, fault.draw):
                self._record("damage", name=fault.target, file=file.name, how=how)
                return True
        return False

    def _damage_blob(self, fault: Fault) -> bool:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (done := self._damage_some_blob(fault)) and time.monotonic() < deadline_s:
            self._over.wait(LOOK_S)
        return done

    def _damage_some_blob(self, fault: Fault) -> bool:
        folder = self._fleet.disk.folder
        try:
            with closing(sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True)) as database:
                group, checkpoint = random.Random(fault.draw).choice(
                    database.execute("SELECT name, checkpoint FROM groups ORDER BY name").fetchall()
                )
                query = "SELECT blob FROM updates WHERE group_name = ? ORDER BY version DESC LIMIT 5"
                blobs = [checkpoint, *(blob for (blob,) in database.execute(query, (group,)))]
        except sqlite3.Error:
            return False
        blob = random.Random(fault.draw).choice(blobs)
        if not blob or not (file := folder / "blobs" / blob[:2] / blob).exists():
            return False
        pristine = self._fleet.evidence / "cloud" / PRISTINE / blob
        if not pristine.exists():  # else it has been damaged before
            shutil.copy(file, pristine)
        how = damage(file, fault.draw)
        self._record("damage", name="cloud", file=blob, how=how, checkpoint=blob == checkpoint)
        return how is not None

    # clocks

    def _jump_edge_clock(self, fault: Fault) -> bool:
        file = self._fleet.edges[fault.target].clock_file
        file.write_text(str(random.Random(fault.draw).choice(EDGE_JUMPS_S)))
        self._wait(fault)
        file.write_text("0")
        return True

    def _jump_cloud_clock(self, fault: Fault) -> bool:
        self._fleet.clock_file.write_text(str(random.Random(fault.draw).choice(CLOUD_JUMPS_S)))
        self._wait(fault)
        self._fleet.clock_file.write_text("0")
        return True

    def note_state(self, edge: str) -> None:
        """What a device has on its disk while it is dead."""
        state = self._fleet.edges[edge].state
        outbox = read_outbox(state / OUTBOX, self._fleet.evidence / "scratch" / edge)
        self._record("state", name=edge, outbox=outbox, slots=read_slots(state))

"""The five promises, each a function from evidence to sentences about how it was broken; none is what we want.

1. prediction never stops      2. no acknowledged sample is lost, none is trained on twice (deliveries.py)
3. an update is whole or not at all      4. groups stay apart      5. processes live, stay small and end when told
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from chaos.deliveries import deliveries
from chaos.evidence import Evidence, Facts
from chaos.lives import Life, lives_of

GAP_LIMIT_S = 3.0
"""Between two batches of a device that runs: ten times its period, on a machine whose cores are all taken."""
READY_LIMIT_S = 30.0
"""From the start of a device's process to its first prediction, on the same machine."""
MEMORY_LIMITS_MIB = {"cloud": 400, "worker": 1200}
EDGE_MEMORY_LIMIT_MIB = 400
KILLED = -9
_SERVER_ERROR = 500


def prediction_never_stops(evidence: Evidence) -> Iterator[str]:
    """No exception, no gap while the process was alive and not stopped, and predictions after every start."""
    for edge, diary in evidence.edges.items():
        for line in diary:
            if line["event"] == "error":
                yield f"{edge}: batch {line['n']} raised {line['what']}"
        for life in lives_of(evidence, edge):
            yield from _start(evidence, life)
            yield from _gaps(life)


def longest_gap_s(evidence: Evidence) -> float:
    """Between two batches of any device, without the time for which we had stopped it."""
    return max((gap_s for edge in evidence.edges for life in lives_of(evidence, edge) for _, gap_s in _between(life)),
               default=0.0)  # fmt: skip


def _start(evidence: Evidence, life: Life) -> Iterator[str]:
    waits = [line for line in life.diary if line["event"] == "waits"]
    ready_s = next((line["t"] for line in life.diary if line["event"] == "ready"), None)
    if waits and not _bundle_was_damaged(evidence, life):
        yield f"{life.edge}: could not start at {life.began_s:.1f}: {waits[0]['why']}"
    until_s = life.ended_s if ready_s is None else ready_s
    if not waits and life.running_s(life.began_s, until_s) > READY_LIMIT_S:
        yield f"{life.edge}: started at {life.began_s:.1f} and was not ready after {READY_LIMIT_S:.0f} s"


def _bundle_was_damaged(evidence: Evidence, life: Life) -> bool:
    """Without its bundle a device has to ask the cloud for it, and may have to wait for that."""
    before_s = max((line["t"] for line in evidence.edges[life.edge]
                    if line["event"] == "ready" and line["t"] < life.began_s), default=-float("inf"))  # fmt: skip
    return before_s == -float("inf") or any(
        each["name"] == life.edge and each["file"].startswith("bundle-") and before_s < each["t"] < life.ended_s
        for each in evidence.of("damage")
    )


def _between(life: Life) -> Iterator[tuple[float, float]]:
    """(when, seconds of running) from one sign of predicting to the next: ready, each batch, the end."""
    times = [line["t"] for line in life.diary if line["event"] in ("ready", "predicted")]
    if times:
        for before_s, after_s in pairwise([*times, max(times[-1], life.ended_s)]):
            yield before_s, life.running_s(before_s, after_s)


def _gaps(life: Life) -> Iterator[str]:
    for at_s, gap_s in _between(life):
        if gap_s > GAP_LIMIT_S:
            yield f"{life.edge}: no prediction for {gap_s:.1f} s from {at_s:.1f} on"


def updates_are_whole(evidence: Evidence) -> Iterator[str]:
    """What a device ran, and what its disk said after each kill, is exactly what was published for its group."""
    for edge, diary in evidence.edges.items():
        for line in diary:
            if line["event"] == "model" and (wrong := _not_published(evidence, edge, line)):
                yield f"{edge}: ran parameters at {line['t']:.1f} that are not {wrong}"
            if line["event"] == "ready" and line["version"] and not _known(evidence, edge, line["version"]):
                yield f"{edge}: started with version {line['version']}, which was never published"
    for state in evidence.of("state"):
        yield from _slots(evidence, state)


def _known(evidence: Evidence, edge: str, version: int) -> bool:
    return (evidence.cloud.devices.get(edge, ""), version) in evidence.cloud.versions


def _not_published(evidence: Evidence, edge: str, line: Facts) -> str:
    """Weights and biases are the version's or the source's; so are the statistics, unless they are the device's own."""
    names = ("affine",) if line["revision"] else ("affine", "whole")
    said, allowed = [line[name] for name in names], [[evidence.source[name] for name in names]]
    if line["version"]:
        published = evidence.cloud.versions.get((evidence.cloud.devices.get(edge, ""), line["version"]))
        if published is None:
            return f"those of any version {line['version']}"
        if published.digests is None:
            return f"to be compared: the bytes of version {line['version']} are gone"
        allowed.append([published.digests[name] for name in names])
    return "" if said in allowed else f"those of version {line['version']}"


def _slots(evidence: Evidence, state: Facts) -> Iterator[str]:
    group = evidence.cloud.devices.get(state["name"], "")
    blobs = {version.blob for version in evidence.cloud.versions.values() if version.group == group}
    for slot in state["slots"]:
        ours = any(
            each["name"] == state["name"] and each["file"] == f"slot-{slot['slot']}" and each["t"] < state["t"]
            for each in evidence.of("damage")
        )
        # the slot that is not active may be half way to the next version; the pointer tells
        if slot["active"] and slot["found"] != slot["named"] and not ours:
            yield f"{state['name']}: the active slot was not whole after the kill at {state['t']:.1f}"
        if slot["named"] not in blobs:
            yield f"{state['name']}: slot {slot['slot']} held an update that was not published for {group}"


def groups_stay_apart(evidence: Evidence) -> Iterator[str]:
    """No sample is stored under another group than its device's, no update of another group reaches a device."""
    cloud = evidence.cloud
    for (group, sample), (device, _) in cloud.samples.items():
        if cloud.devices.get(device) != group:
            yield f"sample {sample} of {device} was stored in group {group}"
    for each in evidence.of("asked", "repeated"):
        if "version" not in each:
            continue
        version = cloud.versions.get((cloud.devices.get(each["name"], ""), each["version"]))
        if version is None or version.signature != each["signature"]:
            yield f"{each['name']}: was given version {each['version']} that is not its group's"
    for each in evidence.of("misrouted"):
        if each["status"] < _SERVER_ERROR and each["status"] not in (403, 429):
            yield f"{each['name']}: an upload to group {each['group']} was answered with {each['status']}"


def processes_behave(evidence: Evidence) -> Iterator[str]:
    """None ended by itself, hung or grew beyond its bound."""
    for each in evidence.of("exit"):
        if not each["ours"] and not _disk_was_full(evidence, each):
            yield f"{each['name']} ({each['pid']}) ended by itself with exit code {each['code']}"
    for each in evidence.of("hung"):
        yield f"{each['name']} hung: {each['doing']}"
    killed = sum(each["name"] == "worker" for each in evidence.of("kill"))
    for code in evidence.worker_exits:
        if code != KILLED:
            yield f"a worker ended by itself with exit code {code}"
    if evidence.worker_exits.count(KILLED) > killed:
        yield f"{evidence.worker_exits.count(KILLED)} workers were killed, {killed} of them by us"
    for each in evidence.of("memory"):
        limit = MEMORY_LIMITS_MIB.get(each["name"], EDGE_MEMORY_LIMIT_MIB)
        if each["mib"] > limit:
            yield f"{each['name']} took {each['mib']} MiB, expected at most {limit}"


def _disk_was_full(evidence: Evidence, end: Facts) -> bool:
    """A cloud that is started on a full disk may say so and end; its service manager starts it again."""
    full = [each for each in evidence.of("disk full", "disk free") if each["t"] < end["t"]]
    spawned_s = max(each["t"] for each in evidence.of("spawn") if each["pid"] == end["pid"])
    return end["name"] == "cloud" and bool(full) and (full[-1]["event"] == "disk full" or full[-1]["t"] > spawned_s)


PROMISES: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "prediction never stops": prediction_never_stops,
    "no acknowledged sample is lost or trained on twice": deliveries,
    "an update is whole or not at all": updates_are_whole,
    "groups stay apart": groups_stay_apart,
    "processes live, stay small and end when told": processes_behave,
}


def broken_promises(evidence: Evidence) -> dict[str, list[str]]:
    """Each promise with how it was broken."""
    return {name: list(check(evidence)) for name, check in PROMISES.items()}

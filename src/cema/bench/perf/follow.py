"""What a device pays for following its stream: within ``predict``, and on the whole.

The first figure is of single predictions in turns with the bare session, as in edge.py. The second is of whole blocks
of predictions with and without following: the follower's thread works on beside them, and turns of single predictions
would charge half of that to the rival. Between two blocks the thread comes to rest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import cycle

import msgspec
import numpy as np

from cema.bench.datasets import Dataset
from cema.bench.perf.edge import THREADS, ShareSelector, bare_session
from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.bench.perf.timing import median_ms, ratio, take_turns
from cema.config import DeviceConfig, RuntimeConfig, StatisticsConfig, UplinkConfig
from cema.edge import EdgeAgent
from cema.types import Uint8Array
from cema.wire.messages import Preprocess
from cema.wire.preprocess import fit

_POLL_S = 0.002
_WARM_UP_TURNS = 20
BLOCK_S = 0.6
"""Of predictions, between two rests."""
WARM_UP_PICTURES, WARM_UP_BATCH = 400, 16
"""After these, the memory is full, the pauses between measurements are the long ones, and looks that alternate are
known."""
CORRUPTION, OTHER, SEVERITY, PICTURES = "fog", "gaussian_noise", 5, 512
"""The stream: a shift that devices follow in full (and another), and more pictures than a memory holds."""


def shifted(dataset: Dataset, size: tuple[int, int], corruption: str = CORRUPTION) -> Uint8Array:
    """A stream far enough from the source to be followed, uint8 [N, H, W, 3]."""
    recipe = Preprocess(size=size)
    return np.stack([fit(each, recipe) for each in dataset.part(0, PICTURES).condition(corruption, SEVERITY, 0)])


def following(sheet: Sheet, pair: PerfPair, pixels: Uint8Array, batch: int, limit_percent: float, rounds: int) -> None:
    """``EdgeAgent.predict`` of a device that follows, for its stream ``pixels``, uint8 [N, H, W, 3]."""
    batches = _batches(pixels, batch)
    with tempfile.TemporaryDirectory() as folder:
        still, follows = (_agent(pair, f"{folder}/{follow}", follow) for follow in ("off", "on"))
        with still, follows:
            for number in range(-(-WARM_UP_PICTURES // batch)):
                follows.predict(list(batches[number % len(batches)]))
            name = f"{pair.edge_name}, batch {batch}"
            _turns(sheet, name, limit_percent, (still, follows), batches, max(10 * rounds // batch, rounds))
            _blocks(sheet, name, (still, follows), batches, max(rounds // 2, 2))


def alternating(sheet: Sheet, pair: PerfPair, looks: tuple[Uint8Array, Uint8Array], batch: int, rounds: int) -> None:
    """What ``predict`` costs more where two looks alternate (uint8 [N, H, W, 3] each) than with the first alone."""
    one, other = looks
    in_turns = np.stack([one, other], axis=1).reshape(-1, *one.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        still, turning = (_agent(pair, f"{folder}/{name}", "on") for name in ("one", "two"))
        with still, turning:
            _warm_up(still, one)
            for _ in range(_WARM_UP_TURNS):  # a device measures a tenth of its time, and sees looks when it measures
                _warm_up(turning, in_turns)
                if (found := turning.status()["looks"]) != 1:
                    break
            ones, twos = cycle(_batches(one, batch)), cycle(_batches(in_turns, batch))
            contestants: dict[str, Callable[[], object]] = {
                "one": lambda: still.predict(list(next(ones))),
                "two": lambda: turning.predict(list(next(twos))),
            }
            taken = take_turns(contestants, rounds=max(10 * rounds // batch, rounds), warm_up=5)
    sheet.report(
        f"predict where looks alternate, {pair.edge_name}, batch {batch}", "%", 100 * (ratio(taken, "two", "one") - 1),
        f"{found} looks found; {median_ms(taken, 'two'):.3f} against {median_ms(taken, 'one'):.3f} ms with one look",
    )  # fmt: skip


def _turns(
    sheet: Sheet, name: str, limit_percent: float, agents: tuple[EdgeAgent, EdgeAgent], batches: list[Uint8Array],
    rounds: int,
) -> None:  # fmt: skip
    still, follows = agents
    bare, given = bare_session(still), still._updater.bundle.manifest.input_name
    streams = {key: cycle(batches) for key in ("bare", "agent", "following")}
    contestants: dict[str, Callable[[], object]] = {
        "bare": lambda: bare.run(None, {given: next(streams["bare"])}),
        "agent": lambda: still.predict(list(next(streams["agent"]))),
        "following": lambda: follows.predict(list(next(streams["following"]))),
    }
    taken = take_turns(contestants, rounds=rounds, warm_up=5)
    p99_ms = {key: 1000 * float(np.percentile(taken[key], 99)) for key in taken}
    sheet.at_most(
        f"overhead of predict while following, {name}", "%", limit_percent,
        100 * (ratio(taken, "following", "bare") - 1),
        f"{median_ms(taken, 'following'):.3f} against {median_ms(taken, 'bare'):.3f} ms; without following "
        f"{100 * (ratio(taken, 'agent', 'bare') - 1):.1f} %; p99 {p99_ms['following']:.2f}, {p99_ms['agent']:.2f} and "
        f"bare {p99_ms['bare']:.2f} ms; {THREADS} thread",
    )  # fmt: skip


def _blocks(
    sheet: Sheet, name: str, agents: tuple[EdgeAgent, EdgeAgent], batches: list[Uint8Array], blocks: int
) -> None:
    taken: dict[str, list[float]] = {"still": [], "following": []}
    before = _revision(agents[1])
    for number in range(blocks):
        turns = list(zip(taken, agents, strict=True))
        for key, agent in turns if number % 2 else reversed(turns):
            taken[key].append(_block(agent, batches))
            _rest(agents[1])
    measured = _revision(agents[1]) - before
    sheet.report(
        f"cost of following at full tilt, {name}", "%", 100 * (ratio(taken, "following", "still") - 1),
        f"time of a prediction, {measured} measurements in {blocks} blocks of {BLOCK_S:g} s",
    )  # fmt: skip


def _agent(pair: PerfPair, folder: str, follow: str) -> EdgeAgent:
    config = DeviceConfig(
        url="http://127.0.0.1:9", group="perf", device_id=follow, token="none", verify_updates=False, state_dir=folder,  # noqa: S106
        runtime=RuntimeConfig(threads=THREADS), uplink=UplinkConfig(backoff_min_s=60.0, backoff_max_s=600.0),
    )  # fmt: skip
    statistics_config = StatisticsConfig(follow="on" if follow == "on" else "off")
    return EdgeAgent(
        msgspec.structs.replace(config, statistics=statistics_config), bundle=pair.bundle, make_selector=ShareSelector
    )


def _warm_up(agent: EdgeAgent, pixels: Uint8Array) -> None:
    for batch_BHWC in _batches(pixels[:WARM_UP_PICTURES], WARM_UP_BATCH):
        agent.predict(list(batch_BHWC))
        _rest(agent)


def _batches(pixels: Uint8Array, size: int) -> list[Uint8Array]:
    return [pixels[start : start + size] for start in range(0, len(pixels) - size + 1, size)]


def _revision(agent: EdgeAgent) -> int:
    return int(str(agent.status()["stats_revision"]))


def _rest(agent: EdgeAgent) -> None:
    """Until the follower's thread has seen to what was left it; it may wait a moment for more."""
    while agent._follower._waiting:
        time.sleep(_POLL_S)
    with agent._follower._owner:
        pass


def _block(agent: EdgeAgent, batches: list[Uint8Array]) -> float:
    """Seconds of one prediction, on average."""
    started_s, count = time.perf_counter(), 0
    for images_BHWC in cycle(batches):
        agent.predict(list(images_BHWC))
        count += 1
        if (taken_s := time.perf_counter() - started_s) > BLOCK_S:
            break
    return taken_s / count

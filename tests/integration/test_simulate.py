"""The lock-step simulator on digits: the real edge, codec, store and controller, without network and clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cema.bench.datasets import load_dataset
from cema.bench.link import LINKS, Link
from cema.bench.measure import Tally, measure, whole
from cema.bench.simulate import Pair, Plan, Simulator, Travel
from cema.bench.simulated_device import Device, NoSelector
from cema.bench.streams import Pictures, for_edge, make_streams
from cema.config import SelectionConfig
from cema.wire.body import pack_batch
from cema.wire.messages import UpdateManifest
from cema.wire.update import Update

IMAGES = 640
FILTERS = SelectionConfig(e_max_warmup_samples=64)
Run = Callable[..., Tally]


@pytest.fixture(scope="module")
def run(pair: Pair) -> Run:
    digits = load_dataset("digits", None, IMAGES)

    def tally(batch_size: int = 64, corruptions: tuple[str, ...] = ("contrast",), **changes: Any) -> Tally:
        plan = Plan(**{"selection": FILTERS, "threads": 1, **changes})
        (stream,) = make_streams("continual", corruptions, 5, digits.labels, seed=0)
        streams = [for_edge(stream, edge, plan.edges) for edge in range(plan.edges)]
        return whole(measure(Simulator(pair, plan), streams, [Pictures(digits, 0)] * plan.edges, batch_size))

    return tally


def correct(tally: Tally) -> np.ndarray:
    return np.concatenate(tally.correct)


def accuracy(tally: Tally) -> float:
    return float(correct(tally).mean())


def test_cema_paper_and_bn_recover_what_contrast_took_and_count_real_bytes(run: Run) -> None:
    source, bn, paper = run(method="source", selecting="nothing"), run(method="bn"), run(method="cema-paper")
    assert accuracy(source) < 0.6
    assert (source.bytes_up, source.bytes_down, source.uploads) == (0, 0, 0)
    for adapted in (bn, paper):
        assert correct(adapted)[IMAGES // 2 :].mean() > accuracy(source) + 0.15
        assert 0 < adapted.uploads < IMAGES
        assert adapted.bytes_up > 300 * adapted.uploads
        assert adapted.bytes_down > 3000 * adapted.updates > 0


def test_same_seed_gives_the_same_predictions(run: Run) -> None:
    first, second = run(seed=3), run(seed=3)
    np.testing.assert_array_equal(correct(first), correct(second))
    np.testing.assert_array_equal(np.concatenate(first.confidence), np.concatenate(second.confidence))
    assert (first.uploads, first.bytes_up, first.bytes_down) == (second.uploads, second.bytes_up, second.bytes_down)


def test_differences_in_float16_cost_a_fraction_and_next_to_no_accuracy(run: Run) -> None:
    published, short = run(), run(travel=Travel(update_encoding="float16"))
    assert short.updates == published.updates > 5
    assert short.bytes_down < published.bytes_down / 4
    assert accuracy(short) == pytest.approx(accuracy(published), abs=0.01)


def test_the_coding_of_pictures_decides_the_bytes_that_go_up(run: Run) -> None:
    exact, coarse = run(), run(travel=Travel(image_coding="jpeg-30"))
    assert coarse.bytes_up / coarse.uploads < 0.9 * exact.bytes_up / exact.uploads
    assert accuracy(coarse) > accuracy(run(method="source"))


def test_a_device_sends_full_uploads_and_a_rest_and_counts_what_travels(pair: Pair) -> None:
    device = Device("edge-0", pair.bundle, NoSelector(), LINKS["instant"], np.random.default_rng(0), 1, 0)
    images = np.random.default_rng(1).integers(0, 256, (35, 8, 8, 3), dtype=np.uint8)
    probabilities_NK = np.full((35, 10), 0.1, np.float32)
    size = device.upload(images, probabilities_NK, np.ones(35, np.float32), now_s=0.0, captured_at_ms=7)
    batches = device.arrived(now_s=0.0)
    assert [len(batch.samples) for batch in batches] == [16, 16, 3]
    assert [sample.seq for batch in batches for sample in batch.samples] == list(range(35))
    assert size == sum(len(pack_batch(batch, deflate=True).data) for batch in batches)
    assert device.upload(images[:0], probabilities_NK[:0], np.ones(0, np.float32), 0.0, 7) == 0
    assert [batch.samples for batch in device.arrived(now_s=0.0)] == [[]], "samples_seen still travels"


def test_late_updates_help_later(run: Run) -> None:
    prompt, late, source = run(), run(delay=4), run(method="source")
    np.testing.assert_array_equal(correct(late)[: 64 * 5], correct(source)[: 64 * 5])
    assert accuracy(late) < accuracy(prompt)


def test_the_delay_counts_from_the_arrival_of_an_update(pair: Pair) -> None:
    link = Link(name="slow", latency_s=2.0)
    device = Device("edge-0", pair.bundle, NoSelector(), link, np.random.default_rng(0), threads=1, delay=2)
    device.steps = 1
    fingerprint = pair.bundle.manifest.fingerprint
    manifest = UpdateManifest(group="bench", version=1, fingerprint=fingerprint, method="bn", created_at_ms=0)
    device.fetch(100, Update(manifest, pair.bundle.source_parameters(), b""), now_s=0.0)
    used = []
    for step in range(2, 8):  # a batch a second
        device.steps = step
        used.append(device.apply_due(now_s=step - 1.0))
    assert used == [0, 0, 0, 1, 0, 0], "arrived with batch 3, used after batch 5"
    assert device.session.version == 1


def test_a_slow_link_is_staleness_and_an_endless_one_is_the_source(run: Run) -> None:
    prompt, source = run(), run(method="source")
    slow = run(link=Link(name="slow", latency_s=3.0))  # 3 s up, 3 s down: 90 pictures each way at 30 a second
    never = run(link=Link(name="never", latency_s=1e6))
    assert accuracy(source) < accuracy(slow) < accuracy(prompt)
    np.testing.assert_array_equal(correct(never), correct(source))
    assert never.bytes_up > 0 == never.updates


def test_first_batch_start_normalises_the_first_batch_by_itself(run: Run) -> None:
    assert correct(run(first_batch=True))[:64].mean() > correct(run())[:64].mean() + 0.2


def test_random_selection_uploads_as_many_as_the_filters_but_others(run: Run, pair: Pair) -> None:
    frozen = {"method": "source", "batch_size": 64}
    assert run(**frozen).uploads == run(**frozen, selecting="random").uploads > 0


def test_devices_of_a_group_share_what_is_learned(run: Run) -> None:
    alone, together = run(corruptions=("contrast", "fog")), run(corruptions=("contrast", "fog"), edges=2)
    assert len(correct(together)) == 2 * len(correct(alone))
    assert accuracy(together) > accuracy(run(corruptions=("contrast", "fog"), edges=2, method="source")) + 0.1


@pytest.mark.parametrize("batch_size", [1, 7])
def test_small_batches_work(run: Run, batch_size: int) -> None:
    assert accuracy(run(batch_size=batch_size)) > accuracy(run(method="source")) + 0.1

"""After a rollback a worker goes on from what was restored, whatever it has in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import restarted
from cema.cloud.keys import signing_key
from cema.cloud.models import load_model
from cema.cloud.rollback import ATTEMPTS, roll_back
from cema.cloud.store.base import NewUpdate, Store, UpdateRow
from cema.errors import ConflictError, NotFoundError
from cema.types import NormParameters

METHODS = ["cema-paper", "cema", "cema-lite", "bn"]


def back(cloud: Any, to: int, group: str = "g", store: Store | None = None) -> UpdateRow:
    return roll_back(store or cloud.store, cloud.blobs, group, to, key=signing_key(cloud.config), now_ms=cloud.now_ms)


def learn(cloud: Any, worker: Any, turns: int, group: str = "g") -> None:
    for _ in range(turns):
        cloud.upload(group, 32)
        while worker.once():
            pass


def same(left: NormParameters, right: NormParameters) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def state_after(cloud: Any, worker: Any, group: str = "g") -> dict[str, Any]:
    """What the worker trains with, as it would be at the group's next step."""
    return dict(worker._controller(cloud.store.group(group)).adapter.state())


def start_of(cloud: Any, parameters: NormParameters, method: str) -> dict[str, Any]:
    models = [load_model(f"worker_models:{name}").module for name in ("edge", "foundation")]
    return dict(restarted(create_adapter(method, *models, {}).state(), parameters))


@pytest.mark.parametrize("method", METHODS)
def test_the_worker_that_made_the_bad_versions_starts_from_the_restored_parameters(
    make_cloud: Callable[..., Any], method: str
) -> None:
    cloud = make_cloud(method=method)
    worker = cloud.worker()
    learn(cloud, worker, 3)
    latest = cloud.store.group("g").latest_version
    good, bad = cloud.update("g", 1), cloud.update("g", latest)
    assert not same(good.parameters, bad.parameters)
    row = back(cloud, 1)
    made = cloud.update("g", latest + 1)
    assert (row.version, row.rollback_of, row.restores) == (latest + 1, latest, 1)
    assert same(made.parameters, good.parameters)
    assert (made.manifest.rollback_of, made.manifest.encoding) == (latest, good.manifest.encoding)
    assert (made.manifest.stats_owner, made.manifest.domain) == (good.manifest.stats_owner, good.manifest.domain)
    expected, state = start_of(cloud, good.parameters, method), state_after(cloud, worker)
    assert same(state, expected), "parameters restored, foundation as it came, no momentum"
    assert not [name for name in state if "momentum" in name]


@pytest.mark.parametrize("method", METHODS)
def test_back_at_the_source_the_group_is_as_on_its_first_day(
    make_cloud: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    cloud, fresh = make_cloud(method=method), make_cloud(method=method, data_dir=tmp_path / "fresh")
    worker = cloud.worker()
    learn(cloud, worker, 2)
    back(cloud, 0)
    taken_back = cloud.store.group("g").latest_version
    restored = cloud.update("g", taken_back)
    assert same(restored.parameters, cloud.bundle.source_parameters()), "to the bit: not rounded to float16"
    cloud.sent = fresh.sent = 5000
    learn(cloud, worker, 1)
    learn(fresh, fresh.worker(), 1)
    assert same(cloud.update("g", taken_back + 1).parameters, fresh.update("g", 1).parameters)


def test_another_worker_and_a_restarted_one_start_from_the_same_parameters(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud()
    first, second = cloud.worker("one"), cloud.worker("two")
    learn(cloud, first, 1)
    learn(cloud, second, 2)
    back(cloud, 1)
    expected = start_of(cloud, cloud.update("g", 1).parameters, "cema-paper")
    for worker in (first, second, cloud.worker("new")):
        assert same(state_after(cloud, worker), expected)


def test_the_restored_state_survives_a_group_that_borrows_the_models_in_between(
    make_cloud: Callable[..., Any],
) -> None:
    cloud = make_cloud("gh")
    worker = cloud.worker()
    learn(cloud, worker, 2)
    back(cloud, 1)
    expected = start_of(cloud, cloud.update("g", 1).parameters, "cema-paper")
    assert same(state_after(cloud, worker), expected)
    learn(cloud, worker, 1, "h")
    assert same(state_after(cloud, worker), expected)


def test_a_restored_version_that_is_damaged_by_then_stops_no_group(
    make_cloud: Callable[..., Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = make_cloud()
    learn(cloud, cloud.worker(), 2)
    blob = cloud.store.update("g", back(cloud, 1).version).blob
    (folder / "data" / "blobs" / blob[:2] / blob).write_bytes(b"damaged")
    state = state_after(cloud, cloud.worker("another"))
    assert same(state, start_of(cloud, cloud.bundle.source_parameters(), "cema-paper"))
    assert "learning begins at the source" in caplog.text


def test_a_device_that_is_in_another_world_than_the_restored_version_begins_at_the_source(
    make_cloud: Callable[..., Any], tmp_path: Path
) -> None:
    cloud, fresh = make_cloud(method="cema"), make_cloud(method="cema", data_dir=tmp_path / "fresh")
    worker = cloud.worker()
    for domain in (1, 2):
        cloud.upload("g", 16, domain=domain)
        worker.once()
    back(cloud, 1)
    assert cloud.update("g", 3).manifest.domain == 1
    for each, version in ((cloud, 4), (fresh, 1)):
        each.sent = 500
        each.upload("g", 16, domain=2)
        (worker if each is cloud else fresh.worker()).once()
        assert each.update("g", version).manifest.domain == 2
    assert same(cloud.update("g", 4).parameters, fresh.update("g", 1).parameters)


def test_two_rollbacks_without_a_step_between_them_both_count(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud()
    worker = cloud.worker()
    learn(cloud, worker, 3)
    for to in (2, 1, 2):
        back(cloud, to)
        assert same(state_after(cloud, worker), start_of(cloud, cloud.update("g", to).parameters, "cema-paper"))
    back(cloud, 5)  # itself a rollback, to 1
    assert same(cloud.update("g", 7).parameters, cloud.update("g", 1).parameters)


def test_after_the_next_step_the_checkpoint_counts_again(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud()
    learn(cloud, cloud.worker(), 2)
    back(cloud, 1)
    learn(cloud, cloud.worker(), 1)
    row = cloud.store.update("g", 4)
    assert (row.rollback_of, row.restores, row.samples) == (None, None, 32)
    assert cloud.store.group("g").checkpoint is not None
    learned = state_after(cloud, cloud.worker())
    assert [name for name in learned if "momentum" in name]
    assert not same(learned, start_of(cloud, cloud.update("g", 1).parameters, "cema-paper"))


def test_a_step_under_way_neither_publishes_nor_leaves_its_state_behind(
    make_cloud: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = make_cloud()
    worker = cloud.worker()
    learn(cloud, worker, 2)
    commit, during = cloud.store.commit_step, [lambda: back(cloud, 1)]

    def interrupted(*arguments: Any) -> None:
        if during:
            during.pop()()
        commit(*arguments)

    monkeypatch.setattr(cloud.store, "commit_step", interrupted)
    cloud.upload("g", 32)
    assert worker.once()
    assert [row.version for row in cloud.store.updates("g")] == [3, 2, 1]
    assert cloud.store.group("g").pending == 32, "these samples are still to be learned"
    assert same(state_after(cloud, worker), start_of(cloud, cloud.update("g", 1).parameters, "cema-paper"))
    assert worker.once()
    assert cloud.store.group("g").latest_version == 4


class Raced:
    """A store in which ``publish`` happens whenever somebody is just about to roll back, ``races`` times."""

    def __init__(self, store: Store, publish: Callable[[], None], races: int) -> None:
        self.store, self.publish, self.races = store, publish, races

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def roll_back(self, group: str, lineage: int, update: NewUpdate, now_ms: int) -> object:
        if self.races:
            self.races -= 1
            self.publish()
        return self.store.roll_back(group, lineage, update, now_ms)


def test_a_version_that_is_published_meanwhile_is_taken_back_as_well(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud()
    worker = cloud.worker()
    learn(cloud, worker, 2)
    raced = Raced(cloud.store, lambda: learn(cloud, worker, 1), 2)
    row = back(cloud, 1, store=raced)  # type: ignore[arg-type]
    assert (row.version, row.rollback_of, row.restores) == (5, 4, 1)
    raced.races = ATTEMPTS
    with pytest.raises(ConflictError, match="expected version"):
        back(cloud, 1, store=raced)  # type: ignore[arg-type]
    assert [each.rollback_of for each in cloud.store.updates("g")][:ATTEMPTS] == [None] * ATTEMPTS


@pytest.mark.parametrize(
    ("to", "error", "text"),
    [(2, ConflictError, "earlier version"), (7, NotFoundError, "no version 7"), (3, NotFoundError, "no version 3")],
)
def test_there_is_no_way_back_to_what_is_not_earlier(
    make_cloud: Callable[..., Any], to: int, error: type[Exception], text: str
) -> None:
    cloud = make_cloud()
    with pytest.raises(ConflictError, match="earlier version"):
        back(cloud, 0)
    with pytest.raises(NotFoundError):
        back(cloud, 0, "x")
    learn(cloud, cloud.worker(), 2)
    with pytest.raises(error, match=text):
        back(cloud, to)
    assert cloud.store.group("g").latest_version == 2


def test_a_version_of_another_bundle_cannot_be_restored(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud()
    learn(cloud, cloud.worker(), 2)
    cloud.store.put_group("g", "another", cloud.store.group("g").bundle_blob, "on", 1)
    for to in (0, 1):
        with pytest.raises(ConflictError, match="for bundle"):
            back(cloud, to)

"""Hostile bodies through ``POST .../samples`` and ``POST .../key`` of a running web process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cema.wire.messages import MSGPACK_TYPE
from hostile.batches import CASES, batch_of
from hostile.case import TAKEN, Case, bounded, check_error, contents, each


def stored(cloud: Any) -> tuple[Any, ...]:
    """What of the group is kept for training, and all blobs."""
    row = cloud.store.group("g")
    return row.pending, row.samples_seen, row.latest_version, contents(Path(cloud.config.server.data_dir) / "blobs")


def send(cloud: Any, body: bytes, path: str = "/v1/groups/g/samples", headers: dict[str, str] | None = None) -> Any:
    sent = {"Authorization": "Bearer secret-of-cam", "Content-Type": MSGPACK_TYPE, **(headers or {})}
    return cloud.http.request("POST", cloud.url + path, body=body, headers=sent, timeout=30)


@each(CASES)
def test_the_cloud_refuses_the_body_and_goes_on(case: Case, cloud: Any) -> None:
    body, before = case.build(), stored(cloud)
    with bounded(case):
        answer = send(cloud, body, case.options.get("path", "/v1/groups/g/samples"), case.options.get("headers"))
    said = answer.json()
    if case.code == TAKEN:
        assert (answer.status, said["rejected"]) == (200, [])
    elif case.options.get("sample"):
        assert answer.status == 200, said
        (rejection,) = said["rejected"]
        assert len(rejection["sample_id"]) <= 32
        check_error(case, rejection["code"], rejection["message"], "")
    else:
        assert (answer.status >= 400, list(said)) == (True, ["code", "message", "hint"])
        check_error(case, **said)
    if case.code != TAKEN:
        assert stored(cloud) == before
    assert cloud.call("/v1/groups/g").status == 200


def test_after_all_of_them_a_good_batch_is_taken(cloud: Any) -> None:
    before = cloud.store.group("g").pending
    answer = send(cloud, batch_of(sample_id=os.urandom(16)))
    assert (answer.status, answer.json()["accepted"]) == (200, 1)
    assert cloud.store.group("g").pending == before + 1

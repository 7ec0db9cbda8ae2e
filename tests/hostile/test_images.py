"""Hostile pictures through both doors: ``EdgeAgent.predict`` on a device, and an uploaded sample in the cloud."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from cema.edge.writer import image_codec
from cema.errors import ImageError, WireError
from cema.wire.messages import MSGPACK_TYPE, Preprocess, encode_msgpack
from cema.wire.preprocess import fit_encoded
from hostile.case import TAKEN, Case, bounded, check_error, contents, each
from hostile.images import CASES
from hostile.payloads import CASES as PAYLOADS
from integration.web.conftest import PICTURE

RECIPE = Preprocess(size=(8, 8))
SILENT = ("status.json", "outbox.db", "outbox.db-wal", "outbox.db-shm")
"""What the agent's writer may touch at any time; what is in the outbox, the agent says itself."""


@each(CASES)
def test_an_agent_refuses_the_picture_and_goes_on(case: Case, device: Any) -> None:
    data, before, queued = case.build(), contents(device.folder, without=SILENT), device.queued()
    seen = device.agent.counters.samples_seen
    with bounded(case):
        if case.code == TAKEN:
            device.predicts(data)
        else:
            with pytest.raises(ImageError) as caught:
                device.agent.predict([PICTURE, data])
            assert caught.value.values["index"] == 1
            with pytest.raises(WireError) as decoded:
                fit_encoded(data, RECIPE)
    if case.code != TAKEN:
        check_error(case, decoded.value.code, caught.value.message, caught.value.hint)
    taken = int(case.code == TAKEN)
    assert (device.queued() - queued, device.agent.counters.samples_seen - seen) == (taken, taken)
    device.predicts()
    assert contents(device.folder, without=SILENT) == before


@each(PAYLOADS)
def test_the_cloud_refuses_the_payload_or_its_worker_leaves_it_out(case: Case, roomy_cloud: Any) -> None:
    data, sample_id = case.build(), os.urandom(16)
    codec = case.options.get("codec", image_codec(data))
    sample = roomy_cloud.sample(0, sample_id=sample_id, image=data, codec=codec)
    body = encode_msgpack(roomy_cloud.batch(sample))
    before = roomy_cloud.store.group("g").pending
    with bounded(case):
        answer = roomy_cloud.call("/v1/groups/g/samples", "POST", body=body, Content_Type=MSGPACK_TYPE)
    receipt = answer.json()
    assert answer.status == 200, receipt
    waiting = roomy_cloud.store.group("g").pending
    if case.code == TAKEN or case.options.get("late"):
        assert (receipt["accepted"], receipt["rejected"]) == (1, [])
        assert waiting == before + 1
    else:
        (rejection,) = receipt["rejected"]
        assert rejection["sample_id"] == sample_id.hex()
        check_error(case, rejection["code"], rejection["message"], "")
        assert waiting == before
    if case.options.get("late"):  # what the worker does with it
        with pytest.raises(WireError) as caught:
            fit_encoded(data, RECIPE, codec)
        check_error(case, caught.value.code, caught.value.message, caught.value.hint)
    assert roomy_cloud.call("/v1/groups/g").status == 200


def test_sixteen_bits_of_grey_keep_their_brightness() -> None:
    (case,) = [case for case in CASES if case.name == "png 16 bit grey"]
    pixels_HWC = fit_encoded(case.build(), msgspec.structs.replace(RECIPE, size=(48, 64)))
    assert pixels_HWC[:, :, 0].tolist() == [[row + column for column in range(64)] for row in range(48)]

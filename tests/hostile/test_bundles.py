"""Hostile bundles handed to a running agent, as its poller does when the cloud says that the group has another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from cema.errors import CemaError
from hostile.bundles import CASES, SECRET
from hostile.case import Case, bounded, check_error, contents, each
from hostile.keys import OTHER_BUNDLE
from hostile.test_updates import SILENT


@each(CASES)
def test_an_agent_refuses_the_bundle_and_goes_on(
    case: Case, device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weight,) = [each for each in onnx.load_from_string(OTHER_BUNDLE.model).graph.initializer if each.name == "fc"]
    (tmp_path / SECRET).write_bytes(numpy_helper.to_array(weight).tobytes())
    monkeypatch.chdir(tmp_path)
    data, signature = case.build()
    before, version = contents(device.folder, without=SILENT), device.predicts().version
    fingerprint = device.updater.fingerprint
    with bounded(case), pytest.raises(CemaError) as caught:
        device.updater.replace_bundle(data, signature)
    check_error(case, caught.value.code, caught.value.message, caught.value.hint)
    assert device.predicts().version == version
    assert device.updater.fingerprint == fingerprint
    assert contents(device.folder, without=SILENT) == before

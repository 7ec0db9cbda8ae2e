"""A device with nothing but the wheel and its dependencies, against a real cloud: predict, upload, adapt."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.e2e]
SEND_EVERYTHING = "\n[selection]\nenabled = false\n[uplink]\npoll_wait_s = 1\n"
LIMIT_S = 60
PAUSE_S = 0.05


def configured(service: Any, **changes: str) -> Path:
    """An enrolled device that sends every image; keys of its file changed or added."""
    file: Path = service.enrol("cam")
    lines = [line for line in file.read_text().splitlines() if line.partition(" = ")[0] not in changes]
    lines += [f"{key} = {value}" for key, value in changes.items()]
    file.write_text("\n".join(lines) + SEND_EVERYTHING)
    return file


class Stream:
    """``cema edge run`` as a camera uses it: a file name goes in, a prediction comes out."""

    def __init__(self, device: Any, config: Path) -> None:
        self._child = subprocess.Popen(
            [device.cema, "edge", "run", "--device", str(config), "--images", "-", "--settle", "20"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def predict(self, photo: Path) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{photo}\n")
        line = self._child.stdout.readline()
        assert line, self._child.communicate()[1]
        return dict(json.loads(line))

    def close(self) -> int:
        self._child.communicate(timeout=LIMIT_S)
        return self._child.returncode


def predict_until_adapted(stream: Stream, photos: list[Path], labels: list[int]) -> tuple[int, int, int]:
    """A pass over the images, then one of them again and again until an update answers: version, right, wrong."""
    right, said = 0, {"version": 0}
    for photo, label in zip(photos, labels, strict=True):
        said = stream.predict(photo)
        right += said["label"] == label
    deadline, wrong = time.monotonic() + LIMIT_S, len(photos) - right
    while said["version"] == 0 and time.monotonic() < deadline:
        threading.Event().wait(PAUSE_S)
        said = stream.predict(photos[0])
    return said["version"], right, wrong


@pytest.mark.parametrize(("install", "verify"), [("base", "false"), ("verifying", "true")])
def test_a_device_predicts_uploads_and_takes_over_what_the_cloud_learned(
    install: str, verify: str, service: Any, photos: tuple[Path, list[int]], request: pytest.FixtureRequest
) -> None:
    device = request.getfixturevalue(install)
    config = configured(service, verify_updates=verify)
    stream = Stream(device, config)
    version, right, wrong = predict_until_adapted(stream, sorted(photos[0].iterdir()), photos[1])
    assert stream.close() == 0
    assert right >= 0.9 * (right + wrong)
    assert version > 0
    status = json.loads(
        device.run("edge", "status", "--state", str(service.folder / "cema-state/cam"), "--json").stdout
    )
    assert status["updates_applied"] > 0
    assert status["updates_refused"] == 0
    assert status["uploaded"] >= 32
    assert status["last_error"] is None


def test_without_the_means_to_verify_a_device_does_not_start(
    base: Any, service: Any, photos: tuple[Path, list[int]]
) -> None:
    done = base.run("edge", "run", "--device", str(configured(service)), "--images", str(photos[0]))
    assert done.returncode == 10
    assert "pip install 'cema[verify]'" in done.stderr


def test_content_of_another_key_is_refused(verifying: Any, service: Any, photos: tuple[Path, list[int]]) -> None:
    config = configured(service, public_key=f'"{base64.b64encode(bytes(31) + bytes([1])).decode()}"')
    done = verifying.run("edge", "run", "--device", str(config), "--images", str(photos[0]))
    assert done.returncode == 3
    assert "signature_invalid" in done.stderr
    assert done.stdout == ""

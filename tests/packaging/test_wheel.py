"""What lies in the wheel, what comes with it, how much that weighs, and what its command says."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.packaging
BASE = {
    "numpy", "onnxruntime", "pillow", "msgspec", "urllib3", "safetensors", "click",
    "flatbuffers", "packaging", "protobuf",  # onnxruntime asks for these three
}  # fmt: skip
VERIFY = BASE | {"pynacl", "cffi", "pycparser"}
BASE_MIB, VERIFY_MIB = 145, 155
"""Budgets of the two installs: a device's flash and its update link pay for every one of them."""
DATA_FILES = (
    "py.typed",
    "cloud/models/weights/digits-edge.safetensors",
    "cloud/models/weights/digits-foundation.safetensors",
    "cloud/store/migrations/env.py",
    "cloud/store/migrations/script.py.mako",
    "cloud/store/migrations/versions/0001_initial.py",
    "cloud/store/migrations/versions/0002_credentials.py",
    "demo/report.html.j2",
)


@pytest.mark.parametrize("file", DATA_FILES)
def test_the_wheel_carries_its_data_files(file: str, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert f"cema/{file}" in archive.namelist()


def test_the_wheel_holds_cema_alone_and_all_of_its_modules(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"cema", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    source = Path(__file__).parents[2] / "src"
    modules = {str(path.relative_to(source)) for path in (source / "cema").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_base_install_is_ten_packages_within_its_budget(base: Any) -> None:
    assert set(base.packages) == BASE
    assert base.mib <= BASE_MIB, f"expected at most {BASE_MIB} MiB, got {base.mib}: {base.packages}"


def test_signature_checks_add_three_packages_within_the_budget(verifying: Any) -> None:
    assert set(verifying.packages) == VERIFY
    assert verifying.mib <= VERIFY_MIB, f"expected at most {VERIFY_MIB} MiB, got {verifying.mib}: {verifying.packages}"


def test_the_cloud_libraries_cannot_be_imported_on_a_device(base: Any) -> None:
    names = ["torch", "onnx", "fastapi", "sqlalchemy", "alembic", "uvicorn", "nacl"]
    script = f"import importlib.util as u, json; print(json.dumps([n for n in {names} if u.find_spec(n)]))"
    assert base.evaluate(script) == []


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["edge", "--help"], ["edge", "run", "--help"]])
def test_commands_of_a_device_answer(command: list[str], base: Any) -> None:
    done = base.run(*command)
    assert done.returncode == 0, done.stderr
    assert "cema" in done.stdout


def test_the_package_runs_as_a_module(base: Any) -> None:
    done = base.module("cema", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout == base.run("--version").stdout


def test_doctor_finds_nothing_wrong_with_a_device(base: Any, tmp_path: Path) -> None:
    done = base.run("doctor", "--json", cwd=tmp_path)
    findings = json.loads(done.stdout)
    assert [finding for finding in findings if not finding["ok"]] == []
    assert done.returncode == 0
    assert "CPUExecutionProvider" in str(findings)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["serve", "--help"], "cloud"),
        (["serve", "-c", "cema.toml"], "cloud"),
        (["device", "list"], "cloud"),
        (["bundle", "build", "digits-edge", "--out", "digits.cema"], "cloud"),
        (["demo"], "cloud,bench"),
    ],
)
def test_commands_of_the_cloud_say_what_to_install(command: list[str], extra: str, base: Any, tmp_path: Path) -> None:
    done = base.run(*command, cwd=tmp_path)
    assert done.returncode == 10, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(f"error[dependency_missing]: 'cema {command[0]}' needs ")
    assert f"pip install 'cema[{extra}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_cloud_doctor_lists_what_is_missing(base: Any, tmp_path: Path) -> None:
    (tmp_path / "cema.toml").write_text("")
    done = base.run("doctor", "-c", "cema.toml", "--json", cwd=tmp_path)
    (packages,) = (finding for finding in json.loads(done.stdout) if finding["number"] == "D20")
    assert done.returncode == 1
    assert "torch" in packages["text"]
    assert packages["fix"] == "pip install 'cema[cloud]'"

"""Every module can be imported: all of them with the development install, those of the device with the base install."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "src"
RUN_ONLY = {"cema.__main__", "cema.cloud.store.migrations.env"}
"""Not for import: one is run by ``python -m cema`` (test_wheel.py), the other by Alembic (test_store_sql.py)."""
EDGE = ("cema.edge", "cema.wire", "cema.config", "cema.config_files", "cema.types", "cema.errors", "cema.telemetry")
EDGE_COMMANDS = ("cema.cli.main", "cema.cli.output", "cema.cli.edge", "cema.cli.doctor")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = sorted({module_name(path) for path in (SOURCE / "cema").rglob("*.py")} - RUN_ONLY)
DEVICE_MODULES = [name for name in MODULES if name in EDGE_COMMANDS or name.startswith(EDGE)]


@pytest.fixture(scope="module")
def imported(base: Any) -> dict[str, Any]:
    """What became of each import on the device, and which of the cloud's libraries came along."""
    return dict(base.evaluate(
        "import importlib, json, sys\n"
        "errors = {}\n"
        f"for name in {DEVICE_MODULES}:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: errors[name] = repr(error)\n"
        "print(json.dumps({'errors': errors, 'from': sys.modules['cema'].__file__}))"
    ))  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    assert import_module(name).__name__ == name


@pytest.mark.packaging
@pytest.mark.parametrize("name", DEVICE_MODULES)
def test_every_module_of_the_device_imports_with_the_base_install(name: str, imported: dict[str, Any]) -> None:
    assert name not in imported["errors"], imported["errors"][name]


@pytest.mark.packaging
def test_the_device_imports_the_wheel_and_not_the_source_tree(imported: dict[str, Any], base: Any) -> None:
    assert Path(imported["from"]).is_relative_to(base.python.parent.parent)

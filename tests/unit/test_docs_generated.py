"""The pages made from code say what the code says, and nothing is left undescribed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Annotated

import msgspec
import pytest

from cema.config import DeviceConfig, Section, ServeConfig
from cema.errors import all_errors
from cema.wire import messages
from cema.wire.messages import Message

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_up_to_date(generator: ModuleType) -> None:
    assert generator.main(["--check"]) == 0, "run python scripts/generate_docs.py"


def test_a_page_that_differs_or_is_missing_fails_the_check_and_is_not_written(
    generator: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generator.main(["--check"], tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    assert generator.main([], tmp_path) == 0
    assert generator.main(["--check"], tmp_path) == 0
    page = tmp_path / "errors.md"
    page.write_text(page.read_text().replace("409", "408"))
    assert generator.main(["--check"], tmp_path) == 1
    assert "errors.md" in capsys.readouterr().err


def test_every_key_is_on_the_page_with_its_default(generator: ModuleType) -> None:
    page = generator.configuration_page()

    def visit(kind: type[Section]) -> None:
        for field in msgspec.structs.fields(kind):
            if isinstance(field.default, Section):
                visit(type(field.default))
            elif field.name != "groups":
                assert f"| `{field.encode_name}` |" in page
                assert field.name in generator.comments(kind)

    for kind in (DeviceConfig, ServeConfig):
        visit(kind)
    assert "### `[groups.NAME]`" in page
    assert '| `adaptation` | string | `"off"` or `"on"` | `"on"` |' in page
    assert "| `poll_wait_s` | float | >= 0, <= 55 | `30.0` |" in page


def test_a_key_without_a_comment_is_an_error(generator: ModuleType) -> None:
    class Bare(Section, frozen=True, kw_only=True):
        """A table for this test."""

        described: int = 1  # this one is
        silent: Annotated[int, msgspec.Meta(ge=0)] = 2

    with pytest.raises(ValueError, match=r"Bare\.silent"):
        list(generator._tables(Bare, ""))


def test_every_error_code_is_on_the_page(generator: ModuleType) -> None:
    page = generator.errors_page()
    for kind in all_errors():
        if kind.__module__ == "cema.errors":
            assert f"| `{kind.code}` |" in page
            assert f"| {kind.http_status} | {kind.exit_code} |" in page


def test_the_protocol_page_names_every_field_of_every_message_and_every_header() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)]
    for kind in kinds:
        for name in kind.__struct_fields__:
            assert f"`{name}`" in page, f"{kind.__name__}.{name}"
    for name in ("SIGNATURE_HEADER", "STATEMENT_HEADER", "VERSION_HEADER", "FINGERPRINT_HEADER"):
        assert getattr(messages, name) in page
    for media_type in (messages.MSGPACK_TYPE, messages.UPDATE_TYPE, messages.BUNDLE_TYPE):
        assert media_type in page

"""Write the pages that are made from code: ``docs/errors.md`` and ``docs/configuration.md``.

    python scripts/generate_docs.py            write them
    python scripts/generate_docs.py --check    exit 1 if one of them is not what the code says

A setting's description is the comment behind it; one without a comment is an error.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect as types

from cema import config
from cema.config import DeviceConfig, Section, ServeConfig
from cema.errors import CemaError, all_errors

DOCS = Path(__file__).resolve().parent.parent / "docs"
_NAME_PATTERN = next(limit.pattern for limit in get_args(config.Name)[1:])
NOTICE = "<!-- Made by scripts/generate_docs.py; do not edit. -->"


def errors_page() -> str:
    rows = [
        f"| `{kind.code}` | {'&nbsp;' * 4 * (len(kind.__mro__) - len(CemaError.__mro__))}`{kind.__name__}` | "
        f"{kind.http_status} | {kind.exit_code} | {_first_paragraph(kind)} |"
        for kind in all_errors()
    ]
    return f"""{NOTICE}
# Errors

Every failure has a stable code. Libraries raise the class; the command line prints the message and the hint to standard
error and ends with the exit code; the cloud answers with the HTTP status and `{{"code", "message", "hint"}}`. The
message says what was expected and what came, the hint says what to do. Classes live in `cema.errors`; indented ones are
special cases of the one above and may be caught with it. `internal` is what nobody foresaw: the log has the details.

| code | class | HTTP status | exit code | meaning |
|---|---|---|---|---|
{chr(10).join(rows)}
"""


def configuration_page() -> str:
    return f"""{NOTICE}
# Configuration

Two TOML files: `device.toml` on each device, `cema.toml` in the cloud. Unknown keys and values out of range are errors
that name the key. Relative paths are relative to the folder of the file that names them. Names of units are part of the
keys: `_s` seconds, `_ms` milliseconds, `_bytes` bytes. A method's own numbers (learning rates, thresholds) are not here
but at the top of the method's file; `options` of a group overrides those of the cloud.

{_file("device.toml", DeviceConfig)}
{_file("cema.toml", ServeConfig)}"""


PAGES: dict[str, Callable[[], str]] = {"errors.md": errors_page, "configuration.md": configuration_page}


def _file(name: str, kind: type[Section]) -> str:
    tables = "\n".join(_tables(kind, ""))
    use = _first_paragraph(kind).partition(": ")[2]
    return f"## `{name}`\n\n{use[0].upper()}{use[1:]}\n\n{tables}"


def _tables(kind: type[Section], path: str) -> Iterator[str]:
    """One Markdown table per TOML table, the file's top level first."""
    fields, nested = [], []
    described = comments(kind)
    for field in msgspec.structs.fields(kind):
        inner, suffix = _section_in(field.type)
        if inner is not None:
            nested.append((inner, f"{path}{field.encode_name}{suffix}"))
        elif field.name not in described:
            raise ValueError(f"{kind.__name__}.{field.name} has no comment that describes it")
        else:
            shown, limits = _type(types.type_info(field.type))
            default = _default(field)
            fields.append(f"| `{field.encode_name}` | {shown} | {limits} | {default} | {described[field.name]} |")
    if fields:
        heading = f"### `[{path}]`\n\n{_first_paragraph(kind)}\n\n" if path else ""
        yield f"{heading}| key | type | range | default | meaning |\n|---|---|---|---|---|\n" + "\n".join(fields) + "\n"
    for inner, inner_path in nested:
        yield from _tables(inner, inner_path)


def _section_in(kind: Any) -> tuple[type[Section] | None, str]:
    """The table behind a field, if it is one; with ``.NAME`` when there are several by name."""
    info = types.type_info(kind)
    suffix = ""
    if isinstance(info, types.DictType):
        info, suffix = info.value_type, ".NAME"
    if isinstance(info, types.StructType) and issubclass(info.cls, Section):
        return info.cls, suffix
    return None, ""


def comments(kind: type[Section]) -> dict[str, str]:
    """The comment behind each field of a configuration table."""
    source = textwrap.dedent(inspect.getsource(kind))
    at_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: _markdown(" ".join(found))
        for node in definition.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and (found := [at_line[line] for line in _lines(node) if line in at_line])
    }


def _lines(node: ast.AnnAssign) -> range:
    """All lines of a field: a formatter may wrap it and leave the comment on any of them."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _type(info: types.Type) -> tuple[str, str]:
    """What a value is called in TOML, and its range."""
    if isinstance(info, types.UnionType):
        parts = [_type(part) for part in info.types if not isinstance(part, types.NoneType)]
        return " or ".join(shown for shown, _ in parts), "; ".join(filter(None, (limits for _, limits in parts)))
    if isinstance(info, types.LiteralType):
        return "string", " or ".join(f'`"{value}"`' for value in info.values)
    if isinstance(info, types.VarTupleType):
        return f"list of {_type(info.item_type)[0]}s", ""
    if isinstance(info, types.DictType):
        return "table", ""
    return type(info).__name__.removesuffix("Type").lower().replace("str", "string"), _limits(info)


def _limits(info: types.Type) -> str:
    if isinstance(info, types.StrType) and info.pattern == _NAME_PATTERN:
        return "1 to 64 of `A-Z a-z 0-9 . _ -`, the first a letter or digit"
    if not isinstance(info, types.IntType | types.FloatType):
        return ""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [(sign, getattr(info, name)) for name, sign in signs.items()]
    return ", ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "unset"
    return f"`{msgspec.json.encode(value).decode()}`"


def _first_paragraph(kind: type) -> str:
    text = re.split(r"\n\s*\n", inspect.cleandoc(kind.__doc__ or ""))[0]
    return _markdown(" ".join(text.split()))


def _markdown(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def main(arguments: list[str] | None = None, folder: Path = DOCS) -> int:
    parser = argparse.ArgumentParser(description="Write or check the documentation pages that are made from code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for name, page in PAGES.items():
        path, text = folder / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python scripts/generate_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

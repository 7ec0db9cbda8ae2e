"""The OpenAPI documents against the running service: requests made from them, fitting and not, get what they say.

Never a 5xx, only documented statuses, media types and bodies (schemathesis). Who may ask is in ``test_http_matrix.py``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.wire.messages import MSGPACK_TYPE

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: 'make setup' does")
conformance = pytest.importorskip("schemathesis.specs.openapi.checks")
GenerationMode = schemathesis.GenerationMode
CHECKS = [
    schemathesis.checks.not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_headers_conformance,
    conformance.response_schema_conformance,
]
NAMES = {"group": "g", "name": "victim", "version": 1}
BODY = {"device_id": "cam", "boot_id": "b" * 16, "protocol": 1, "key_sha256": "0" * 64}
EXAMPLES = 20
"""Requests for each endpoint, listener and kind."""
POLL_S = 0.01
"""Longest wait of a poll here: the fuzzer asks for hours."""


BINARY = ("boot_id", "sample_id", "image", "mean", "variance")
"""Fields that are bytes in msgpack; the schema is one of JSON, where they are text."""


mostly = st.sampled_from([True, True, True, False])


@schemathesis.serializer(MSGPACK_TYPE)
def as_msgpack(_: Any, value: Any) -> bytes:
    """Bodies that do not fit may hold what msgpack cannot say: those travel as their text."""
    try:
        return msgspec.msgpack.encode(with_bytes(value))
    except (TypeError, ValueError, OverflowError):
        return str(value).encode()


def with_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [with_bytes(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: each.encode(errors="replace") if key in BINARY and isinstance(each, str) else with_bytes(each)
        for key, each in value.items()
    }


@pytest.fixture
def server_settings() -> dict[str, Any]:
    return {"max_poll_wait_s": POLL_S, "device_requests_per_s": 0}


def answered_as_documented(case: Any, credentials: dict[str, str], real: dict[str, Any] | None) -> None:
    if real:  # else hardly any request would get as far as a group or a device that exists
        case.path_parameters.update({name: NAMES[name] for name in case.path_parameters or {} if name in NAMES})
        if isinstance(case.body, dict):
            case.body.update({name: real[name] for name in case.body if name in real})
    case.call_and_validate(headers=credentials, checks=CHECKS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"])
@pytest.mark.parametrize(("listener", "token"), [("devices", "secret-of-cam"), ("people", "secret-of-ann")])
def test_every_answer_is_documented(fleet: Any, listener: str, token: str, mode: Any) -> None:
    """With a real bundle and real versions: a rollback opens them."""
    service, body = fleet.service, BODY | {"fingerprint": fleet.bundle.manifest.fingerprint}
    service.store.enrol("victim", "g", fleet.digest("secret-of-victim"), 1)
    url = service.url if listener == "devices" else service.admin_url
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    asked = []
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not {"400", "422"} & set(operation.definition.raw["responses"]):
            continue  # nothing about it can be wrong: every text may be a name
        asked.append(operation.label)

        @given(case=operation.as_strategy(generation_mode=mode), known=mostly, real=mostly)
        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        def ask(case: Any, known: bool, real: bool) -> None:
            answered_as_documented(case, {"Authorization": f"Bearer {token}"} if known else {}, body if real else None)

        ask()
    assert len(asked) >= (1 if mode is GenerationMode.NEGATIVE else 9)

"""A device comes by its own key, and by the next one: whatever is lost on the way, it is never locked out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cema.config import DeviceConfig, UplinkConfig
from cema.edge.client import CloudClient
from cema.edge.identity import KEY_COPY, KEY_FILE, Identity, KeyFile, current_token
from cema.edge.slots import StateFolder
from cema.errors import AuthError, ConfigError, EnrolmentError, TransportError
from cema.wire.messages import KeyProposal, SampleBatch
from cema.wire.tokens import ENROLMENT_PREFIX, token_digest

ONCE = ENROLMENT_PREFIX + "for-new"
UNTIL_MS = 2000


class PowerCutError(BaseException):
    """The process ends here."""


class Device:
    """A device that may be started again and again on the same state folder."""

    def __init__(self, service: Any, folder: Path, token: str | None = ONCE, name: str = "new") -> None:
        self.service = service
        self.config = DeviceConfig(url=service.url, group="g", device_id=name, token=token, state_dir=str(folder))
        self.folder = folder
        self._open: list[Any] = []

    def start(self, token: str | None = ONCE) -> CloudClient:
        self.stop()
        state = StateFolder(self.folder)
        self._open.append(state)
        identity = Identity(msgspec.structs.replace(self.config, token=token), state)
        client = CloudClient(self.service.url, "g", identity, config=UplinkConfig())
        self._open.append(client)
        return client

    def stop(self) -> None:
        while self._open:
            self._open.pop().close()

    @property
    def key(self) -> str:
        key = msgspec.json.decode((self.folder / KEY_FILE).read_bytes(), type=KeyFile).key
        assert key is not None
        return key


@pytest.fixture
def device(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.delenv("CEMA_TOKEN", raising=False)
    service.store.enrol("new", "g", token_digest(ONCE), 1, token_expires_ms=UNTIL_MS)
    made = Device(service, tmp_path / "state")
    yield made
    made.stop()


def tokens_that_work(service: Any, *tokens: str) -> list[bool]:
    return [service.call("/v1/groups/g", token=token).status == 200 for token in tokens]


def test_the_first_request_exchanges_the_token_for_a_key_of_its_own(device: Device, service: Any) -> None:
    assert device.start().status().group == "g"
    assert tokens_that_work(service, device.key, ONCE) == [True, False]
    assert (device.folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    service.clock_ms[0] = UNTIL_MS  # the token's time is over, the key's is not
    assert device.start().status().group == "g"
    assert device.start(token=None).status().group == "g", "the token may go from device.toml"
    assert current_token(device.config) == device.key


def test_no_secret_ever_reaches_the_store(device: Device, service: Any) -> None:
    device.start().status()
    stored = b"".join(path.read_bytes() for path in Path(service.config.server.data_dir).glob("cema.db*"))
    assert token_digest(device.key).encode() in stored
    for secret in (device.key, ONCE, "secret-of-cam", "secret-of-ann"):
        assert secret.encode() not in stored


@pytest.mark.parametrize(
    "cut", ["before the key is written", "before it is sent", "before the answer", "before it is kept"]
)
@pytest.mark.parametrize("expired", [False, True])
def test_a_power_cut_at_any_point_does_not_lock_the_device_out(
    device: Device, service: Any, monkeypatch: pytest.MonkeyPatch, cut: str, expired: bool
) -> None:
    arrived = cut in ("before the answer", "before it is kept")
    _cut_power(monkeypatch, cut)
    with pytest.raises(PowerCutError):
        device.start().status()
    monkeypatch.undo()
    monkeypatch.delenv("CEMA_TOKEN", raising=False)
    service.clock_ms[0] = UNTIL_MS if expired else UNTIL_MS - 1
    if expired and not arrived:
        with pytest.raises(AuthError, match="expired"):
            device.start().status()
        return
    assert device.start().status().group == "g"
    assert tokens_that_work(service, device.key, ONCE) == [True, False]


def _cut_power(monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    propose, write = CloudClient._propose, StateFolder.write_private

    def dying_propose(client: CloudClient, token: str, proposal: KeyProposal) -> None:
        if cut == "before the answer":
            propose(client, token, proposal)
        raise PowerCutError

    def dying_write(folder: StateFolder, name: str, data: bytes) -> None:
        if cut == "before the key is written" or b'"next":null' in data:
            raise PowerCutError
        write(folder, name, data)

    if cut in ("before it is sent", "before the answer"):
        monkeypatch.setattr(CloudClient, "_propose", dying_propose)
    else:
        monkeypatch.setattr(StateFolder, "write_private", dying_write)


def test_a_lost_answer_is_asked_for_again_with_the_same_key(
    device: Device, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose, seen = CloudClient._propose, []

    def lossy(client: CloudClient, token: str, proposal: KeyProposal) -> None:
        propose(client, token, proposal)
        seen.append(proposal.key_sha256)
        if len(seen) < 3:
            raise TransportError("the answer was lost")

    monkeypatch.setattr(CloudClient, "_propose", lossy)
    client = device.start()
    for _ in range(2):
        with pytest.raises(TransportError, match="lost"):
            client.status()
    assert client.status().group == "g"
    assert len(set(seen)) == 1
    assert token_digest(device.key) == seen[0]


def test_a_stolen_one_time_token_is_worth_nothing_afterwards(device: Device, service: Any, tmp_path: Path) -> None:
    device.start().status()
    thief = Device(service, tmp_path / "thief")
    with pytest.raises(AuthError, match="not known"):
        thief.start().status()
    thief.stop()
    assert device.start().status().group == "g"


def test_a_token_that_a_thief_was_quicker_with_is_noticed(device: Device, service: Any, tmp_path: Path) -> None:
    service.store.propose_key(token_digest(ONCE), token_digest("key of the thief"))
    with pytest.raises(EnrolmentError, match="has bought another key"):
        device.start().status()
    assert service.metrics()["cema_http_errors_total,code=enrolment_invalid"] == 1


def test_a_one_time_token_opens_nothing_else(device: Device, service: Any) -> None:
    for path in ("", "/bundle", "/updates", "/updates/latest"):
        assert service.error_of(service.call(f"/v1/groups/g{path}", token=ONCE)) == (403, "enrolment_invalid")
    assert service.error_of(service.upload(service.batch(device_id="new"), token=ONCE)) == (403, "enrolment_invalid")


def test_what_is_no_proposal_is_refused(device: Device, service: Any) -> None:
    def propose(body: bytes, content_type: str = "application/msgpack") -> tuple[int, str]:
        answer = service.call("/v1/groups/g/key", "POST", token=ONCE, body=body, Content_Type=content_type)
        return service.error_of(answer)  # type: ignore[no-any-return]

    def encoded(name: str, digest: str) -> bytes:
        return msgspec.msgpack.encode(KeyProposal(device_id=name, key_sha256=digest))

    good = token_digest("k")
    assert propose(encoded("cam", good)) == (403, "forbidden")
    for digest in ("", good[1:], good.upper(), good + "0", good + "\n"):
        assert propose(encoded("new", digest)) == (400, "message_invalid")
    assert propose(b"\xc1") == (400, "message_invalid")
    assert propose(encoded("new", good), "text/plain") == (400, "message_invalid")
    assert propose(bytes(5000)) == (413, "too_large")
    assert propose(encoded("new", token_digest("secret-of-ann"))) == (409, "conflict")
    assert tokens_that_work(service, "secret-of-cam") == [True]


# rotation


def test_rotation_is_asked_for_done_and_forgotten(device: Device, service: Any) -> None:
    client = device.start()
    client.status()
    old = device.key
    service.store.ask_rotation("new")
    assert client.status().rotate_key is True
    client.rotate_key()
    assert tokens_that_work(service, old, device.key, old) == [True, True, False], (
        "the old one until the new one is used"
    )
    assert client.status().rotate_key is msgspec.UNSET
    assert device.start().status().group == "g"


def test_a_device_with_a_key_from_enrolment_takes_one_of_its_own(service: Any, tmp_path: Path) -> None:
    device = Device(service, tmp_path / "state", name="cam")
    client = device.start(token="secret-of-cam")
    client.rotate_key()
    assert client.status().group == "g"
    assert device.start(token="secret-of-cam").status().group == "g", "device.toml still has the first one"
    assert tokens_that_work(service, device.key, "secret-of-cam") == [True, False]
    device.stop()


def test_an_upload_that_a_new_key_overtakes_arrives_with_it(
    device: Device, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, send = device.start(), CloudClient._send
    client.status()
    old = device.key

    def overtaken(self: CloudClient, token: str, method: str, path: str, **options: Any) -> Any:
        if path == "/samples" and token == old:  # the poller is quicker than the sender's request
            client.rotate_key()
            client.status()
        return send(self, token, method, path, **options)

    monkeypatch.setattr(CloudClient, "_send", overtaken)
    batch = SampleBatch(
        device_id="new", boot_id=b"n" * 16, fingerprint="f1", samples_seen=1, samples=[service.sample(1)]
    )
    assert client.upload(batch).accepted == 1
    assert tokens_that_work(service, old, device.key) == [False, True]


# enrolled anew


def test_a_new_token_in_the_configuration_begins_anew(device: Device, service: Any) -> None:
    device.start().status()
    first = device.key
    service.store.revoke("new", 3)
    with pytest.raises(AuthError, match="revoked"):
        device.start().status()
    second = ENROLMENT_PREFIX + "second"
    service.store.enrol("new", "g", token_digest(second), 4, token_expires_ms=UNTIL_MS)
    assert device.start(token=second).status().group == "g"
    assert tokens_that_work(service, first, device.key) == [False, True]


def test_without_token_and_key_there_is_no_start(device: Device) -> None:
    with pytest.raises(ConfigError, match="no token"):
        device.start(token=None)


@pytest.mark.parametrize("content", [b"", b"{", b'{"key": 1}', b"\xff"])
def test_a_damaged_key_file_counts_as_none(device: Device, service: Any, content: bytes) -> None:
    device.folder.mkdir()
    (device.folder / KEY_FILE).write_bytes(content)
    assert device.start().status().group == "g"


@pytest.mark.parametrize("name", [KEY_FILE, KEY_COPY])
@pytest.mark.parametrize("torn", [False, True])
def test_a_key_survives_damage_to_either_of_its_files_again_and_again(device: Device, name: str, torn: bool) -> None:
    device.start().status()
    key, file = device.key, device.folder / name
    for place in (0, 20, 150):
        whole = file.read_bytes()
        file.write_bytes(whole[:place] + (b"" if torn else bytes([whole[place] ^ 1]) + whole[place + 1 :]))
        assert device.start().status().group == "g"
        assert device.key == key
        assert (device.folder / KEY_FILE).read_bytes() == (device.folder / KEY_COPY).read_bytes()
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_damaged_in_both_files_is_lost_and_the_refusal_says_what_to_do(device: Device) -> None:
    device.start().status()
    for name in (KEY_FILE, KEY_COPY):
        (device.folder / name).write_bytes((device.folder / name).read_bytes().replace(b"cema-key-", b"cema-kex-"))
    with pytest.raises(AuthError, match="not known, or was revoked") as caught:
        device.start().status()
    assert "cema device enrol" in caught.value.hint


def test_an_answer_that_is_not_the_clouds_does_not_make_a_key(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def portal(answer: bytes) -> Callable[..., tuple[int, bytes, dict[str, str]]]:
        return lambda *arguments, **options: (200, answer, {})

    for answer in (b"<html>log in to this network</html>", b'{"key_sha256": "' + b"0" * 64 + b'"}', b""):
        with monkeypatch.context() as patch:
            patch.setattr(CloudClient, "_send", portal(answer))
            with pytest.raises(TransportError):
                device.start().status()
    assert device.start().status().group == "g"

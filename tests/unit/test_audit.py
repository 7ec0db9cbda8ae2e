"""The audit of the repository: planted secrets, other versions and known vulnerabilities are found."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest
import trustme

from cema.wire.signing import generate_key
from cema.wire.tokens import ENROLMENT_PREFIX, KEY_PREFIX, USER_PREFIX, new_token

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 6, 1)
VULNERABLE = "numpy"
KNOWN = {"id": "PYSEC-2026-7", "aliases": ["CVE-2026-7"], "fixed_in": ["99.1"], "summary": "", "link": ""}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit", module)  # where msgspec looks up the annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def track(repository: Path, name: str, text: str) -> None:
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_text(text)
    subprocess.run(["git", "add", name], cwd=repository, check=True)


@pytest.mark.parametrize("prefix", [ENROLMENT_PREFIX, KEY_PREFIX, USER_PREFIX])
def test_a_token_of_ours_is_found_in_prose_and_among_results(audit: ModuleType, repository: Path, prefix: str) -> None:
    track(repository, "docs/first.md", f"# Try it\n\ncurl -H 'Authorization: Bearer {new_token(prefix)}' ...\n")
    track(repository, "benchmarks/results/run.json", json.dumps({"command": f"--token {new_token(prefix)}"}))
    found = [finding.split(": cema token")[0] for finding in audit.secret_findings(repository, [])]
    assert found == ["benchmarks/results/run.json:1", "docs/first.md:3"]


def test_keys_and_quoted_tokens_are_found_whatever_the_file(audit: ModuleType, repository: Path) -> None:
    authority = trustme.CA().private_key_pem.bytes().decode()
    track(repository, "ca.key", authority)
    track(repository, "keys/signing.key", generate_key() + "\n")
    track(repository, "device.toml", f'token = "{new_token()}"\n')
    files = {finding.split(":")[0] for finding in audit.secret_findings(repository, [])}
    assert files == {"ca.key", "keys/signing.key", "device.toml"}


def test_what_git_does_not_track_and_digests_among_results_are_left_alone(audit: ModuleType, repository: Path) -> None:
    (repository / "mine.toml").write_text(f'token = "{new_token(KEY_PREFIX)}"\n')
    track(repository, "benchmarks/results/run.json", json.dumps({"digest": hashlib.sha256(b"run").hexdigest()}))
    track(repository, "deleted.py", "")
    (repository / "deleted.py").unlink()
    assert list(audit.secret_findings(repository, [])) == []


def test_an_accepted_secret_passes_another_in_its_file_does_not_and_one_that_is_gone_is_named(
    audit: ModuleType, repository: Path
) -> None:
    track(repository, "a.toml", f'token = "{new_token(KEY_PREFIX)}"\n')
    sha1 = {int(finding.split("sha1 ")[1][:10], 16) for finding in audit.secret_findings(repository, [])}
    accepted = [audit.AcceptedSecret(path="a.toml", sha1=list(sha1), reason="made up")]
    assert list(audit.secret_findings(repository, accepted)) == []
    track(repository, "a.toml", f'token = "{new_token(KEY_PREFIX)}"\n')
    findings = list(audit.secret_findings(repository, accepted))
    assert any("a.toml:1: cema token or key" in finding for finding in findings)
    assert sum("is not there any more" in finding for finding in findings) == len(sha1)


def test_a_package_in_another_version_than_pinned_is_found(audit: ModuleType) -> None:
    findings = list(audit.pin_findings(["numpy==0.1", "numpy>=1", "no-such-package==1"]))
    assert len(findings) == 1
    assert findings[0].startswith("numpy: expected ==0.1, ")


def packages(*vulnerabilities: dict[str, object]) -> list[dict[str, object]]:
    return [
        {"name": "torch", "skip_reason": "not there"},
        {"name": "numpy", "version": "1", "vulns": list(vulnerabilities)},
    ]


def test_a_vulnerability_passes_if_accepted_by_id_or_alias_until_its_day(audit: ModuleType) -> None:
    known = {**KNOWN, "fix_versions": ["99.1"]}
    assert list(audit.vulnerability_findings(packages(known), [], TODAY)) == ["numpy 1: PYSEC-2026-7, fixed in 99.1"]
    for name in (KNOWN["id"], "CVE-2026-7"):
        entry = audit.AcceptedVulnerability(id=name, reason="", until=TODAY)
        assert list(audit.vulnerability_findings(packages(known), [entry], TODAY)) == []
        (late,) = audit.vulnerability_findings(packages(known), [entry], TODAY.replace(day=2))
        assert "was accepted until 2026-06-01" in late
        (gone,) = audit.vulnerability_findings(packages(), [entry], TODAY)
        assert "is not there any more" in gone


class Index:
    """A proxy behind which every host is an index; its advisory service, if it has one, knows one vulnerability."""

    def __init__(self, authority: trustme.CA, has_service: bool) -> None:
        self.authority, self.has_service = authority, has_service
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def _serve(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued = False
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                asked = _head(connection).split()[1].decode().partition(":")[0]
                if not issued:
                    self.authority.issue_cert(asked).configure_cert(context)
                    issued = True
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                with context.wrap_socket(connection, server_side=True) as inside:
                    inside.sendall(self._answer(_head(inside).split()[1].decode()))

    def _answer(self, path: str) -> bytes:
        if not self.has_service:
            return b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        body = json.dumps({"vulnerabilities": [KNOWN] if f"/{VULNERABLE}/" in path else []}).encode()
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _head(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    return received


@pytest.fixture
def index(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    served = Index(authority, has_service=request.param)
    monkeypatch.setenv("HTTPS_PROXY", served.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    yield served
    served.close()


@pytest.mark.parametrize("index", [True], indirect=True)
def test_an_index_that_knows_a_vulnerability_of_what_is_installed_fails_the_audit(
    audit: ModuleType, index: Index, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    track(repository, "constraints.txt", "")
    (repository / "accepted.toml").write_text("")
    assert audit.main(repository, repository / "accepted.toml") == 1
    printed = capsys.readouterr()
    assert "installed packages looked up" in printed.out
    assert [line.partition(" ")[0] for line in printed.err.splitlines()] == [VULNERABLE]


@pytest.mark.parametrize("index", [False], indirect=True)
def test_an_index_without_the_service_is_said_and_fails_nothing(
    audit: ModuleType, index: Index, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    track(repository, "constraints.txt", "")
    (repository / "accepted.toml").write_text("")
    assert audit.main(repository, repository / "accepted.toml") == 0
    assert "could not be reached" in capsys.readouterr().out


def test_no_network_is_said_and_fails_nothing(
    audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path))
    assert audit.installed_packages() is None


def test_a_tool_that_breaks_is_an_error_and_not_a_service_that_is_away(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_TIMEOUT_S", "soon")
    with pytest.raises(RuntimeError, match="expected a report of pip-audit, got exit code 2"):
        audit.installed_packages()

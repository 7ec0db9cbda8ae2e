"""Secrets in tracked files, installed versions that are not the pinned ones, and known vulnerabilities.

    python scripts/audit.py            exit 1 for a finding that scripts/audit.toml does not accept

Vulnerabilities are asked from the package index's advisory service. Where it cannot be reached, a line says so, and
that is no failure: a build must not depend on it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
from detect_secrets.core.secrets_collection import SecretsCollection
from detect_secrets.settings import default_settings, transient_settings
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "scripts" / "audit.toml"
_OWN = re.compile(rb"\bcema-(?:enrol|key|user)-[\w-]{43}(?![\w-])|^[A-Za-z0-9+/]{43}=\s*$", re.MULTILINE)
"""Tokens (cema.wire.tokens) wherever they stand, and lines that are 32 bytes in base64: signing keys."""
_WORDS = "KeywordDetector"
"""Left out: it takes every assignment to a name with 'token' or 'key' in it for a secret."""
_CHANCE = ("Base64HighEntropyString", "HexHighEntropyString")
_FULL_OF_CHANCE = "benchmarks/results/"
"""Digests of a thousand runs: only what has a form is looked for there."""
_HASH_DIGITS = 8
_TIMEOUT_S = 15
_UNREACHABLE = ("ConnectionError", "ServiceError", "Timeout", "Could not connect", "ProxyError")
"""In pip-audit's last words, when no service answered."""


class AcceptedSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """path: from the root. sha1: the first 8 hexadecimal digits of each secret's sha1. reason: why it is none."""

    path: str
    sha1: list[int]
    reason: str


class AcceptedVulnerability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """id: or an alias. until: the last day."""

    id: str
    reason: str
    until: date


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    secrets: list[AcceptedSecret] = []
    vulnerabilities: list[AcceptedVulnerability] = []


def secret_findings(root: Path, accepted: Iterable[AcceptedSecret]) -> Iterator[str]:
    """A line for each secret in a tracked file that is not accepted, and for each accepted one that is not there."""
    expected = {(entry.path, sha1) for entry in accepted for sha1 in entry.sha1}
    found = set()
    for path, line, kind, sha1 in _scanned(root):
        found.add((path, sha1))
        if (path, sha1) not in expected:
            yield f"{path}:{line}: {kind} (sha1 0x{sha1:08x}); if it is none, accept it in scripts/audit.toml"
    for path, sha1 in sorted(expected - found):
        yield f"{path}: the accepted secret 0x{sha1:08x} is not there any more; take it out of scripts/audit.toml"


def _scanned(root: Path) -> Iterator[tuple[str, int, str, int]]:
    """Path, line, kind and the beginning of the sha1 of each that is found."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True)  # noqa: S607
    tracked = [name for name in listed.stdout.split("\0") if (root / name).is_file()]  # some may be deleted by now
    with default_settings() as settings:
        formed = [plugin for plugin in settings.json()["plugins_used"] if plugin["name"] not in (*_CHANCE, _WORDS)]
    by_chance = [{"name": name} for name in _CHANCE]
    for plugins, machine_made in (([*formed, *by_chance], False), (formed, True)):
        with transient_settings({"plugins_used": plugins}):
            secrets = SecretsCollection(root=str(root))
            for name in tracked:
                if name.startswith(_FULL_OF_CHANCE) is machine_made:
                    secrets.scan_file(name)
            for path, secret in secrets:
                yield path, secret.line_number, secret.type, int(secret.secret_hash[:_HASH_DIGITS], 16)
    for name in tracked:
        content = (root / name).read_bytes()
        for match in _OWN.finditer(content):
            sha1 = hashlib.sha1(match[0].strip(), usedforsecurity=False).hexdigest()
            yield name, content.count(b"\n", 0, match.start()) + 1, "cema token or key", int(sha1[:_HASH_DIGITS], 16)


def pin_findings(constraints: Iterable[str]) -> Iterator[str]:
    """A line for each requirement whose package is installed in another version."""
    for requirement in map(Requirement, constraints):
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue  # an extra that is not installed
        if not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name}: expected {requirement.specifier}, {installed} is installed; run make setup"


def installed_packages() -> list[dict[str, Any]] | None:
    """What pip-audit knows about every installed package, or None if no service answered.

    Raises RuntimeError if pip-audit fails for another reason.
    """
    options = ("--format=json", "--progress-spinner=off", "--skip-editable", f"--timeout={_TIMEOUT_S}")
    done = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, check=False, text=True)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = done.stderr.strip().rpartition("\n")[2]
        if any(word in last for word in _UNREACHABLE):
            return None
        raise RuntimeError(f"expected a report of pip-audit, got exit code {done.returncode}: {last}") from None
    # an index that does not have the service says of each package that it does not know it
    return packages if any("skip_reason" not in package for package in packages) else None


def vulnerability_findings(
    packages: Iterable[dict[str, Any]], accepted: Iterable[AcceptedVulnerability], today: date
) -> Iterator[str]:
    """A line for each known vulnerability that is not accepted, and for each accepted one that is over or not there."""
    entries = {entry.id: entry for entry in accepted}
    seen = set()
    for package in packages:
        for known in package.get("vulns", []):
            entry = next((entries[name] for name in (known["id"], *known["aliases"]) if name in entries), None)
            what = f"{package['name']} {package['version']}: {known['id']}"
            if entry is None:
                yield f"{what}, fixed in {', '.join(known['fix_versions']) or 'no version yet'}"
                continue
            seen.add(entry.id)
            if today > entry.until:
                yield f"{what} was accepted until {entry.until}; look at it again"
    for name in sorted(entries.keys() - seen):
        yield f"{name}: the accepted vulnerability is not there any more; take it out of scripts/audit.toml"


def main(root: Path = ROOT, accepted_file: Path = ACCEPTED) -> int:
    accepted = msgspec.toml.decode(accepted_file.read_bytes(), type=Accepted)
    constraints = (root / "constraints.txt").read_text().splitlines()
    findings = [*secret_findings(root, accepted.secrets), *pin_findings(constraints)]
    packages = installed_packages()
    if packages is None:
        print("the advisory service could not be reached: known vulnerabilities are not looked for")
    else:
        audited = sum("skip_reason" not in package for package in packages)
        print(f"{audited} of {len(packages)} installed packages looked up in the advisory service")
        findings += vulnerability_findings(packages, accepted.vulnerabilities, date.today())
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

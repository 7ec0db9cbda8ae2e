"""Decisions that every store takes alike, free of rows and locks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cema.cloud.store.base import StepCommit, UpdateRow
from cema.errors import BaseMismatchError, ConflictError, EnrolmentError
from cema.wire.messages import Rejection, SampleBatch


def base_mismatches(batch: SampleBatch, fingerprint: str) -> list[Rejection]:
    """Every sample of a batch refused, because another bundle's model selected it."""
    message = f"expected samples of bundle {fingerprint[:12]}, got {batch.fingerprint[:12]}"
    return [
        Rejection(sample_id=sample.sample_id.hex(), code=BaseMismatchError.code, message=message)
        for sample in batch.samples
    ]


def check_step(step: StepCommit, worker: str | None, lineage: int, latest_version: int) -> None:
    """Raises ConflictError unless the group is still as the step's worker left it."""
    if worker != step.worker:
        raise ConflictError(
            f"expected {step.worker} to hold the lease of {step.group}, got {worker or 'nobody'}",
            hint="drop the step; the group's next worker repeats it",
        )
    check_lineage(step.group, step.lineage, lineage)
    if step.update is not None:
        check_version(step.group, step.update.version, latest_version)


def check_lineage(group: str, got: int, lineage: int) -> None:
    """Raises ConflictError if the group has got another bundle in between."""
    if lineage != got:
        raise ConflictError(f"expected lineage {lineage} of {group}, got {got}", hint="load the group's new bundle")


def check_version(group: str, got: int, latest_version: int) -> None:
    """Raises ConflictError unless this is the next version."""
    if got != latest_version + 1:
        raise ConflictError(f"expected version {latest_version + 1} of {group}, got {got}")


def check_proposal(device_id: str, one_time: bool, proposed_before: bool, taken: bool) -> None:
    """A new key for a device. one_time: its credential is a one-time token. taken: somebody else has the key."""
    if one_time and proposed_before:
        raise EnrolmentError(
            f"the one-time token of device {device_id!r} has bought another key",
            hint="another device used it, or this one lost its state folder: revoke the device and enrol it anew",
        )
    if taken:
        raise ConflictError("expected a key that nobody else has", hint="make one from 32 random bytes")


def descendants(updates: Iterable[UpdateRow], learned: Mapping[int, int]) -> dict[int, int]:
    """How many of some samples each version has learned from, itself or through what it goes back to.

    updates: of one group, in any order. learned: how many each version was the first to learn from.
    """
    found: dict[int, int] = {}
    fingerprints: dict[int, str] = {}
    for update in sorted(updates, key=lambda update: update.version):
        parent = update.version - 1 if update.restores is None else update.restores
        inherited = 0
        if parent in found:
            inherited = found[parent] if fingerprints[parent] == update.fingerprint else 0
        elif parent:  # forgotten: perhaps of another bundle, but rather a mark too many than one that is missing
            inherited = sum(count for version, count in learned.items() if version <= parent)
        found[update.version] = inherited + (learned.get(update.version, 0) if update.restores is None else 0)
        fingerprints[update.version] = update.fingerprint
    return found

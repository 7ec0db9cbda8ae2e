"""Decisions that every store takes alike, free of rows and locks."""

from __future__ import annotations

from cema.cloud.store.base import StepCommit
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
    if lineage != step.lineage:
        raise ConflictError(
            f"expected lineage {lineage} of {step.group}, got {step.lineage}", hint="load the group's new bundle"
        )
    if step.update is not None and step.update.version != latest_version + 1:
        raise ConflictError(f"expected version {latest_version + 1} of {step.group}, got {step.update.version}")


def check_proposal(device_id: str, one_time: bool, proposed_before: bool, taken: bool) -> None:
    """A new key for a device. one_time: its credential is a one-time token. taken: somebody else has the key."""
    if one_time and proposed_before:
        raise EnrolmentError(
            f"the one-time token of device {device_id!r} has bought another key",
            hint="another device used it, or this one lost its state folder: revoke the device and enrol it anew",
        )
    if taken:
        raise ConflictError("expected a key that nobody else has", hint="make one from 32 random bytes")

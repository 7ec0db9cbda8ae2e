"""Devices and users of the MemoryStore, by the sha256 of their secrets, and what devices report of their boots.

The store's lock is held by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cema.cloud.store.base import DeviceRow, UserRow
from cema.cloud.store.checks import check_proposal
from cema.errors import ConflictError, NotFoundError
from cema.wire.messages import SampleBatch


@dataclass
class MemoryCredentials:
    """tokens, proposed: device by what it has and by what it has proposed. user_tokens: user by token.

    boots: (samples_seen, last_seen_ms) by device and boot.
    """

    devices: dict[str, DeviceRow] = field(default_factory=dict)
    users: dict[str, UserRow] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    proposed: dict[str, str] = field(default_factory=dict)
    user_tokens: dict[str, str] = field(default_factory=dict)
    boots: dict[tuple[str, bytes], tuple[int, int]] = field(default_factory=dict)

    def account_for_boot(self, batch: SampleBatch, now_ms: int) -> int:
        """Take over a report; returns by how many images it is ahead of the last one of its boot (never < 0)."""
        before, _ = self.boots.get((batch.device_id, batch.boot_id), (0, 0))
        self.boots[batch.device_id, batch.boot_id] = (max(before, batch.samples_seen), now_ms)
        if batch.device_id in self.devices:
            device = replace(self.devices[batch.device_id], last_seen_ms=now_ms)
            if batch.samples_seen >= before:
                device = replace(device, samples_seen=batch.samples_seen, dropped=dict(batch.dropped))
            self.devices[batch.device_id] = device
        return max(0, batch.samples_seen - before)

    def forget_boots(self, before_ms: int) -> None:
        """A device's last boot stays, however old: it may go on counting where it was."""
        last_seen = {device.device_id: device.last_seen_ms for device in self.devices.values()}
        for (device_id, boot_id), (_, at) in list(self.boots.items()):
            if at < min(before_ms, last_seen.get(device_id, 0)):
                del self.boots[device_id, boot_id]

    def enrol(self, device: DeviceRow, token_sha256: str) -> DeviceRow:
        old = self.devices.get(device.device_id)
        if old is not None and old.revoked_ms is None:
            raise ConflictError(
                f"device {device.device_id!r} is already enrolled in group {old.group!r}", hint="revoke it first"
            )
        self._set_token(device, token_sha256)
        return device

    def revoke(self, device_id: str, now_ms: int) -> DeviceRow:
        device = self.find(device_id)
        if device.revoked_ms is None:
            self.devices[device_id] = device = replace(device, revoked_ms=now_ms)
        return device

    def use(self, token_sha256: str) -> DeviceRow | None:
        device = self._known(token_sha256)
        if device is not None and token_sha256 in self.proposed:
            device = replace(device, token_expires_ms=None, rotate=False)
            self._set_token(device, token_sha256)
        return device

    def propose(self, token_sha256: str, key_sha256: str) -> DeviceRow | None:
        device = self.use(token_sha256)
        if device is None:
            return None
        if device.device_id not in (self.tokens.get(key_sha256), self.proposed.get(key_sha256)):
            before = [key for key, owner in self.proposed.items() if owner == device.device_id]
            taken = any(key_sha256 in known for known in (self.tokens, self.proposed, self.user_tokens))
            check_proposal(device.device_id, device.token_expires_ms is not None, bool(before), taken)
            for key in before:
                del self.proposed[key]
            self.proposed[key_sha256] = device.device_id
        return device

    def ask_rotation(self, device_id: str) -> DeviceRow:
        self.devices[device_id] = replace(self._living(device_id), rotate=True)
        return self.devices[device_id]

    def pause(self, device_id: str, paused: bool, now_ms: int) -> DeviceRow:
        device = self._living(device_id)
        if paused != (device.paused_ms is not None):
            self.devices[device_id] = replace(device, paused_ms=now_ms if paused else None)
        return self.devices[device_id]

    def add_user(self, user: UserRow, token_sha256: str) -> UserRow:
        old = self.users.get(user.name)
        if old is not None and old.revoked_ms is None:
            raise ConflictError(f"there is a user {user.name!r} already", hint="revoke it first")
        self.user_tokens = {token: name for token, name in self.user_tokens.items() if name != user.name}
        self.user_tokens[token_sha256] = user.name
        self.users[user.name] = user
        return user

    def revoke_user(self, name: str, now_ms: int) -> UserRow:
        if name not in self.users:
            raise NotFoundError(f"there is no user {name!r}")
        if self.users[name].revoked_ms is None:
            self.users[name] = replace(self.users[name], revoked_ms=now_ms)
        return self.users[name]

    def user(self, token_sha256: str) -> UserRow | None:
        user = self.users.get(self.user_tokens.get(token_sha256, ""))
        return None if user is None or user.revoked_ms is not None else user

    def find(self, device_id: str) -> DeviceRow:
        if device_id not in self.devices:
            raise NotFoundError(f"there is no device {device_id!r}")
        return self.devices[device_id]

    def _living(self, device_id: str) -> DeviceRow:
        device = self.find(device_id)
        if device.revoked_ms is not None:
            raise NotFoundError(f"there is no device {device_id!r}")
        return device

    def _known(self, token_sha256: str) -> DeviceRow | None:
        device = self.devices.get(self.tokens.get(token_sha256) or self.proposed.get(token_sha256, ""))
        return None if device is None or device.revoked_ms is not None else device

    def _set_token(self, device: DeviceRow, token_sha256: str) -> None:
        for known in (self.tokens, self.proposed):
            for key in [key for key, owner in known.items() if owner == device.device_id]:
                del known[key]
        self.tokens[token_sha256] = device.device_id
        self.devices[device.device_id] = device

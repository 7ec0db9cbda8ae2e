"""What every request needs: configuration, store, blobs, clock, key; and who is asking.

One ``Context`` per application, handed to the routes as a dependency.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from cema.cloud.api.differences import Differences
from cema.cloud.api.metrics import Metrics
from cema.cloud.api.newest import NewestUpdates
from cema.cloud.api.watch import VersionWatch
from cema.cloud.store.base import BlobStore, DeviceRow, GroupRow, Store
from cema.config import ServeConfig
from cema.errors import AuthError, ForbiddenError
from cema.wire import signing


@dataclass(frozen=True)
class SignedContent:
    """Bytes that devices verify before they parse them. blob: sha256, hex. signature: base64."""

    blob: str
    data: bytes
    signature: str


@dataclass
class Context:
    """The web process's parts. clock_ms: Unix milliseconds. key: the private signing key, base64."""

    config: ServeConfig
    store: Store
    blobs: BlobStore
    clock_ms: Callable[[], int]
    key: str
    watch: VersionWatch
    newest: NewestUpdates
    differences: Differences
    metrics: Metrics
    _bundles: dict[str, SignedContent] = field(default_factory=dict)
    _bundle_lock: threading.Lock = field(default_factory=threading.Lock)

    def bundle(self, group: GroupRow) -> SignedContent:
        """The group's bundle, kept in memory: a fleet that fetches it at once shares one copy."""
        with self._bundle_lock:
            cached = self._bundles.get(group.name)
            if cached is None or cached.blob != group.bundle_blob:
                data = self.blobs.get(group.bundle_blob)
                cached = SignedContent(group.bundle_blob, data, signing.sign(data, self.key))
                self._bundles[group.name] = cached
            return cached


def get_context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def authenticated(group: str, request: Request) -> DeviceRow:
    """The device behind the bearer token, if it belongs to ``group``. Raises AuthError, ForbiddenError."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AuthError(
            "expected the header 'Authorization: Bearer <token>'", hint="'cema device enrol' makes a device's token"
        )
    digest = hashlib.sha256(token.strip().encode()).hexdigest()
    device = get_context(request).store.device_by_token(digest)
    if device is None:
        raise AuthError("this token is not known, or was revoked", hint="enrol the device ('cema device enrol')")
    if device.group != group:
        raise ForbiddenError(
            f"device {device.device_id!r} belongs to group {device.group!r}, not to {group!r}",
            hint="check 'group' in device.toml",
        )
    return device


ContextOf = Annotated[Context, Depends(get_context)]
Device = Annotated[DeviceRow, Depends(authenticated)]

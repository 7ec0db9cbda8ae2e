"""What every request needs: configuration, store, blobs, clock, key, and what devices may still ask for.

One ``Context`` per application, handed to the routes as a dependency.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from fastapi import Request

from cema.cloud.api.admission import Admission
from cema.cloud.api.allowance import Allowance
from cema.cloud.api.differences import Differences
from cema.cloud.api.metrics import Metrics
from cema.cloud.api.newest import NewestUpdates
from cema.cloud.api.watch import VersionWatch
from cema.cloud.store.base import BlobStore, GroupState, Store
from cema.config import ServeConfig
from cema.wire import signing
from cema.wire.statement import BundleStatement, encode_statement


@dataclass(frozen=True)
class SignedContent:
    """A bundle as devices verify it. signature: over ``data``, base64. statement: as it stands in a header.

    made_for: the bundle's blob and the group's lineage.
    """

    data: bytes
    signature: str
    statement: str
    made_for: tuple[str, int]


@dataclass
class Context:
    """The web process's parts. clock_ms: Unix milliseconds. key: the private signing key, base64.

    requests, upload_bytes: what each device may still ask for. admission: what all uploads together may hold.
    upload_threads: of uploads alone, so that nobody else queues behind them.
    """

    config: ServeConfig
    store: Store
    blobs: BlobStore
    clock_ms: Callable[[], int]
    key: str
    watch: VersionWatch
    newest: NewestUpdates
    differences: Differences
    metrics: Metrics
    requests: Allowance
    upload_bytes: Allowance
    admission: Admission
    upload_threads: CapacityLimiter
    _bundles: dict[str, SignedContent] = field(default_factory=dict)
    _bundle_lock: threading.Lock = field(default_factory=threading.Lock)

    def bundle(self, group: GroupState) -> SignedContent:
        """The group's bundle, kept in memory: a fleet that fetches it at once shares one copy."""
        with self._bundle_lock:
            cached = self._bundles.get(group.name)
            wanted = group.bundle_blob, group.lineage  # the same bytes may come back, as a newer bundle
            if cached is None or cached.made_for != wanted:
                data = self.blobs.get(group.bundle_blob)
                stated = BundleStatement(group=group.name, sha256=group.bundle_blob, sequence=group.lineage)
                cached = SignedContent(
                    data, signing.sign(data, self.key), encode_statement(stated, self.key), made_for=wanted
                )
                self._bundles[group.name] = cached
            return cached


def get_context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context

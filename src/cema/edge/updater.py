"""From bytes of the cloud to the model in use: verify -> build in the background -> smoke test -> keep -> swap.

In: an update or a bundle as it came, with its signature. Out: ``session``, a reference that ``predict`` reads once per
batch. Whatever is wrong with what came, the last good model stays. The poller brings updates, the follower statistics.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from cema.config import DeviceConfig
from cema.edge.counters import EdgeCounters
from cema.edge.mixed import MixedStatistics
from cema.edge.routing import Session, following_session
from cema.edge.session import EdgeSession
from cema.edge.slots import Adaptation, Owner, StateFolder
from cema.edge.verification import check_manifest, open_bundle, place_of, trusted_key
from cema.errors import BaseMismatchError, BundleError, CemaError, StorageError, UpdateContentError, UpdateError
from cema.types import NormParameters
from cema.wire.bundle import Bundle
from cema.wire.difference import Base, apply_difference, source_base, update_base
from cema.wire.update import Update, open_update

log = logging.getLogger(__name__)


Weights = tuple[NormParameters, int | None]
"""Norm parameters and the domain in which they are good; None = in all."""


class Updater:
    """The model in use and the way to the next one.

    Starts with the newest stored update that still passes every check, else with the source.
    Raises BundleError if not even the source runs.
    """

    def __init__(self, bundle: Bundle, config: DeviceConfig, folder: StateFolder, counters: EdgeCounters) -> None:
        self._config, self._folder, self._counters = config, folder, counters
        self._key = trusted_key(config)
        self._bundle = bundle
        self._refused_version = 0
        self._bytes = b""  # of the adapted version, empty for the source
        self._whole_next = False
        self._lock = threading.RLock()  # two threads make sessions: the poller's updates, the follower's statistics
        self._own: MixedStatistics | None = None
        self._weights: Weights = bundle.source_parameters(), None
        self._adapted = self._restore()
        self._cloud_says, self._stats_owner = folder.adaptation, folder.stats_owner
        self._stale = False  # a session could not be built: the one in use is not what should be
        self.session: Session = self._choose()

    @property
    def fingerprint(self) -> str:
        return self._bundle.manifest.fingerprint

    @property
    def adapting(self) -> bool:
        """False while device or cloud has switched adaptation off: source parameters, nothing is uploaded."""
        return self._config.runtime.adaptation == "on" and self._cloud_says == "on"

    @property
    def bundle(self) -> Bundle:
        return self._bundle

    def follows(self, own: MixedStatistics | None) -> bool:
        """Whether these statistics are in use: not before there are any, nor once their bundle was replaced."""
        return own is not None and self._own is own

    def weights_for(self, own: MixedStatistics) -> Weights | None:
        """Of the adapted version; None if these statistics are not in use."""
        with self._lock:
            return self._weights if self.follows(own) else None

    @property
    def following(self) -> bool:
        """Whether this device uses norm statistics of its own."""
        wanted = self._config.statistics.follow
        wants = wanted == "on" or (wanted == "auto" and self._stats_owner == "edge")
        return wants and self.adapting and self._bundle.measures

    @property
    def poll_after(self) -> int:
        """The version to ask beyond: the last good one, or a refused one that need not be fetched again."""
        return max(self._adapted.version, self._refused_version)

    @property
    def have(self) -> int | None:
        """The version to which the cloud may send a difference; None after one that led nowhere."""
        if self._whole_next:
            return None
        return self._adapted.version if update_base(self._bytes, self._bundle.manifest) else 0

    def follow(self, own: MixedStatistics, fingerprint: str) -> bool:
        """From now on, sessions have these statistics; False if they are of a bundle that is not in use."""
        with self._lock:
            if current := self.fingerprint == fingerprint:
                self._own = own
        return current

    def renew(self) -> None:
        """Build the session anew: the device's own statistics have changed. Raises BundleError, UpdateContentError."""
        with self._lock:
            self._exchange()

    def set_stats_owner(self, owner: str) -> None:
        """The cloud's word on whose statistics the group's method uses, remembered for the next start."""
        says: Owner = "edge" if owner == "edge" else "cloud"
        if says != self._stats_owner or self._stale:
            with self._lock:
                self._stats_owner = says
                self._exchange()
        self._remember(lambda: self._folder.set_stats_owner(says))

    def apply(self, data: bytes, signature: str, base: int | None = None) -> None:
        """Take over an update, or the difference from version ``base`` to it.

        Raises CemaError if it is refused; the last good one stays.
        """
        self._whole_next = base is not None
        try:
            if base is not None:
                data = apply_difference(data, self._base(base))
            update, session = self._checked(data, signature)
        except CemaError:
            self._counters.update(applied=False)
            raise
        self._whole_next = False
        self._remember(lambda: self._folder.put_update(data, signature, session.version, self.fingerprint))
        with self._lock:
            self._adapted, self._bytes, self._weights = session, data, _weights(update)
            self._refused_version = 0
            self._exchange()
        self._counters.update(applied=True)
        log.info("version %d in use", session.version)

    def replace_bundle(self, data: bytes, signature: str, statement: str = "") -> None:
        """Take over another model. Raises CemaError; the old one stays."""
        bundle = open_bundle(data, signature, self._key)
        place = place_of(statement, data, self._key, self._config.group, self._folder.bundle_place)
        if bundle.manifest.fingerprint == self.fingerprint:
            raise BaseMismatchError("the cloud asks for another bundle than the one it offers")
        session = self._build(bundle, bundle.source_parameters(), 0)
        self._folder.put_bundle(data, signature, place)
        with self._lock:
            self._bundle, self._adapted, self._bytes, self._refused_version = bundle, session, b"", 0
            self._own, self._weights = None, (bundle.source_parameters(), None)
            self.session, self._stale = session, False
        log.info("bundle %s in use", bundle.manifest.fingerprint[:12])

    def set_adaptation(self, adaptation: str) -> None:
        """The cloud's switch, remembered for the next start."""
        says: Adaptation = "off" if adaptation == "off" else "on"
        if says != self._cloud_says or self._stale:
            with self._lock:  # a session that the follower is just building must not come after this
                self._cloud_says = says
                self._exchange()
        self._remember(lambda: self._folder.set_adaptation(says))

    def _remember(self, put: Callable[[], None]) -> None:
        """For the next start. A full disk is no reason to predict worse, or to disobey, until then."""
        try:
            put()
        except StorageError as error:
            self._counters.failed(error)

    def _exchange(self) -> None:
        """Whatever goes wrong on the way, the next word of the cloud tries again."""
        self._stale = True
        self.session = self._choose()
        self._stale = False

    def _choose(self) -> Session:
        if not self.adapting:
            return self._adapted if self._adapted.version == 0 else self._source()
        own, (_, domain) = self._own, self._weights
        if own is None or not self.following:
            known = domain is None or self._adapted.version == 0
            return self._adapted if known else self._source(self._adapted.version)  # in what world we are is not known
        version = self._adapted.version
        return following_session(
            own, *self._weights, version, lambda values, revision: self._build(self._bundle, values, version, revision),
            before=self.session,
        )  # fmt: skip

    def _source(self, version: int = 0) -> EdgeSession:
        return self._build(self._bundle, self._bundle.source_parameters(), version)

    def _restore(self) -> EdgeSession:
        for stored in self._folder.updates(self.fingerprint):
            try:
                update = open_update(stored.data, self._bundle.manifest, signature=stored.signature, key=self._key)
                if update.manifest.group != self._config.group:  # the device was enrolled anew, in another one
                    continue
                session = self._build(self._bundle, update.parameters, update.manifest.version)
            except CemaError as error:
                self._counters.failed(error)
            else:
                self._bytes, self._weights = stored.data, _weights(update)
                return session
        return self._source()

    def _base(self, version: int) -> Base:
        if version == 0:
            return source_base(self._bundle)
        base = update_base(self._bytes, self._bundle.manifest) if version == self._adapted.version else None
        if base is None:
            raise UpdateError(f"expected a difference to version {self._adapted.version} or 0, got one to {version}")
        return base

    def _checked(self, data: bytes, signature: str) -> tuple[Update, EdgeSession]:
        update = open_update(data, self._bundle.manifest, signature=signature, key=self._key)
        try:
            check_manifest(update.manifest, self._bundle, self._config.group, self._adapted.version)
            return update, self._build(self._bundle, update.parameters, update.manifest.version)
        except (UpdateContentError, BundleError):
            # its signature is good: the cloud will offer the very same bytes again until there is a newer version
            self._refused_version = max(self._refused_version, update.manifest.version)
            raise

    def _build(self, bundle: Bundle, parameters: NormParameters, version: int, revision: int = 0) -> EdgeSession:
        runtime = self._config.runtime
        session = EdgeSession(
            bundle, parameters, version, revision=revision, providers=runtime.providers, threads=runtime.threads
        )
        session.smoke_test()
        return session


def _weights(update: Update) -> Weights:
    """A domain of 0 is of a device that watches no worlds: good in all, as none."""
    domain = update.manifest.domain
    return update.parameters, None if isinstance(domain, msgspec.UnsetType) else domain or None

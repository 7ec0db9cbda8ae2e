"""The model for pictures whose looks alternate: each is answered by statistics of its own look.

    pictures -> looks -> nearest component -> its session -> answers, in the order of the pictures

In: a mixture of looks and a session for each (mixed.py has the statistics). To whoever predicts it is a session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cema.edge.memory import pixel_style
from cema.edge.mixed import MixedStatistics
from cema.edge.mixture import Labels, Mixture, look_of
from cema.edge.session import Answers, EdgeSession
from cema.types import Float32Array, NormParameters, Uint8Array

T = TypeVar("T", bound=np.generic)


class RoutedSession:
    """Several sessions of one bundle and one version as one. Immutable and safe to share between threads.

    sessions: one for each component. revision: the latest among theirs.
    """

    def __init__(self, mixture: Mixture, sessions: Sequence[EdgeSession]) -> None:
        self.mixture, self.sessions = mixture, tuple(sessions)
        self.bundle, self.version = sessions[0].bundle, sessions[0].version
        self.revision = max(session.revision for session in sessions)

    @property
    def fingerprint(self) -> str:
        """Of the bundle behind these sessions."""
        return self.bundle.manifest.fingerprint

    def logits(self, images_BHWC: Uint8Array) -> Float32Array:
        """See ``EdgeSession.logits``."""
        at = self._by_look(images_BHWC)
        return _in_order(at, [self.sessions[part].logits(images_BHWC[of]) for part, of in at])

    def predict(self, images_BHWC: Uint8Array) -> Answers:
        """See ``EdgeSession.predict``."""
        at = self._by_look(images_BHWC)
        found = [self.sessions[part].predict(images_BHWC[of]) for part, of in at]
        return Answers(*(_in_order(at, parts) for parts in zip(*found, strict=True)))

    def _by_look(self, images_BHWC: Uint8Array) -> list[tuple[int, Labels]]:
        """Components that have some of the pictures, and which."""
        part_B = self.mixture.nearest(look_of(pixel_style(images_BHWC)))
        return [(part, np.flatnonzero(part_B == part)) for part in np.unique(part_B).tolist()]


def _in_order(at: Sequence[tuple[int, Labels]], found: Sequence[NDArray[T]]) -> NDArray[T]:
    back = np.argsort(np.concatenate([of for _, of in at]))
    return np.concatenate(found)[back]


Session = EdgeSession | RoutedSession
Build = Callable[[NormParameters, int], EdgeSession]
"""Norm parameters and the revision of the statistics among them -> a session of the version in use."""


def following_session(
    own: MixedStatistics,
    weights: NormParameters,
    domain: int | None,
    version: int,
    build: Build,
    before: Session | None,
) -> Session:
    """By the device's own statistics and weights of this version, learned in this domain (None: in all). before: the
    session in use, whose parts are taken over where nothing has changed."""
    mixture, found = own.in_use(weights, domain)
    if mixture is None:
        ((revision, values),) = found
        return build(values, revision)
    ready: Sequence[EdgeSession | None] = [None] * len(found)
    if isinstance(before, RoutedSession) and before.mixture is mixture and before.version == version:
        ready = before.sessions
    return RoutedSession(
        mixture,
        [
            session if session is not None and session.revision == revision else build(values, revision)
            for session, (revision, values) in zip(ready, found, strict=True)
        ],
    )

"""Norm statistics that follow the stream: forward passes on the device alone, no gradient, no cloud needed.

    pictures -> memory, balanced over predicted classes -> measured now and then, layer after layer
             -> blended with the source's statistics, by evidence -> the next session

The cloud sees selected samples only, so statistics taken from them are biased; these come from the stream itself. How
far a layer follows its own measurement depends on three things: how many pictures there are, how far the variances of
the early layers lie from the source's (a clean stream is left alone), and how many classes they show (deep layers
carry the class: with few classes in the memory they stay with the source). When the pictures' look changes, the world
is another one, a new one or one that comes back (worlds.py); where several looks alternate, each has statistics of its
own (mixed.py). docs/method.md has the reasons and what each is worth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from cema.edge.measuring import Measured, MeasuringSession, statistics_of
from cema.edge.memory import STYLES, ClassMemory, Labelled, pixel_style
from cema.edge.pooled import blended, prior, taken_in
from cema.edge.worlds import LeftWorlds, World, apart
from cema.types import Float32Array, NormParameters, Uint8Array
from cema.wire.blend import BLEND, BlendSettings, diversity, log_ratio, shares, shift_size, trust

Count = Annotated[int, Meta(ge=1)]


class StatisticsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers, chosen on four corruptions of CIFAR-10 photographs (docs/method.md).

    memory: pictures. window: latest pictures that stand for the present look. change: distance of its mean from the
    memory's, in standard deviations of one picture, at which the world counts as another; again: below which a new one
    counts as one that was left, unless what is measured then is unlike it (``cema.edge.worlds``); least: pictures
    without which neither is judged. anew: how unlike a measurement must be to all before for them to count no longer.
    period, period_max: pictures between two measurements, at first and in the long run. measured: pictures of one
    measurement, pixels_max: and their pixels, which bounds its memory. worlds, aside_bytes: how many that were left are
    remembered, and their pictures, besides the last.
    """

    memory: Count = 96
    window: Count = 16
    change: Annotated[float, Meta(gt=0)] = 2.2
    again: Annotated[float, Meta(ge=0)] = 1.0
    unlike: Annotated[float, Meta(ge=0)] = 2.0
    anew: Annotated[float, Meta(ge=0)] = 4.0
    least: Annotated[int, Meta(ge=2)] = 8
    period: Count = 64
    period_max: Count = 128
    measured: Count = 32
    pixels_max: Count = 8 * 224 * 224
    worlds: Annotated[int, Meta(ge=0, le=64)] = 8
    aside_bytes: Count = 1 << 24


DOMAINS = 1 << 53
"""Domains are drawn below this: exact in JSON, and two of them never alike in practice."""
Due = Literal["no", "later", "now"]


class LocalStatistics:
    """Of one look at a time. Not thread-safe: whoever owns it calls ``arrive``, ``take_in`` and ``refresh`` in turn.

    source: the bundle's norm parameters. classes: C. rng: for domains. revision: number that the owner gives the last
    measurement.
    """

    def __init__(
        self,
        measuring: MeasuringSession,
        classes: int,
        rng: np.random.Generator,
        settings: StatisticsSettings | None = None,
        blend: BlendSettings = BLEND,
    ) -> None:
        self.settings = s = settings or StatisticsSettings()
        self._blend_by = blend
        self._measuring, self._source = measuring, measuring.bundle.source_parameters()
        self._layers = measuring.layers
        self._classes, self._rng = classes, rng
        self._window: deque[Float32Array] = deque(maxlen=s.window)
        self.styles_BS = np.zeros((0, STYLES), np.float32)  # of the pictures that arrived last
        self.revision = 0
        self.moved = 0.0  # the look of the latest pictures from the memory's, in standard deviations of one
        self._left = LeftWorlds(s.worlds, s.aside_bytes)
        self._now = self._new_world(statistics_of(self._source, self._layers))

    def arrive(self, images_BHWC: Uint8Array) -> bool:
        """Look at pictures that are about to be predicted; True if this is another world than that of the last ones."""
        self.styles_BS = pixel_style(images_BHWC[-self.settings.window :])  # the others would leave the window at once
        self._window.extend(self.styles_BS)
        changed = self._has_changed()
        if changed:
            self._leave()
            self._window.clear()  # what is left of the old world is no part of the new one's look
            self._window.extend(self.styles_BS)
        return self._comes_back() or changed

    @property
    def domain(self) -> int:
        """Number of the world, drawn anew for each."""
        return self._now.domain

    @property
    def shift(self) -> float | None:
        """How far the early layers' variances are from the source's; None before the first look at a world."""
        return self._now.shift

    @property
    def latest(self) -> NormParameters:
        """Means and variances to predict with."""
        return self._now.latest

    @property
    def settled(self) -> bool:
        """Whether enough of this world has been seen for measurements that can wait."""
        return self._now.seen >= self.settings.memory // 2

    def asks(self, count: int) -> Due:
        """Whether ``refresh`` will be due once so many more pictures have been taken in.

        ``now``: the same pictures can be answered again by statistics that know them (first ones after a start or a
        change); ``later``: after the answer.
        """
        now = self._now
        since = now.since + count
        early = not self.settled and since >= max(1, now.seen // 2)
        if early and count >= self.settings.least:
            return "now"
        return "later" if early or since >= now.period else "no"

    def take_in(self, images_BHWC: Uint8Array, labels: Sequence[int]) -> Due:
        """Remember the pictures of the last ``arrive`` with their predicted labels; returns what ``asks`` says of
        them."""
        due = self.asks(len(labels))
        others = images_BHWC[: len(labels) - len(self.styles_BS)]
        if len(others):
            self.styles_BS = np.concatenate([pixel_style(others), self.styles_BS])
        self._now.memory.add(list(images_BHWC), self.styles_BS, labels)
        self._now.seen += len(labels)
        self._now.since += len(labels)
        return due

    def refresh(self, weights: NormParameters, domain: int | None = None) -> None:
        """Measure the memory by these weights and biases, which were learned in this domain (None: in all), or by the
        source's: ``latest``, mean and variance of every batch norm by name. A world that came back is another one after
        all if it only looks the same: then ``domain`` changes. One that has changed and still looks much the same is
        measured anew, by what came since the last measurement; not against its first one, which is made by statistics
        that are still far from it."""
        now = self._now
        before, since = replace(now), now.since
        measured = self._look(self.in_use(weights, domain))
        if now.left is None and before.rounds > len(measured) and before.unlike(measured) > self.settings.anew:
            now.begin_anew(max(since, self.settings.least))
            self._look(self.in_use(weights, domain))
        elif now.left is not None and now.seen >= self.settings.measured:
            left, now.left = now.left, None
            if left.unlike(measured) > self.settings.unlike:
                self._now = self._new_world(now.latest)
                self._now.memory, self._now.seen = now.memory, now.seen
                self._now.memory.keep_latest(now.seen)
                self._look(self.in_use(weights, domain))

    def remembered(self) -> list[Labelled]:
        """The pictures of this world, oldest first."""
        return self._now.memory.labelled()

    def begin(self, known: Sequence[Labelled], statistics: NormParameters) -> None:
        """Another world, of which these pictures are known already. statistics: until it is measured."""
        self._now = self._new_world(statistics)
        self._window.clear()
        pictures = [each.picture for _, each in known]
        self._now.memory.add(pictures, np.array([each.style for _, each in known]), [label for label, _ in known])

    def in_use(self, weights: NormParameters, domain: int | None) -> NormParameters:
        """What to predict with: the latest statistics, and weights that were learned in this domain (None: in all),
        else the source's."""
        return {**(weights if domain in (None, self.domain) else self._source), **self.latest}

    def trusted(self) -> float:
        """0..1 by how far the stream is from the source; 1 before the first look."""
        return 1.0 if self._now.shift is None else trust(self._now.shift, self._blend_by)

    def _look(self, parameters: NormParameters) -> list[Measured]:
        chunks, now, by = self.chunks(), self._now, self._blend_by
        n, classes, depth = len(now.memory), self._classes, len(self._layers)
        shown = diversity(now.memory.counts(), classes, by)
        if now.shift is None:
            glimpse = self._measure(chunks[0], parameters, shares(n, 1.0, shown, depth, by), keep=False)
            _, counts = np.unique(glimpse.logits_BK.argmax(axis=1), return_counts=True)
            shown = max(shown, diversity(counts, classes, by))
        shares_L = shares(n, self.trusted(), shown, depth, by)
        measured = [self._measure(chunk, parameters, shares_L) for chunk in chunks]
        now.latest = blended(self._source, self._layers, now.pool, shares_L)
        now.since, now.period = 0, self._next_period()
        return measured

    def _new_world(self, statistics: NormParameters) -> World:
        """statistics: to predict with until the first measurement."""
        domain = int(self._rng.integers(1, DOMAINS))
        return World(domain, ClassMemory(self.settings.memory, self._classes), statistics, self.settings.period)

    def _leave(self) -> None:
        """Put this world aside, if enough of it is known to recognise it, and begin a new one."""
        gone = self._now
        if gone.left is not None:  # not confirmed: what is known of it is what was known before
            self._left.put(gone.left)
        elif self.settled and gone.pool:  # seen, but never measured, it could not be recognised
            gone.memory.drop_latest(len(self._window) - len(self.styles_BS))  # on the border between the two
            gone.memory.thin(self.settings.measured)
            self._left.put(gone)
        self._now = self._new_world(gone.latest)

    def _comes_back(self) -> bool:
        """Whether a world that has just begun is one that was left; that is the present one then."""
        s = self.settings
        is_young = self._now.seen < s.window and len(self._window) >= s.least and self._now.left is None
        known = self._left.like(np.array(self._window), s.again) if is_young else None
        if known is None:
            return False
        self._now = known.again(s.period)
        return True

    def _has_changed(self) -> bool:
        in_window = max(0, len(self._window) - len(self.styles_BS))  # pictures cannot be measured against themselves
        known_NS = self._now.memory.styles(but_latest=in_window)
        judged = min(len(known_NS), len(self._window)) >= self.settings.least
        self.moved = apart(np.array(self._window), known_NS) if judged else 0.0
        return self.moved > self.settings.change

    def _next_period(self) -> int:
        """Twice as long each time once the memory is half full: what follows tells little new."""
        s = self.settings
        return min(2 * self._now.period, s.period_max) if self.settled else s.period

    def chunks(self) -> list[Uint8Array]:
        """The pictures of the memory that are measured, in parts that one forward may have."""
        s = self.settings
        chosen = self._now.memory.pictures(s.measured)
        size = max(1, s.pixels_max // (chosen.shape[1] * chosen.shape[2]))
        return [chosen[start : start + size] for start in range(0, len(chosen), size)]

    def _measure(
        self, pictures: Uint8Array, parameters: NormParameters, share_L: Float32Array, *, keep: bool = True
    ) -> Measured:
        """One forward: the pool moves to what is measured, each layer by its share to the pool."""
        now = self._now
        weight = max(1 / (now.rounds + 1), len(pictures) / len(now.memory))
        given = dict(parameters)
        for index, layer in enumerate(self._layers):
            source, pooled = (self._source[layer.mean], self._source[layer.var]), now.pool[index] if now.pool else None
            given[layer.mean], given[layer.var] = prior(source, pooled, float(share_L[index]), weight)
        measured = self._measuring.measure(pictures, given, share_L * np.float32(weight))
        pool, noises = taken_in(now.pool, measured.layers, weight)
        variances = zip(pool, self._layers, strict=True)
        now.shift = shift_size([log_ratio(var_C, self._source[layer.var]) for (_, var_C), layer in variances], noises)
        if keep:
            now.pool = pool
            now.rounds += 1
            now.error += weight * (weight / len(pictures) - (2 - weight) * now.error)
        return measured

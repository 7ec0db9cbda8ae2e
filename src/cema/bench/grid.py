"""What a benchmark run is made of: cells, each of one method under one set of conditions, run and kept on its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product

import msgspec

from cema import __version__
from cema.bench.corruptions import CLEAN, COMMON, EXTRA
from cema.bench.link import LINKS, Link
from cema.bench.methods import entry
from cema.bench.own import code_digest
from cema.bench.simulate import FPS, Own
from cema.bench.streams import ALONE, SETTINGS, Condition, Indices, Shape, make_streams
from cema.errors import ConfigError

_FORMAT = 1
"""Part of every cell's key: raise it when the meaning of a row changes."""
_GROUPS = {"all": COMMON, "extra": EXTRA}


DEVICE_PARTS = Own.__struct_fields__
"""Of the numbers of a device that measures its own statistics."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asked for. identity: digest of photographs and weights (``cema.bench.work.identity``).

    options: by method. skip, limit: so many photographs are left out, then so many streamed, None = all.
    """

    dataset: str
    methods: tuple[str, ...]
    corruptions: tuple[str, ...]
    severity: int = 5
    setting: str = "reset"
    batch_size: int = 64
    seeds: tuple[int, ...] = (0,)
    skip: int = 0
    limit: int | None = None
    edges: int = 1
    link: Link = LINKS["instant"]
    delays: tuple[int, ...] = (0,)
    fps: float = FPS
    alpha: float = Shape.alpha
    imbalance: float = Shape.imbalance
    visits: int = Shape.visits
    shuffle: bool = Shape.shuffle
    passes: int = Shape.passes
    options: dict[str, dict[str, bool | int | float | str]] = {}
    identity: str = ""

    def __post_init__(self) -> None:
        for method in self.methods:
            entry(method)
        if self.setting not in SETTINGS:
            raise ConfigError(f"expected a setting out of {', '.join(SETTINGS)}, got {self.setting!r}")
        if not (self.methods and self.corruptions and self.seeds and self.delays):
            raise ConfigError("expected at least one method, corruption, seed and delay")
        if self.batch_size < 1 or self.edges < 1 or self.fps <= 0 or min(self.delays) < 0 or min(self.seeds) < 0:
            raise ConfigError("expected batch size and edges of at least 1, frames per second > 0, delay and seed >= 0")
        unused = sorted(set(self.options) - set(self.methods))
        if unused:
            raise ConfigError(f"options for methods that do not run: {', '.join(unused)}")
        _ = self.shape

    @property
    def stream(self) -> str:
        """As in ``Row.stream``."""
        known: dict[str, object] = {"skip": self.skip} if self.skip else {}
        known |= {"limit": self.limit} if self.limit else {}
        known |= {} if self.shuffle else {"order": "stored"}
        known |= {"passes": self.passes} if self.passes > 1 else {}
        of_setting = {"correlated": "alpha", "label_shift": "imbalance", "recurring": "visits"}
        if self.setting in of_setting:
            known[of_setting[self.setting]] = getattr(self, of_setting[self.setting])
        if self.link != LINKS["instant"]:
            known["fps"] = self.fps
        return " ".join(f"{name}={value}" for name, value in known.items())

    @property
    def shape(self) -> Shape:
        return Shape(self.alpha, self.imbalance, self.visits, self.shuffle, self.passes)


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one method. corruptions: one where each is a stream of its own, else those that the stream passes."""

    method: str
    corruptions: tuple[str, ...]
    seed: int
    delay: int

    def key(self, spec: Spec) -> str:
        """Names the cell's file: everything that its rows depend on, and nothing else of the specification."""
        shared = msgspec.structs.replace(
            spec,
            methods=(self.method,),
            corruptions=self.corruptions,
            seeds=(self.seed,),
            delays=(self.delay,),
            options={name: value for name, value in spec.options.items() if name == self.method},
        )
        own = code_digest((self.method, spec.dataset))
        text = msgspec.json.encode([_FORMAT, __version__, shared, *filter(None, (own,))], order="deterministic")
        return hashlib.sha256(text).hexdigest()[:24]


def cells(spec: Spec) -> list[Cell]:
    """All cells of a run; seeds outermost, so that an interrupted run has whole seeds first."""
    streams = [(name,) for name in spec.corruptions] if spec.setting in ALONE else [spec.corruptions]
    return [
        Cell(method=method, corruptions=names, seed=seed, delay=delay)
        for seed, names, delay, method in product(spec.seeds, streams, spec.delays, spec.methods)
    ]


def conditions(spec: Spec, labels_N: Indices) -> list[Condition]:
    """Every (corruption, severity) that the streams pass through. labels_N: of the photographs that are streamed.

    Raises ConfigError for streams that cannot be made of them.
    """
    streams = make_streams(spec.setting, spec.corruptions, spec.severity, labels_N, spec.seeds[0], spec.shape)
    return sorted({each for stream in streams for segment in stream.segments for each in segment.conditions})


def read_corruptions(text: str) -> tuple[str, ...]:
    """``all`` (the fifteen), ``extra`` (the four), ``clean``, or ids with commas between; each once, in order."""
    names = [name for part in _parts(text) for name in _GROUPS.get(part, (part,))]
    unknown = sorted({*names} - {*COMMON, *EXTRA, CLEAN})
    if unknown or not names:
        raise ConfigError(
            f"expected corruptions, got {', '.join(unknown) or 'none'}",
            hint=f"all, extra, {CLEAN} or any of {', '.join((*COMMON, *EXTRA))}",
        )
    return tuple(dict.fromkeys(names))


def read_options(texts: Sequence[str]) -> dict[str, dict[str, bool | int | float | str]]:
    """``tent.lr=0.01`` -> {"tent": {"lr": 0.01}}. The method is what stands before the last point of the key;
    before the last but one in ``cema.statistics.memory=48``: numbers of the device are in parts."""
    found: dict[str, dict[str, bool | int | float | str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        method, point, name = key.rpartition(".")
        before, _, part = method.rpartition(".")
        if before and part in DEVICE_PARTS:
            method, name = before, f"{part}.{name}"
        if not (equals and point and method and name):
            raise ConfigError(f"expected METHOD.OPTION=VALUE, got {text!r}")
        found.setdefault(method, {})[name] = _value(value)
    return found


def read_numbers(text: str) -> tuple[int, ...]:
    """``0,1,2``."""
    try:
        return tuple(int(part) for part in _parts(text))
    except ValueError as error:
        raise ConfigError(f"expected whole numbers with commas between, got {text!r}") from error


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _value(text: str) -> bool | int | float | str:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text

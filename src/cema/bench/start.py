"""From a method's name to a run of it: models copied, settings read, filters chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import torch
from torch import nn

from cema.bench.answer import Run
from cema.bench.cloud_only import CloudOnly
from cema.bench.device_run import DeviceRun, own_copy
from cema.bench.link import LINKS, Link
from cema.bench.methods import CLOUD_ONLY, MANY_CLASSES, RELEASED_MARGIN, CloudEdge, OnDevice, entry
from cema.bench.methods.base import DeviceMethod
from cema.bench.own import load_own
from cema.bench.rows import Where
from cema.bench.simulate import FPS, Own, Pair, Plan, Simulator, Travel
from cema.cloud.adapt import Options, create_adapter
from cema.errors import ConfigError
from cema.types import Uint8Array
from cema.wire.preprocess import preprocess

FIRST_BATCH_MIN = 8
"""Pictures from which the statistics of the first batch are a start at all (the smallest batch with published figures);
below, cloud-edge methods start from the source statistics, as a device does."""


CleanPictures = Callable[[], tuple[Uint8Array, str]]


@dataclass(frozen=True)
class Conditions:
    """What a run is given beside the method: see ``Plan``. first_batch: its number of pictures. threads: of each side,
    0 = one per core."""

    first_batch: int = 64
    seed: int = 0
    edges: int = 1
    link: Link = LINKS["instant"]
    delay: int = 0
    fps: float = FPS
    threads: int = 0
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A run that is ready. options: what differs from the method's defaults, as recorded in its rows."""

    run: Run
    where: Where
    options: Options


def check_method(method: str, options: Options, *, foundation: bool) -> None:
    """What ``start`` would refuse, found without the models. foundation: whether there is one.

    Raises
    ------
    ConfigError: unknown method or option; a foundation model is needed and there is none.
    """
    found = entry(method)
    if isinstance(found, OnDevice):
        _settings(_device_class(method, found.path), method, {**found.many_classes, **options})
    elif found is None:
        _check_cloud_only(options, foundation)
    else:
        least = nn.BatchNorm2d(1)  # any model with a norm layer
        _, rest = _travel(method, {**found.options, **options})
        if found.statistics:
            _, rest = _own(method, rest)
        create_adapter(found.method, least, least if foundation else None, rest)


def start(method: str, pair: Pair, conditions: Conditions, clean: CleanPictures) -> Started:
    """A fresh run of ``method``.

    clean: called for clean pictures uint8 [N, H, W, 3] by methods that prepare with some (EATA's Fisher matrix), and
    where they come from; that is recorded among the options. Raises as ``check_method``.
    """
    found = entry(method)
    check_method(method, conditions.options, foundation=pair.foundation is not None)
    if found is None:
        assert pair.foundation is not None
        manifest = pair.bundle.manifest
        run = CloudOnly(own_copy(pair.foundation), manifest.preprocess, manifest.fingerprint, conditions.seed)
        return Started(run, "cloud", {})
    if isinstance(found, OnDevice):
        return _on_device(method, found, pair, conditions, clean)
    return _cloud_edge(method, found, pair, conditions)


def _check_cloud_only(options: Options, foundation: bool) -> None:
    if not foundation:
        raise ConfigError(f"method {CLOUD_ONLY!r} needs a foundation model", hint="--foundation-model NAME")
    if options:
        raise ConfigError(f"method {CLOUD_ONLY!r} has no options, got {', '.join(options)}")


def _cloud_edge(method: str, found: CloudEdge, pair: Pair, conditions: Conditions) -> Started:
    selection, options = found.selection, {**found.options, **conditions.options}
    if method == "cema-released":
        classes = len(pair.bundle.manifest.classes)
        nearest = min(RELEASED_MARGIN, key=lambda known: abs(known - classes))
        selection = msgspec.structs.replace(selection, d_margin=RELEASED_MARGIN[nearest])
    first_batch = found.first_batch and conditions.first_batch >= FIRST_BATCH_MIN
    travel, rest = _travel(method, options)
    own, rest = _own(method, rest) if found.statistics else (None, rest)
    plan = Plan(
        method=found.method,
        options=rest,
        travel=travel,
        selection=selection,
        selecting=found.selecting,
        seed=conditions.seed,
        delay=conditions.delay,
        first_batch=first_batch,
        own=own if found.statistics else None,
        threads=conditions.threads,
        edges=conditions.edges,
        link=conditions.link,
        fps=conditions.fps,
    )
    told: Options = options if found.where == "none" else {**options, "first_batch": first_batch}
    return Started(Simulator(pair, plan), found.where, told)


def _travel(method: str, options: Options) -> tuple[Travel, Options]:
    """What of the options is about the wire, and the rest, which is the adapter's."""
    about_wire = {name: value for name, value in options.items() if name in Travel.__struct_fields__}
    try:
        travel = msgspec.convert(about_wire, type=Travel)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of method {method!r}: {error}", hint="image_coding, update_encoding") from error
    return travel, {name: value for name, value in options.items() if name not in about_wire}


def _own(method: str, options: Options) -> tuple[Own, Options]:
    """Numbers of the device: ``statistics.memory``, ``blend.share_max``, ``pacing.rate`` and so on; and the rest."""
    parts: dict[str, dict[str, bool | int | float | str]] = {part: {} for part in Own.__struct_fields__}
    rest: dict[str, bool | int | float | str] = {}
    for name, value in options.items():
        part, dot, key = name.partition(".")
        (parts[part] if dot and part in parts else rest)[key if dot and part in parts else name] = value
    try:
        return msgspec.convert(parts, type=Own), rest
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"options of method {method!r}: {error}", hint="statistics.*, blend.*, classes.*, pacing.*, mixture.*"
        ) from error


def _on_device(method: str, found: OnDevice, pair: Pair, conditions: Conditions, clean: CleanPictures) -> Started:
    kind = _device_class(method, found.path)
    published = found.many_classes if len(pair.bundle.manifest.classes) >= MANY_CLASSES else {}
    options: dict[str, bool | int | float | str] = {**published, **conditions.options}
    manifest = pair.bundle.manifest
    settings = _settings(kind, method, options)
    if hasattr(settings, "pixel_mean"):  # for methods that change pixels: how the model's input was made of them
        recipe = manifest.preprocess
        settings = msgspec.structs.replace(settings, pixel_mean=recipe.mean, pixel_std=recipe.std)
    methods = [kind(own_copy(pair.edge), settings, conditions.seed + index) for index in range(conditions.edges)]
    if kind.prepare_images:
        clean_NHWC, options["clean_pictures"] = clean()
        clean_BCHW = torch.from_numpy(preprocess(list(clean_NHWC[: kind.prepare_images]), manifest.preprocess))
        for each in methods:
            each.prepare(clean_BCHW)
    return Started(DeviceRun(methods, manifest.preprocess), kind.where, options)


def _device_class(method: str, path: str) -> type[DeviceMethod]:
    kind = load_own(path)
    if not (isinstance(kind, type) and issubclass(kind, DeviceMethod)):
        raise ConfigError(f"method {method!r}: expected a subclass of cema.bench.methods.base.DeviceMethod at {path}")
    if not (isinstance(getattr(kind, "Settings", None), type) and issubclass(kind.Settings, msgspec.Struct)):
        raise ConfigError(f"method {method!r}: expected a msgspec.Struct as {path}.Settings")
    return kind


def _settings(kind: type[DeviceMethod], method: str, options: Options) -> msgspec.Struct:
    """A method's settings with the user's overrides. Raises ConfigError for unknown keys and wrong ranges."""
    known = ", ".join(kind.Settings.__struct_fields__) or "none"
    try:
        if unknown := set(options).difference(kind.Settings.__struct_fields__):
            raise msgspec.ValidationError(f"unknown: {', '.join(sorted(unknown))}")
        return msgspec.convert(dict(options), type=kind.Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of method {method!r}: {error}", hint=f"known options: {known}") from error

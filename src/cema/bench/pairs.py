"""The models of a benchmark run: by data set, or as the user says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cema.bench.simulate import Pair
from cema.cloud.export import build_bundle
from cema.cloud.models import load_model
from cema.errors import ConfigError


@dataclass(frozen=True)
class PairNames:
    """Model names (cema.cloud.models) and weight files; weights None: the model brings its own. foundation None: only
    methods that need none can run."""

    edge: str
    foundation: str | None
    edge_weights: str | None = None
    foundation_weights: str | None = None


_CIFAR = PairNames("resnet20", "resnet56", "cifar10/resnet20.safetensors", "cifar10/resnet56.safetensors")
_IMAGENET = PairNames("efficientnet-lite0", "efficientnet-lite2")
DEFAULTS = {
    "digits": PairNames("digits-edge", "digits-foundation"),
    "cifar10": _CIFAR,
    "cifar10-c": _CIFAR,
    **dict.fromkeys(
        ("imagenet", "imagenet-c", "imagenet-r", "imagenet-r-all", "imagenet-a", "imagenet-a-all"), _IMAGENET
    ),
}
"""Weights are below the data folder."""


def pair_names(dataset: str, data: Path | None, given: PairNames | None = None) -> PairNames:
    """The models for a data set; ``given`` wins. Raises ConfigError when there is no default and none is given."""
    if given is not None:
        return given
    if dataset not in DEFAULTS:
        raise ConfigError(f"the data set {dataset!r} has no models of its own", hint="--edge-model, --foundation-model")
    names = DEFAULTS[dataset]
    root = data if data is not None else Path()
    edge, foundation = (str(root / name) if name else None for name in (names.edge_weights, names.foundation_weights))
    return PairNames(names.edge, names.foundation, edge, foundation)


def load_pair(names: PairNames, classes: Sequence[str]) -> Pair:
    """Both models and the edge's bundle. classes: of the data set, for models that do not know theirs.

    The last pair is remembered: nobody changes its models, methods work on copies.
    """
    return _load(names, tuple(classes))


@lru_cache(maxsize=1)
def _load(names: PairNames, classes: tuple[str, ...]) -> Pair:
    edge = load_model(names.edge, names.edge_weights)
    if edge.preprocess is None:
        raise ConfigError(
            f"model {names.edge!r} does not say how pictures are brought to it",
            hint="let its factory return cema.cloud.models.LoadedModel with preprocess",
        )
    named = edge.classes or list(classes)
    bundle = build_bundle(edge.module, name=edge.name, preprocess=edge.preprocess, classes=named)
    foundation = load_model(names.foundation, names.foundation_weights).module if names.foundation else None
    return Pair(bundle, edge.module, foundation)

"""The models of a benchmark run: by data set, or as the user says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from cema.bench.own import load_own
from cema.bench.simulate import Pair
from cema.cloud.export import build_bundle
from cema.cloud.models import LoadedModel, load_model
from cema.errors import CemaError, ConfigError


@dataclass(frozen=True)
class PairNames:
    """Model names (cema.cloud.models) and weight files; weights None: the model brings its own. foundation None: only
    methods that need none can run. given: whether the user named any of it."""

    edge: str
    foundation: str | None
    edge_weights: str | None = None
    foundation_weights: str | None = None
    given: bool = False

    def __str__(self) -> str:
        """As in ``Row.stream``: what the user chose instead of the data set's own models, else empty."""
        parts = {
            "edge": self.edge,
            "edge_weights": self.edge_weights and Path(self.edge_weights).name,
            "foundation": self.foundation,
            "foundation_weights": self.foundation_weights and Path(self.foundation_weights).name,
        }
        return " ".join(f"{key}={value}" for key, value in parts.items() if value) if self.given else ""


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


def pair_names(
    dataset: str,
    data: Path | None,
    edge: str | None = None,
    foundation: str | None = None,
    edge_weights: str | None = None,
    foundation_weights: str | None = None,
) -> PairNames:
    """The models for a data set, with what is given in place of its own.

    A model that is given does not get the weights of the one it replaces, and an edge model that is given not the
    foundation model either. Raises ConfigError when there is no edge model, or weights for no model.
    """
    names = _own_pair(dataset, data)
    if edge is not None:
        names = PairNames(edge, None)
    if names is None:
        raise ConfigError(f"the data set {dataset!r} has no models of its own", hint="--edge-model, --foundation-model")
    if foundation is not None:
        names = replace(names, foundation=foundation, foundation_weights=None)
    if foundation_weights is not None and names.foundation is None:
        raise ConfigError("weights are given for a foundation model, but no such model", hint="--foundation-model NAME")
    given = any(value is not None for value in (edge, foundation, edge_weights, foundation_weights))
    return replace(
        names,
        edge_weights=edge_weights or names.edge_weights,
        foundation_weights=foundation_weights or names.foundation_weights,
        given=given,
    )


def _own_pair(dataset: str, data: Path | None) -> PairNames | None:
    names = DEFAULTS.get(dataset)
    if names is None:
        return None
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
    edge = _model(names.edge, names.edge_weights)
    if edge.preprocess is None:
        raise ConfigError(
            f"model {names.edge!r} does not say how pictures are brought to it",
            hint="let its factory return cema.cloud.models.LoadedModel with preprocess",
        )
    named = edge.classes or list(classes)
    bundle = build_bundle(edge.module, name=edge.name, preprocess=edge.preprocess, classes=named)
    foundation = _model(names.foundation, names.foundation_weights).module if names.foundation else None
    return Pair(bundle, edge.module, foundation)


def _model(name: str, weights: str | None) -> LoadedModel:
    """As ``load_model``; a factory of the user's may return a LoadedModel, too, which brings its weights."""
    if ":" in name and weights is None:
        try:
            made = load_own(name)()
        except CemaError:
            raise
        except Exception as error:
            raise ConfigError(f"model {name} cannot be built: {type(error).__name__}: {error}") from error
        if isinstance(made, LoadedModel):
            return replace(made, module=made.module.eval(), name=name)
    return load_model(name, weights)

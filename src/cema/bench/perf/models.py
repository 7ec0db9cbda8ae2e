"""The two model pairs that performance is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from cema.cloud.export import build_bundle
from cema.cloud.models import load_model
from cema.cloud.models.registry import LoadedModel
from cema.errors import CemaError, ConfigError
from cema.wire.bundle import Bundle


@dataclass
class PerfPair:
    """Models by name, loaded when first needed. weights: folder of ``NAME.safetensors``, None: they bring their own."""

    edge_name: str
    foundation_name: str
    weights: Path | None

    @cached_property
    def edge(self) -> nn.Module:
        return self._load(self.edge_name).module

    @cached_property
    def foundation(self) -> nn.Module:
        return self._load(self.foundation_name).module

    @cached_property
    def bundle(self) -> Bundle:
        found = self._load(self.edge_name)
        assert found.preprocess is not None
        assert found.classes is not None
        return build_bundle(found.module, name=found.name, preprocess=found.preprocess, classes=found.classes)

    @property
    def size(self) -> tuple[int, int]:
        """Of the input, px."""
        recipe = self._load(self.edge_name).preprocess
        assert recipe is not None
        return recipe.size

    def _load(self, name: str) -> LoadedModel:
        return load_model(name, self.weights / f"{name}.safetensors" if self.weights else None)


def pairs(data: Path | None) -> tuple[dict[str, PerfPair], dict[str, str]]:
    """(pairs that are here, by name; why the others are not)."""
    wanted = {
        "ResNet-20/56": PerfPair("resnet20", "resnet56", data / "cifar10" if data else Path("cifar10")),
        "EfficientNet-Lite0/2": PerfPair("efficientnet-lite0", "efficientnet-lite2", None),
    }
    present, missing = {}, {}
    for name, pair in wanted.items():
        try:
            _ = pair.edge, pair.foundation
            present[name] = pair
        except (CemaError, OSError) as error:
            missing[name] = str(error)
    if not present:
        raise ConfigError(f"no model pair to measure: {missing}", hint="--data DIR, and pip install 'cema[imagenet]'")
    return present, missing

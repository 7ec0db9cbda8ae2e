"""The models of a worker: each pair is loaded once, however many groups adapt it (cloud/sharing.py)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec
import numpy as np
from torch import nn

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import Adapter
from cema.cloud.export import check_parity
from cema.cloud.int8 import check_origin
from cema.cloud.models import load_model
from cema.cloud.norms import read_parameters
from cema.cloud.sharing import SharedAdapter
from cema.cloud.store.base import BlobStore
from cema.config import GroupConfig
from cema.errors import ConfigError, ExportError
from cema.wire.bundle import Bundle, decode_bundle

log = logging.getLogger(__name__)


@dataclass
class ModelPool:
    """Bundles by their blob, adapters by all that makes them: models, weights, method, options and bundle."""

    blobs: BlobStore

    def __post_init__(self) -> None:
        self._bundles: dict[str, Bundle] = {}
        self._adapters: dict[bytes, SharedAdapter] = {}

    def models(self, group: GroupConfig, bundle_blob: str) -> tuple[Bundle, SharedAdapter]:
        """Raises ConfigError: unknown models, or a bundle that was not built from them; StorageError."""
        bundle = self._bundles.get(bundle_blob) or decode_bundle(self.blobs.get(bundle_blob))
        self._bundles[bundle_blob] = bundle
        # what does not change the models must not keep two groups from sharing them
        alike = msgspec.structs.replace(group, bundle=bundle_blob, seed=0, adaptation="on")
        key = msgspec.json.encode(alike, order="deterministic")
        if key not in self._adapters:
            self._adapters[key] = SharedAdapter(_adapter(group, bundle))
        return bundle, self._adapters[key]


def _adapter(group: GroupConfig, bundle: Bundle) -> Adapter:
    edge = load_model(group.edge_model, group.edge_weights).module
    _check_same(edge, bundle, group)
    foundation = load_model(group.foundation_model, group.foundation_weights).module if group.foundation_model else None
    adapter = create_adapter(group.method, edge, foundation, group.options)
    if adapter.stats_owner == "edge" and bundle.follows and not bundle.measures:
        raise ConfigError(
            f"the devices of {group.bundle} cannot measure their norm statistics, as method {group.method!r} wants",
            hint="build the bundle again, without --int8; or take the method 'cema-paper'",
        )
    return adapter


def _check_same(edge: nn.Module, bundle: Bundle, group: GroupConfig) -> None:
    """The torch model that is adapted must be the one that the devices run: same norm tensors, same answers."""
    source, built = read_parameters(edge), bundle.source_parameters()
    same = source.keys() == built.keys() and all(np.array_equal(source[name], built[name]) for name in built)
    try:
        if same:
            (check_origin if bundle.manifest.precision == "int8" else check_parity)(edge, bundle)
            return
    except ExportError as error:
        log.warning("%s", error)
    raise ConfigError(
        f"the bundle {group.bundle} was not built from edge_model {group.edge_model!r} with these weights",
        hint="build the bundle again with 'cema bundle build'",
    )

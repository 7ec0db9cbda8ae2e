"""A cloud without its web process, for tests of workers: a real store, small models, uploads by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cema.cloud.export import build_bundle
from cema.cloud.int8 import quantised
from cema.cloud.keys import signing_key
from cema.cloud.models import load_model
from cema.cloud.registry import register_groups
from cema.cloud.store import open_store
from cema.cloud.store.base import BlobStore, Store
from cema.cloud.worker import Worker
from cema.config import GroupConfig, ServeConfig, ServerConfig, WorkerConfig
from cema.wire import signing
from cema.wire.bundle import encode_bundle
from cema.wire.image import encode_image
from cema.wire.messages import Preprocess, Sample, SampleBatch
from cema.wire.update import Update, open_update

MODELS = """
import torch
from torch import nn

def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3))

def edge():
    return net(1)

def other_edge():
    return net(2)

def foundation():
    return net(3)
"""


class Cloud:
    """Groups with the models of worker_models.py, by name."""

    def __init__(
        self,
        folder: Path,
        edge_models: dict[str, str],
        data_dir: Path | None = None,
        *,
        int8: bool = False,
        method: str = "cema-paper",
        encrypt: bool = False,
    ) -> None:
        self.now_ms, self.sent = 1_000_000, 0
        model = load_model("worker_models:edge")
        self.bundle = build_bundle(
            model.module, name=model.name, preprocess=Preprocess(size=(8, 8)), classes=["a", "b", "c"]
        )
        if int8:
            pictures = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
            self.bundle, _ = quantised(self.bundle, pictures)
        (folder / "edge.bundle").write_bytes(encode_bundle(self.bundle))
        groups = {
            name: GroupConfig(
                bundle=str(folder / "edge.bundle"),
                edge_model=edge,
                foundation_model="worker_models:foundation",
                method=method,
            )
            for name, edge in edge_models.items()
        }
        self.config = ServeConfig(
            groups=groups, server=ServerConfig(data_dir=str(data_dir or folder / "data"), encrypt_samples=encrypt),
            worker=WorkerConfig(publish_min_interval_s=0),
        )  # fmt: skip
        self.store: Store
        self.blobs: BlobStore
        self.store, self.blobs = open_store(self.config, for_pictures=True)
        register_groups(self.config, self.store, self.blobs, self.now_ms)

    def worker(self, name: str = "w", clock_s: Callable[[], float] = lambda: 0.0) -> Worker:
        return Worker(self.config, self.store, self.blobs, name=name, clock_ms=lambda: self.now_ms, clock_s=clock_s)

    def update(self, group: str, version: int) -> Update:
        """A version as a device would open it."""
        row, key = self.store.update(group, version), signing.public_key(signing_key(self.config))
        return open_update(self.blobs.get(row.blob), self.bundle.manifest, signature=row.signature, key=key)

    def upload(self, group: str, count: int, device: str | None = None, domain: int = 0) -> None:
        """device: the group's name unless given. domain: of its stream."""
        rng = np.random.default_rng(self.sent)
        samples = [
            Sample(
                sample_id=(self.sent + i).to_bytes(16, "big"), seq=i, codec="png", label=0, probability=0.5,
                image=encode_image(rng.integers(0, 256, (8, 8, 3), np.uint8), "png"), entropy=0.5, update_version=0,
                captured_at_ms=0, domain=domain,
            )
            for i in range(count)
        ]  # fmt: skip
        self.sent += count
        batch = SampleBatch(
            device_id=device or group, boot_id=self.sent.to_bytes(16, "big"), samples_seen=64, samples=samples,
            fingerprint=self.bundle.manifest.fingerprint,
        )  # fmt: skip
        self.store.add_samples(group, batch, self.now_ms)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "worker_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def make_cloud(folder: Path) -> Callable[..., Cloud]:
    """make_cloud({group: edge model}), or make_cloud(names) for groups that all adapt the right one."""

    def make(groups: dict[str, str] | str = "g", data_dir: Path | None = None, **how: Any) -> Cloud:
        models = dict.fromkeys(groups, "worker_models:edge") if isinstance(groups, str) else groups
        return Cloud(folder, models, data_dir, **how)

    return make

"""The methods of the benchmark by name. To add one to the product: write its file, add it here.

A method of one's own needs neither: ``module:Class`` is a name as well (docs/benchmark.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cema.bench.rows import Where
from cema.bench.simulate import Selecting
from cema.cloud.adapt import Options
from cema.config import SelectionConfig
from cema.errors import ConfigError

PAPER_FILTERS = SelectionConfig(e_max_warmup_samples=64)
"""The paper's filters as the published figures were made: E_min 0.02 ln C, dynamic E_max after 64 samples."""
EVERYTHING = SelectionConfig(enabled=False)
RELEASED_MARGIN = {10: 0.4, 1000: 0.05}
"""d of the redundancy filter by number of classes: 0.4 is EATA's for CIFAR-10-C (CEMA's authors publish no
configuration with ten classes), 0.05 is EATA's and CEMA's for ImageNet-C."""
CLOUD_ONLY = "cloud-only"
MANY_CLASSES = 200
"""From so many classes on (ImageNet-R's) the published numbers for ImageNet are used."""


@dataclass(frozen=True)
class OnDevice:
    """A ``DeviceMethod`` as ``module:Class``. many_classes: published numbers for ImageNet, where they differ from the
    class's own (those for CIFAR-10); used from MANY_CLASSES on. What of them a class cannot take, it says itself."""

    path: str
    many_classes: Options = field(default_factory=dict)


@dataclass(frozen=True)
class CloudEdge:
    """A method of the cloud (cema.cloud.adapt) with what the device does for it. first_batch, statistics: see
    ``Plan``."""

    method: str
    selection: SelectionConfig = PAPER_FILTERS
    selecting: Selecting = "filters"
    options: Options = field(default_factory=dict)
    first_batch: bool = True
    statistics: bool = False
    where: Where = "cloud"


Entry = OnDevice | CloudEdge
_HERE = "cema.bench.methods"
METHODS: Mapping[str, Entry | None] = {
    "source": CloudEdge("source", selecting="nothing", first_batch=False, where="none"),
    "bn": OnDevice(f"{_HERE}.bn:BatchNorm"),
    "bn-alpha": OnDevice(f"{_HERE}.bn_alpha:BatchNormAlpha"),
    "bn-ema": OnDevice(f"{_HERE}.bn_ema:BatchNormEma"),
    "lame": OnDevice(f"{_HERE}.lame:Lame"),
    "t3a": OnDevice(f"{_HERE}.t3a:T3A"),
    "tent": OnDevice(f"{_HERE}.tent:Tent", {"optimiser": "sgd", "lr": 0.00025}),
    "eta": OnDevice(f"{_HERE}.eata:Eta", {"lr": 0.00025, "d_margin": 0.05}),
    "eata": OnDevice(f"{_HERE}.eata:Eata", {"lr": 0.00025, "d_margin": 0.05, "fisher_alpha": 2000.0}),
    "sar": OnDevice(f"{_HERE}.sar:Sar"),
    "cotta": OnDevice(f"{_HERE}.cotta:Cotta", {"threshold": 0.1, "restore": 0.001}),
    "rotta": OnDevice(f"{_HERE}.rotta:Rotta"),
    "labels": OnDevice(f"{_HERE}.labels:Labels"),
    "cloud-bn": CloudEdge("bn"),
    "cema": CloudEdge("cema", selecting="paced", first_batch=False, statistics=True),
    "cema-lite": CloudEdge("cema-lite", selecting="paced", first_batch=False, statistics=True),
    "cema-offline": CloudEdge("source", selecting="nothing", first_batch=False, statistics=True, where="forward"),
    "cema-paper": CloudEdge("cema-paper"),
    "cema-released": CloudEdge("cema-paper", selection=SelectionConfig(e_min=0.0, dynamic=False)),
    "upload-all": CloudEdge("cema-paper", selection=EVERYTHING),
    "upload-random": CloudEdge("cema-paper", selecting="random"),
    CLOUD_ONLY: None,
}


def entry(method: str) -> Entry | None:
    """What a name stands for; None for ``cloud-only``. Raises ConfigError for an unknown one."""
    if method in METHODS:
        return METHODS[method]
    if ":" in method:
        return OnDevice(method)
    raise ConfigError(
        f"expected a method out of {', '.join(METHODS)}, got {method!r}", hint="or module:Class for one of your own"
    )

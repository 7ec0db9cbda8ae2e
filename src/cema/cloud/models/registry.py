"""From a name to a network: architecture, weights, preprocessing and classes of every model that cema knows.

A name is one of ``known_models()`` or ``module:factory``, a function of the user's that returns a ``torch.nn.Module``.
Weights are safetensors; the number of classes is read from them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cema.cloud.models import digits, efficientnet
from cema.cloud.models.cifar_resnet import CifarResNet
from cema.cloud.models.resnet import STAGE_BLOCKS, ResNet
from cema.errors import ConfigError
from cema.wire.messages import Preprocess

State = Mapping[str, torch.Tensor]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET_CLASSES = tuple(str(index) for index in range(1000))
"""The index is the name: no list of names comes with the weights."""
DIGITS_PREPROCESS = Preprocess(
    size=(digits.SIDE_PX, digits.SIDE_PX), mean=(digits.PIXEL_MEAN,) * 3, std=(digits.PIXEL_STD,) * 3
)
CIFAR_PREPROCESS = Preprocess(size=(32, 32))
IMAGENET_PREPROCESS = Preprocess(size=(efficientnet.INPUT_PX, efficientnet.INPUT_PX), resize_short=256)
WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode. preprocess, classes: None for ``module:factory``, where the user states them."""

    module: nn.Module
    preprocess: Preprocess | None
    classes: list[str] | None
    name: str


@dataclass(frozen=True)
class _Spec:
    """build(num_classes) makes the untrained network; head: its last bias. state: its own weights, if there are any."""

    build: Callable[[int], nn.Module]
    head: str
    preprocess: Preprocess
    classes: tuple[str, ...]
    state: Callable[[], State] | None = None


def _known() -> dict[str, _Spec]:
    known = {}
    for name, kind in (("digits-edge", digits.DigitsEdge), ("digits-foundation", digits.DigitsFoundation)):
        own = partial(_read, WEIGHTS_FOLDER / f"{name}.safetensors")
        known[name] = _Spec(kind, "fc.bias", DIGITS_PREPROCESS, digits.CLASSES, own)
    for depth in (20, 32, 44, 56):
        cifar = partial(CifarResNet, depth)
        known[f"resnet{depth}"] = _Spec(cifar, "linear.bias", CIFAR_PREPROCESS, CIFAR10_CLASSES)
    for depth in STAGE_BLOCKS:
        known[f"resnet{depth}"] = _Spec(partial(ResNet, depth), "fc.bias", IMAGENET_PREPROCESS, IMAGENET_CLASSES)
    for variant in efficientnet.WEIGHTS_SHA256:
        build, own = partial(efficientnet.efficientnet_lite, variant), partial(efficientnet.pretrained_state, variant)
        known[f"efficientnet-lite{variant}"] = _Spec(build, "_fc.bias", IMAGENET_PREPROCESS, IMAGENET_CLASSES, own)
    return known


def known_models() -> list[str]:
    """The names that ``load_model`` takes besides ``module:factory``."""
    return list(_KNOWN)


def load_model(name: str, weights: str | Path | None = None, *, pretrained: bool = True) -> LoadedModel:
    """Build a network, load its weights, put it into eval mode.

    weights: a safetensors file; None takes the model's own, where it has some. pretrained False: random weights
    (from torch's generator), for tests.

    Raises
    ------
    ConfigError: unknown name, weights needed but not given, or weights that do not fit. DependencyError: the name needs
    an extra that is not installed.
    """
    if ":" in name:
        module = _custom(name)
        if weights is not None:
            _fill(module, _read(Path(weights)), str(weights))
        return LoadedModel(module.eval(), None, None, name)
    spec = _KNOWN.get(name)
    if spec is None:
        raise ConfigError(f"expected a known model or module:factory, got {name!r}", hint=f"known: {', '.join(_KNOWN)}")
    state = _state(name, spec, weights) if pretrained else None
    module = spec.build(_num_classes(spec, state))
    if state is not None:
        _fill(module, state, str(weights or name))
    classes = list(spec.classes)
    if (count := _num_classes(spec, state)) != len(classes):
        classes = [str(index) for index in range(count)]
    return LoadedModel(module.eval(), spec.preprocess, classes, name)


def _state(name: str, spec: _Spec, weights: str | Path | None) -> State:
    if weights is not None:
        return _read(Path(weights))
    if spec.state is None:
        raise ConfigError(
            f"{name} comes without weights, and an untrained network cannot be adapted",
            hint="give a safetensors file: --weights, or edge_weights and foundation_weights in cema.toml",
        )
    return spec.state()


def _num_classes(spec: _Spec, state: State | None) -> int:
    return len(state[spec.head]) if state is not None and spec.head in state else len(spec.classes)


def _read(path: Path) -> State:
    if not path.is_file():
        raise ConfigError(f"expected a weights file at {path}, there is none")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"expected safetensors in {path}: {error}",
            hint="convert with safetensors.torch.save_file(model.state_dict(), path)",
        ) from error


def _fill(module: nn.Module, state: State, source: str) -> None:
    """As load_state_dict, but the count of batches, which nothing here uses, may be missing."""
    expected = module.state_dict()
    missing = sorted(k for k in expected.keys() - state.keys() if not k.endswith("num_batches_tracked"))
    extra = sorted(state.keys() - expected.keys())
    if missing or extra:
        raise ConfigError(f"expected the model's tensors in {source}; missing {missing[:3]}, not known {extra[:3]}")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ConfigError(f"expected {key} of shape {[*expected[key].shape]} in {source}, got {[*value.shape]}")
    module.load_state_dict(state, strict=False)


def _custom(name: str) -> nn.Module:
    module_name, _, factory_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = getattr(importlib.import_module(module_name), factory_name)()
    except Exception as error:
        raise ConfigError(
            f"{name} cannot be built: {type(error).__name__}: {error}",
            hint="expected module:factory, a function without arguments, importable or in the current folder",
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(module, nn.Module):
        raise ConfigError(f"expected {name} to return a torch.nn.Module, got {type(module).__name__}")
    return module


_KNOWN = _known()

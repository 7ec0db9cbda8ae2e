"""The methods, one per file. To add one: write the file, add it to ``cema.cloud.methods``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from cema.cloud.methods import METHODS
from cema.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from cema.cloud.adapt.base import Adapter

Options = Mapping[str, bool | int | float | str]


def create_adapter(method: str, edge: nn.Module, foundation: nn.Module | None, options: Options) -> Adapter:
    """The adapter ``method`` for a pair of torch models (copied, not changed).

    Raises ConfigError for an unknown method or option, or when the method needs a foundation model and has none.
    """
    if method not in METHODS:
        raise ConfigError(f"expected a method out of {', '.join(METHODS)}, got {method!r}")
    module, _, name = METHODS[method].partition(":")
    adapter: Adapter = getattr(import_module(module), name)(edge, foundation, options)
    return adapter

"""The adaptation methods by name, for those who must not load them: the web process never imports torch."""

from __future__ import annotations

METHODS = {
    "source": "cema.cloud.adapt.source:Source",
    "bn": "cema.cloud.adapt.bn:BatchStatistics",
    "cema": "cema.cloud.adapt.cema:Cema",
    "cema-lite": "cema.cloud.adapt.cema:CemaLite",
    "cema-paper": "cema.cloud.adapt.cema_paper:CemaPaper",
}
"""Where each lies (cema.cloud.adapt loads it)."""
EDGE_OWNED = frozenset({"cema", "cema-lite"})
"""Those whose devices measure their norm statistics themselves."""

"""Edge and foundation networks: ``load_model(name)`` finds architecture, weights and preprocessing."""

from cema.cloud.models.registry import LoadedModel, known_models, load_model

__all__ = ["LoadedModel", "known_models", "load_model"]

"""The networks of both sides of the cloud: ``load_model(name)`` finds the architecture, its weights and its preprocessing."""

from cema.cloud.models.registry import LoadedModel, known_models, load_model

__all__ = ["LoadedModel", "known_models", "load_model"]

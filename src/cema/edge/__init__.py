"""The device's side: predict, select, send, receive. Needs no torch.

>>> from cema.edge import EdgeAgent
>>> with EdgeAgent.from_file("device.toml") as agent:  # doctest: +SKIP
...     predictions = agent.predict(images)
"""

from cema.config_files import load_device
from cema.edge.agent import EdgeAgent
from cema.types import Prediction

__all__ = ["EdgeAgent", "Prediction", "load_device"]

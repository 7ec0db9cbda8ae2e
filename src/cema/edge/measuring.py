"""Norm statistics of a batch, measured with forward passes alone: the bundle's statistics graph, ready to run.

In: pictures, norm parameters, and how far each layer shall follow what it measures instead of what it is given. Out:
per picture and channel the moments of every norm layer's input (edge/statistics.py makes statistics of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from cema.edge.session import ORT_ERRORS, given, session_options
from cema.errors import BundleError
from cema.types import Float32Array, NormParameters, Uint8Array
from cema.wire.bundle import SHARE_INPUT, Bundle, MeasuredLayer, measured_layers, shared_weights

_VARIANCE_FLOOR = 1e-8


class Moments(NamedTuple):
    """Of one norm layer's input: mean over pixels of x, and of x squared, float32 [B, C] each."""

    first_BC: Float32Array
    second_BC: Float32Array


class Measured(NamedTuple):
    """logits_BK: of the same forward, by the blended statistics. layers: in the order of the statistics graph."""

    logits_BK: Float32Array
    layers: list[Moments]


def moments_of(first_BC: Float32Array, second_BC: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Mean, biased variance, and the squared relative error of that variance from B pictures, [C] each."""
    mean_C = first_BC.mean(axis=0)
    spread_BC = second_BC - 2 * first_BC * mean_C + mean_C**2
    var_C = np.maximum(spread_BC.mean(axis=0), _VARIANCE_FLOOR)
    noise_C = spread_BC.var(axis=0) / len(first_BC) / var_C**2
    return mean_C, var_C, noise_C


def statistics_of(parameters: NormParameters, layers: Sequence[MeasuredLayer]) -> NormParameters:
    """Means and variances alone."""
    return {name: parameters[name] for layer in layers for name in (layer.mean, layer.var)}


class MeasuringSession:
    """Runs ``statistics.onnx`` of a bundle that has one. threads: 0 = one per core, at most 4.

    Raises BundleError: there is none, or not one that ONNX Runtime can run.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        if not bundle.measures:
            raise BundleError("this bundle has no statistics graph", hint="build it again with 'cema bundle build'")
        self.layers, self.bundle = measured_layers(bundle.manifest.norm), bundle
        self._inputs = [(tensor.initializer, tensor.name) for tensor in bundle.manifest.norm]
        weights = shared_weights(bundle)
        options = session_options(threads)
        try:
            # an OrtValue borrows the array's memory: both live as long as the session
            self._kept = [(name, ort.OrtValue.ortvalue_from_numpy(np.array(value))) for name, value in weights.items()]
            options.add_external_initializers([name for name, _ in self._kept], [value for _, value in self._kept])
            self._session = ort.InferenceSession(bundle.statistics, options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise BundleError(
                f"expected a statistics graph that ONNX Runtime {ort.__version__} can run: {error}"
            ) from error

    def measure(self, images_BHWC: Uint8Array, parameters: NormParameters, share_L: Float32Array) -> Measured:
        """One forward. images: fitted pixels, uint8. parameters: by torch name.

        share_L: per layer, 0 = normalise by the statistics among the parameters, 1 = by those of this batch, or a
        blend of mean and variance in between. Raises BundleError.
        """
        feed: dict[str, Uint8Array | Float32Array] = {
            initializer: parameters[name] for initializer, name in self._inputs
        }
        feed[SHARE_INPUT] = share_L
        feed[self.bundle.manifest.input_name] = given(self.bundle.manifest, images_BHWC)
        try:
            logits_BK, *moments = self._session.run(None, feed)
        except ORT_ERRORS as error:
            raise BundleError(f"expected a statistics graph that runs on {list(images_BHWC.shape)}: {error}") from error
        return Measured(logits_BK, [Moments(*pair) for pair in zip(moments[::2], moments[1::2], strict=True)])

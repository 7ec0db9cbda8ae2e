"""From a float bundle to one that computes in int8, proven on pictures that it was not calibrated with.

What a norm tensor does must not change with the precision: the check compares answers with the source parameters and
with perturbed ones, and how far the answers moved in between.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
import torch
from torch import nn

from cema.cloud.calibration import given, observe
from cema.cloud.export import open_session, perturbed
from cema.cloud.norms import write_parameters
from cema.cloud.quantise import quantised_graph
from cema.errors import ExportError
from cema.types import Float32Array, NormParameters, Uint8Array
from cema.wire.bundle import Bundle, fingerprint
from cema.wire.preprocess import normalise

AGREEMENT_MIN = 0.85
"""Share of the check pictures that get the float model's label, source parameters. Measured: 0.98 (ResNet-20, 10
classes) and 0.97 (EfficientNet-Lite0, 1,000 classes)."""
ERROR_MAX = 0.35
"""Root mean square of the difference of logits, in units of their standard deviation, with any norm parameters.
Measured: 0.02 to 0.1; two unrelated models have 1.4."""
SEED = 0
_BATCH = 16


@dataclass(frozen=True)
class Fidelity:
    """How near the int8 bundle is to the float one on the check pictures.

    agreement: share of equal labels. error, error_perturbed: relative error of the logits (see ``ERROR_MAX``), with the
    source's norm parameters and with perturbed ones. error_change: of the change between the two.
    """

    agreement: float
    error: float
    error_perturbed: float
    error_change: float


def quantised(bundle: Bundle, images_NHWC: Uint8Array) -> tuple[Bundle, Fidelity]:
    """The same model in int8, and how near it is. images: fitted pictures, uint8; every second one is for the check.

    The norm table stays as it is: updates for the two differ in nothing but the fingerprint that they name.

    Raises ExportError: nothing to quantise, or too far from the float model (with the figures).
    """
    model = onnx.load_from_string(bundle.model)
    graph = quantised_graph(model, observe(bundle, images_NHWC[::2])).SerializeToString(deterministic=True)
    old = bundle.manifest
    mark = fingerprint(graph, bundle.norm, old.preprocess, old.classes, old.norm)
    made = Bundle(
        msgspec.structs.replace(old, fingerprint=mark, precision="int8", statistics=msgspec.UNSET), graph, bundle.norm
    )
    return made, check_fidelity(bundle, made, images_NHWC[1::2])


def check_fidelity(bundle: Bundle, made: Bundle, images_NHWC: Uint8Array) -> Fidelity:
    """Compare an int8 bundle with the float bundle it was made from. Raises ExportError."""
    source = bundle.source_parameters()
    other = perturbed(source, np.random.default_rng(SEED))
    exact, exact_other = (_logits(bundle, parameters, images_NHWC) for parameters in (source, other))
    coarse, coarse_other = (_logits(made, parameters, images_NHWC) for parameters in (source, other))
    found = Fidelity(
        agreement=float((exact.argmax(axis=1) == coarse.argmax(axis=1)).mean()),
        error=relative_error(exact, coarse),
        error_perturbed=relative_error(exact_other, coarse_other),
        error_change=relative_error(exact_other - exact, coarse_other - coarse),
    )
    worst = max(found.error, found.error_perturbed, found.error_change)
    if not (found.agreement >= AGREEMENT_MIN and worst <= ERROR_MAX):  # also when one is nan
        raise ExportError(
            f"expected int8 to give at least {AGREEMENT_MIN:.0%} of the float model's labels and a logit error of at "
            f"most {ERROR_MAX:g}, got {found.agreement:.1%} and {found.error:.2g} (with perturbed norms "
            f"{found.error_perturbed:.2g}, their effect {found.error_change:.2g})",
            hint="calibrate with pictures as the device sees them, or build this model without --int8",
            agreement=found.agreement,
            error=worst,
        )
    return found


@torch.no_grad()
def check_origin(module: nn.Module, bundle: Bundle) -> None:
    """An int8 bundle must answer as ``module`` does, on noise pictures with the source's and with perturbed norms.

    Without the calibration pictures: tells another model from this one, not a good calibration from a bad one.
    Raises ExportError.
    """
    rng, recipe = np.random.default_rng(SEED), bundle.manifest.preprocess
    images_BHWC = rng.integers(0, 256, (_BATCH, *recipe.size, 3), np.uint8)
    source, twin = bundle.source_parameters(), copy.deepcopy(module).cpu().float().eval()
    for parameters in (source, perturbed(source, rng)):
        write_parameters(twin, parameters)
        expected: Float32Array = twin(torch.from_numpy(normalise(images_BHWC, recipe))).numpy()
        error = relative_error(expected, _logits(bundle, parameters, images_BHWC))
        if not error <= ERROR_MAX:
            raise ExportError(f"expected int8 logits within {ERROR_MAX:g} of torch's, got {error:.2g}", error=error)


def relative_error(expected: Float32Array, got: Float32Array) -> float:
    """Root mean square of the difference, in units of the standard deviation of what was expected."""
    return float(np.sqrt(np.mean((got - expected) ** 2)) / max(float(expected.std()), np.finfo(np.float32).tiny))


def _logits(bundle: Bundle, parameters: NormParameters, images_NHWC: Uint8Array) -> Float32Array:
    session = open_session(bundle, parameters)
    batches = [images_NHWC[start : start + _BATCH] for start in range(0, len(images_NHWC), _BATCH)]
    name, output = bundle.manifest.input_name, bundle.manifest.output_name
    return np.concatenate([session.run([output], {name: given(bundle, batch)})[0] for batch in batches])

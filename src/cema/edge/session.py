"""The model with one version of the norm parameters, ready to run: an ONNX Runtime session that never changes.

In: a bundle and norm parameters by torch name. ``model.onnx`` keeps its norm tensors outside (``norm.bin``), so
other values are handed in as external initializers; the optimiser then fuses *them* into the convolutions, and
an adapted model is as fast as the source (ADR 0002). A hot swap builds a new session and exchanges a reference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from cema.edge.selection import entropy, softmax
from cema.errors import BundleError, ConfigError, UpdateContentError
from cema.types import Float32Array, NormParameters, Uint8Array
from cema.wire.bundle import Bundle
from cema.wire.messages import (
    CONFIDENCE_OUTPUT,
    ENTROPY_OUTPUT,
    LABEL_OUTPUT,
    PROBABILITIES_OUTPUT,
    BundleManifest,
)
from cema.wire.preprocess import normalise

MAX_AUTO_THREADS = 4
"""With threads = 0: more than four rarely helps small models and starves the device's other work."""
SMOKE_SEED = 0
_ANSWERS = (PROBABILITIES_OUTPUT, ENTROPY_OUTPUT, LABEL_OUTPUT, CONFIDENCE_OUTPUT)
_LOG_ERRORS_ONLY = 3
_NO_FOLDER = os.devnull
"""Where there are no files."""

ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
)


class Answers(NamedTuple):
    """About B pictures. probabilities_BK: softmax, float32. entropy_B: of it, float32, nats. label_B: the most probable
    class, int64. confidence_B: its probability, float32."""

    probabilities_BK: Float32Array
    entropy_B: Float32Array
    label_B: NDArray[np.int64]
    confidence_B: Float32Array


class EdgeSession:
    """A model version that predicts. Immutable and safe to share between threads.

    Parameters
    ----------
    bundle: graph and norm table. parameters: every norm tensor of the bundle, float32 by torch name.
    version: of the parameters, 0 = source. revision: of the device's own statistics in them, 0 = none.
    providers: ONNX Runtime execution providers in order of preference; those this device lacks are skipped.
    threads: 0 = one per core, at most 4.

    Raises
    ------
    UpdateContentError: the parameters do not fit the bundle. BundleError: not a model that ONNX Runtime can run.
    ConfigError: none of the providers exists here.
    """

    def __init__(
        self,
        bundle: Bundle,
        parameters: NormParameters,
        version: int,
        *,
        revision: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
    ) -> None:
        self.bundle = bundle
        self.version, self.revision = version, revision
        self._input, self._output = bundle.manifest.input_name, bundle.manifest.output_name
        values = _checked(bundle, parameters)
        options = session_options(threads)
        available = _available(providers)
        try:
            # on the CPU an OrtValue borrows the array's memory: both must live as long as the session
            self._kept = values, {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
            options.add_external_initializers(list(self._kept[1]), list(self._kept[1].values()))
            self._session = ort.InferenceSession(bundle.model, options, providers=available)
            named = {output.name for output in self._session.get_outputs()}
        except ORT_ERRORS as error:
            raise BundleError(
                f"expected a model that ONNX Runtime {ort.__version__} can run: {error}",
                hint="build the bundle again with 'cema bundle build', or upgrade onnxruntime on the device",
            ) from error

        self._answers = [*_ANSWERS] if named.issuperset(_ANSWERS) else None

    @property
    def fingerprint(self) -> str:
        """Of the bundle behind this session."""
        return self.bundle.manifest.fingerprint

    def logits(self, images_BHWC: Uint8Array) -> Float32Array:
        """Fitted pixels, uint8 [B, H, W, 3] -> logits, float32 [B, K]. Raises BundleError."""
        return self.run(given(self.bundle.manifest, images_BHWC))

    def predict(self, images_BHWC: Uint8Array) -> Answers:
        """What there is to say about fitted pixels, uint8 [B, H, W, 3]; by the graph, where it has these outputs.

        Raises BundleError.
        """
        if self._answers is not None:
            return Answers(*self._run(self._answers, given(self.bundle.manifest, images_BHWC)))
        probabilities_BK = softmax(self.logits(images_BHWC))
        label_B = probabilities_BK.argmax(axis=1)
        return Answers(probabilities_BK, entropy(probabilities_BK), label_B, probabilities_BK.max(axis=1))

    def run(self, images: Uint8Array | Float32Array) -> Float32Array:
        """What the graph itself takes (``BundleManifest.input_type``) -> logits, float32 [B, K]. Raises BundleError."""
        (logits_BK,) = self._run([self._output], images)
        return np.asarray(logits_BK, np.float32)

    def _run(self, outputs: list[str], images: Uint8Array | Float32Array) -> list[Any]:
        try:
            found: list[Any] = self._session.run(outputs, {self._input: images})
        except ORT_ERRORS as error:
            raise BundleError(
                f"expected a model that runs on {images.dtype} {list(images.shape)}: {error}",
                hint="check the bundle's input size",
            ) from error
        return found

    def smoke_test(self) -> None:
        """One noise picture must give finite logits, one per class. Raises BundleError, UpdateContentError."""
        recipe, classes = self.bundle.manifest.preprocess, len(self.bundle.manifest.classes)
        noise = np.random.default_rng(SMOKE_SEED).integers(0, 256, (1, *recipe.size, 3), dtype=np.uint8)
        outputs = [self._output, *(self._answers or ())]
        logits_BK, *answers = map(np.asarray, self._run(outputs, given(self.bundle.manifest, noise)))
        if logits_BK.shape != (1, classes):
            raise BundleError(f"expected logits of shape [1, {classes}], got {list(logits_BK.shape)}")
        if not np.isfinite(logits_BK).all():
            raise UpdateContentError(
                f"expected finite logits from version {self.version}, got nan or inf", version=self.version
            )
        if answers:
            _check_answers(answers, classes)


def _check_answers(answers: Sequence[NDArray[Any]], classes: int) -> None:
    expected = dict(zip(_ANSWERS, ((1, classes), (1,), (1,), (1,)), strict=True))
    found = {name: answer.shape for name, answer in zip(_ANSWERS, answers, strict=True)}
    if found != expected or answers[_ANSWERS.index(LABEL_OUTPUT)].dtype != np.int64:
        raise BundleError(f"expected a graph whose outputs have the shapes {expected}, got {found}")


def session_options(threads: int) -> ort.SessionOptions:
    """As every session of a device has them. threads: 0 = one per core, at most 4."""
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads or min(os.cpu_count() or 1, MAX_AUTO_THREADS)
    # weights come from the bundle alone: without this, a graph may name files of the folder that the agent runs in
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    # idle threads that spin would eat battery and heat the device between two pictures
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def given(manifest: BundleManifest, images_BHWC: Uint8Array) -> Uint8Array | Float32Array:
    """Fitted pixels as the bundle's graphs take them."""
    return images_BHWC if manifest.input_type == "uint8" else normalise(images_BHWC, manifest.preprocess)


def _checked(bundle: Bundle, parameters: NormParameters) -> dict[str, Float32Array]:
    """Own, contiguous float32 arrays by initializer name."""
    table = {tensor.name: tensor for tensor in bundle.manifest.norm}
    if table.keys() != parameters.keys():
        wrong = sorted(table.keys() ^ parameters.keys())
        raise UpdateContentError(f"expected the bundle's {len(table)} norm tensors, got a difference in {wrong[:3]}")
    for name, tensor in table.items():
        if parameters[name].shape != tuple(tensor.shape):
            raise UpdateContentError(f"expected {name} as {tensor.shape}, got {parameters[name].shape}", tensor=name)
    return {tensor.initializer: np.array(parameters[name], np.float32, order="C") for name, tensor in table.items()}


def _available(providers: Sequence[str]) -> list[str]:
    present = ort.get_available_providers()
    usable = [provider for provider in providers if provider in present]
    if not usable:
        raise ConfigError(
            f"expected one of the execution providers {', '.join(present)}, got {', '.join(providers)}",
            hint="set runtime.providers in device.toml",
        )
    return usable

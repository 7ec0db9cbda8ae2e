"""The foundation model as a teacher: forward by running statistics, no gradient, with whatever its norms are by now.

ONNX Runtime fuses the norms into the convolutions and needs a half to a third of torch's time; making a session for new
norm parameters costs a tenth of a second (ADR 11). Its answers are torch's to the parity of the export.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from cema.cloud.export import build_bundle, open_session
from cema.cloud.norms import read_parameters
from cema.types import NormParameters
from cema.wire.bundle import Bundle
from cema.wire.messages import Preprocess


class OnnxTeacher:
    """A torch model that answers through ONNX Runtime.

    model: with its source norms, as it came (not yet made adaptable). Exported when the first images show their size;
    what cannot be exported raises ExportError then.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._bundle: Bundle | None = None
        self._session: ort.InferenceSession | None = None
        self._parameters: NormParameters = {}

    def logits(self, images_BCHW: torch.Tensor, adapted: nn.Module) -> torch.Tensor:
        """float32 [B, K] with the norm parameters and statistics that ``adapted`` has now."""
        bundle = self._bundle = self._bundle or self._export(images_BCHW)
        parameters = read_parameters(adapted)
        if self._session is None or any((parameters[name] != self._parameters[name]).any() for name in parameters):
            self._session = open_session(bundle, parameters, threads=torch.get_num_threads())
            self._parameters = parameters
        pixels = np.ascontiguousarray(images_BCHW.numpy())
        (logits_BK,) = self._session.run([bundle.manifest.output_name], {bundle.manifest.input_name: pixels})
        return torch.from_numpy(logits_BK)

    def _export(self, images_BCHW: torch.Tensor) -> Bundle:
        height, width = images_BCHW.shape[2:]
        with torch.no_grad():
            classes = self._model.eval()(images_BCHW[:1]).shape[1]
        return build_bundle(
            self._model,
            name="teacher",
            preprocess=Preprocess(size=(height, width)),
            classes=[str(number) for number in range(classes)],
            input_type="float32",
        )

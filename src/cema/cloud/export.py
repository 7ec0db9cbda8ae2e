"""From a torch model to a bundle: the one moment at which edge and cloud are made the same.

The graph comes from ``export_graph``; here its norm tensors move to ``norm.bin``, and the result is proven:
ONNX Runtime must agree with torch on the source parameters and on perturbed ones, so that every patch is known to take
effect.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from cema.cloud.export_graph import INPUT_NAME, OPSET, OUTPUT_NAME, give_answers, take_pixels, to_graph
from cema.cloud.export_statistics import statistics_graph
from cema.cloud.norms import NormLayer, norm_layers, read_parameters, write_parameters
from cema.errors import ExportError
from cema.types import Float32Array, NormParameters, Uint8Array
from cema.wire.bundle import NORM_FILE, SHARE_INPUT, Bundle, fingerprint, measured_layers, shared_weights
from cema.wire.messages import BundleManifest, NormTensor, Preprocess
from cema.wire.preprocess import normalise

PARITY_TOLERANCE = 1e-4
"""max|dlogit| <= this * max(1, max|logit|) (design section 7)."""
PARITY_BATCHES = (1, 3)
PARITY_SEED = 0
PERTURBATION = 0.1
"""Relative size of the random change to each norm tensor in the second parity check."""
_ERROR_LOGS_ONLY = 3  # onnxruntime's severity scale


def build_bundle(
    module: nn.Module, *, name: str, preprocess: Preprocess, classes: Sequence[str], input_type: str = "uint8"
) -> Bundle:
    """Export, check and pack; ``module`` is left as it was. The same model gives the same fingerprint.

    input_type: what the graph takes, see ``BundleManifest``; float32 for accelerators that cannot cast.

    Raises
    ------
    ExportError: no norm layer to patch, a norm tensor that cannot be kept apart, logits that are not
    [B, len(classes)], or ONNX Runtime and torch that disagree.
    """
    table, norm = _norm_table(norm_layers(module), read_parameters(module))
    graph = to_graph(module, preprocess.size, [tensor.name for tensor in table])
    _check_single_use(graph, table)
    proto = ir.serde.serialize_model(graph)
    if input_type == "uint8":
        take_pixels(proto, preprocess)
    give_answers(proto, len(classes))
    inside = proto.SerializeToString()
    model = _with_external_norm(proto, table)
    statistics, shared = statistics_graph(onnx.ModelProto.FromString(inside), model, table)
    manifest = BundleManifest(
        fingerprint=fingerprint(model, norm, preprocess, classes, table, statistics), model=name, classes=list(classes),
        preprocess=preprocess, input_name=INPUT_NAME, output_name=OUTPUT_NAME, norm=table, opset=OPSET,
        input_type=input_type, statistics=msgspec.UNSET if shared is None else shared,
    )  # fmt: skip
    bundle = Bundle(manifest, model, norm, statistics)
    check_parity(module, bundle)
    _check_statistics(bundle)
    return bundle


@torch.no_grad()
def check_parity(module: nn.Module, bundle: Bundle) -> None:
    """Compare torch and ONNX Runtime on random images, with source and with perturbed norm parameters.

    Raises ExportError.
    """
    rng, recipe = np.random.default_rng(PARITY_SEED), bundle.manifest.preprocess
    source = bundle.source_parameters()
    twin = copy.deepcopy(module).cpu().float().eval()
    for what, parameters in (("source", source), ("perturbed", perturbed(source, rng))):
        write_parameters(twin, parameters)
        session = open_session(bundle, parameters)
        for batch in PARITY_BATCHES:
            pixels = rng.integers(0, 256, (batch, *recipe.size, 3), np.uint8)
            normalised = normalise(pixels, recipe)
            given = pixels if bundle.manifest.input_type == "uint8" else normalised
            _compare(
                twin(torch.from_numpy(normalised)), session, {INPUT_NAME: given}, len(bundle.manifest.classes), what
            )


def _check_statistics(bundle: Bundle) -> None:
    """A device that measures, but follows nothing of it, must answer as the model does. Raises ExportError."""
    manifest = bundle.manifest
    if not bundle.measures:
        return
    rng, recipe = np.random.default_rng(PARITY_SEED), manifest.preprocess
    parameters = perturbed(bundle.source_parameters(), rng)
    pixels = rng.integers(0, 256, (PARITY_BATCHES[-1], *recipe.size, 3), np.uint8)
    given = pixels if manifest.input_type == "uint8" else normalise(pixels, recipe)
    (expected,) = open_session(bundle, parameters).run([OUTPUT_NAME], {INPUT_NAME: given})
    norm = {tensor.initializer: parameters[tensor.name] for tensor in manifest.norm}
    share_L = np.zeros(len(measured_layers(manifest.norm)), np.float32)
    feed = {INPUT_NAME: given, SHARE_INPUT: share_L, **norm}
    _compare(torch.from_numpy(expected), _statistics_session(bundle), feed, expected.shape[1], "perturbed, measuring")


def _statistics_session(bundle: Bundle) -> ort.InferenceSession:
    options, weights = ort.SessionOptions(), shared_weights(bundle)
    options.log_severity_level = _ERROR_LOGS_ONLY
    values = [ort.OrtValue.ortvalue_from_numpy(np.array(weight)) for weight in weights.values()]
    options.add_external_initializers(list(weights), values)
    return ort.InferenceSession(bundle.statistics, options, providers=["CPUExecutionProvider"])


def _norm_table(layers: Sequence[NormLayer], parameters: NormParameters) -> tuple[list[NormTensor], bytes]:
    """The norm tensors in the model's order, one after the other in ``norm.bin``."""
    if not layers:
        raise ExportError(
            "expected at least one norm layer with parameters (BatchNorm, LayerNorm, GroupNorm), got none",
            hint="adaptation changes norm parameters only; use a model that has some",
        )
    table: list[NormTensor] = []
    chunks: list[bytes] = []
    for layer in layers:
        for role in layer.tensors():
            name = f"{layer.name}.{role}" if layer.name else role
            value = parameters[name]
            table.append(
                NormTensor(
                    name=name, initializer=name, kind=layer.kind, role=role, shape=value.shape, eps=layer.eps,
                    offset=sum(map(len, chunks)),
                )
            )  # fmt: skip
            chunks.append(value.astype("<f4").tobytes())
    return table, b"".join(chunks)


def _check_single_use(graph: ir.Model, table: Sequence[NormTensor]) -> None:
    for tensor in table:
        uses = graph.graph.initializers[tensor.initializer].uses()
        if len(uses) != 1:
            raise ExportError(
                f"expected {tensor.name} to feed one node, got {len(uses)}",
                hint="give every place in forward a norm layer of its own",
            )


def _with_external_norm(model: onnx.ModelProto, table: Sequence[NormTensor]) -> bytes:
    """model.onnx: norm tensors point into norm.bin, all else is inside."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for entry in table:
        proto = initializers[entry.initializer]
        count = int(np.prod(entry.shape, dtype=np.int64))
        if proto.data_type != onnx.TensorProto.FLOAT or tuple(proto.dims) != entry.shape:
            raise ExportError(f"expected {entry.name} as float32 {entry.shape} in the graph, got {tuple(proto.dims)}")
        proto.ClearField("raw_data")
        proto.ClearField("float_data")
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", NORM_FILE), ("offset", entry.offset), ("length", 4 * count)):
            proto.external_data.add(key=key, value=str(value))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def open_session(bundle: Bundle, parameters: Mapping[str, Float32Array], threads: int = 0) -> ort.InferenceSession:
    """The bundle's graph with these norm parameters, on the CPU. threads: 0 = one per core."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERROR_LOGS_ONLY
    options.intra_op_num_threads = threads
    values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(parameters[t.name])) for t in bundle.manifest.norm]
    options.add_external_initializers([t.initializer for t in bundle.manifest.norm], values)
    return ort.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])


def perturbed(source: NormParameters, rng: np.random.Generator) -> NormParameters:
    """Other values of the same size; variances stay positive."""
    changed = {}
    for name, value in source.items():
        noise = rng.standard_normal(value.shape, np.float32) * PERTURBATION
        scale = 1.0 if name.endswith("running_var") else max(1.0, float(np.abs(value).mean()))
        changed[name] = value * np.exp(noise) if name.endswith("running_var") else value + noise * scale
    return {name: value.astype(np.float32) for name, value in changed.items()}


def _compare(
    expected: torch.Tensor,
    session: ort.InferenceSession,
    feed: Mapping[str, Uint8Array | Float32Array],
    classes: int,
    what: str,
) -> None:
    images = feed[INPUT_NAME]
    try:
        got = session.run(None, feed)[0]
    except Exception as error:  # onnxruntime has no common base for its errors
        raise ExportError(f"the exported model does not run on a batch of {len(images)}: {error}") from error
    if got.shape != (len(images), classes):
        raise ExportError(
            f"expected logits [{len(images)}, {classes}] for {classes} classes, got {list(got.shape)}",
            hint="give as many class names as the model has outputs; forward must return logits [B, K]",
        )
    difference = float(np.abs(got - expected.numpy()).max())
    bound = PARITY_TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= bound:  # also when it is nan
        raise ExportError(
            f"expected ONNX Runtime within {bound:.2g} of torch ({what} norm parameters), got {difference:.2g}",
            hint="an operation of this model behaves differently in ONNX; does forward depend on the batch?",
            max_error=difference,
        )

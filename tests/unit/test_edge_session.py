"""A session with other norm parameters: what it computes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cema.edge.selection import entropy, softmax
from cema.edge.session import EdgeSession
from cema.errors import BundleError, ConfigError, UpdateContentError
from cema.types import NormParameters
from cema.wire.bundle import Bundle, decode_bundle


def by_hand(bundle: Bundle, norm: NormParameters, images_BCHW: np.ndarray) -> np.ndarray:
    """conv -> batch norm -> relu -> mean -> matmul, in numpy."""
    weights = {t.name: t for t in onnx.load_from_string(bundle.model).graph.initializer}
    kernel, head = numpy_helper.to_array(weights["w"]), numpy_helper.to_array(weights["fc"])
    padded = np.pad(images_BCHW.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    features = np.einsum("bchwij,ocij->bohw", windows, kernel)
    column = {role: norm[f"bn.{role}"][:, None, None] for role in ("weight", "bias", "running_mean", "running_var")}
    normed = (features - column["running_mean"]) / np.sqrt(column["running_var"] + 1e-5)
    activated = np.maximum(column["weight"] * normed + column["bias"], 0)
    return np.asarray(activated.mean(axis=(2, 3)) @ head)


def other_parameters(bundle: Bundle) -> NormParameters:
    return {name: value * np.float32(1.5) + np.float32(0.25) for name, value in bundle.source_parameters().items()}


@pytest.fixture
def images_BCHW() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)


def test_source_and_update_compute_what_numpy_computes(tiny_bundle: Bundle, images_BCHW: np.ndarray) -> None:
    outputs = []
    for version, norm in enumerate((tiny_bundle.source_parameters(), other_parameters(tiny_bundle))):
        session = EdgeSession(tiny_bundle, norm, version)
        outputs.append(session.run(images_BCHW))
        np.testing.assert_allclose(outputs[-1], by_hand(tiny_bundle, norm, images_BCHW), rtol=1e-4, atol=1e-4)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_parameters_are_copied_and_kept_alive(tiny_bundle: Bundle, images_BCHW: np.ndarray) -> None:
    norm = other_parameters(tiny_bundle)
    session = EdgeSession(tiny_bundle, norm, 1)
    before = session.run(images_BCHW)
    for value in norm.values():
        value[:] = 99
    del norm
    np.testing.assert_array_equal(session.run(images_BCHW), before)


def test_parameters_that_do_not_fit_are_refused(tiny_bundle: Bundle) -> None:
    norm = tiny_bundle.source_parameters()
    with pytest.raises(UpdateContentError, match=r"bn\.bias"):
        EdgeSession(tiny_bundle, {k: v for k, v in norm.items() if k != "bn.bias"}, 1)
    with pytest.raises(UpdateContentError, match=r"expected bn\.bias as"):
        EdgeSession(tiny_bundle, {**norm, "bn.bias": np.zeros(5, np.float32)}, 1)


def test_a_file_that_is_no_model_and_a_wrong_input_are_bundle_errors(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="ONNX Runtime"):
        EdgeSession(Bundle(tiny_bundle.manifest, b"junk", tiny_bundle.norm), tiny_bundle.source_parameters(), 0)
    session = EdgeSession(tiny_bundle, tiny_bundle.source_parameters(), 0)
    with pytest.raises(BundleError, match="check the bundle's input size"):
        session.run(np.zeros((1, 2, 8, 8), np.float32))


def test_the_smoke_test_finds_infinite_logits_and_a_wrong_number_of_classes(
    tiny_bundle: Bundle, make_tiny_bundle: Callable[[int], Bundle]
) -> None:
    norm = {**tiny_bundle.source_parameters(), "bn.weight": np.full(4, 3e38, np.float32)}
    with pytest.raises(UpdateContentError, match="finite logits"):
        EdgeSession(tiny_bundle, norm, 1).smoke_test()
    two = msgspec.structs.replace(tiny_bundle.manifest, classes=["a", "b"])
    with pytest.raises(BundleError, match=r"shape \[1, 2\]"):
        EdgeSession(Bundle(two, tiny_bundle.model, tiny_bundle.norm), tiny_bundle.source_parameters(), 0).smoke_test()


def test_an_unknown_provider_is_skipped_and_none_at_all_is_an_error(tiny_bundle: Bundle) -> None:
    norm = tiny_bundle.source_parameters()
    EdgeSession(tiny_bundle, norm, 0, providers=("NoSuchProvider", "CPUExecutionProvider"))
    with pytest.raises(ConfigError, match="NoSuchProvider"):
        EdgeSession(tiny_bundle, norm, 0, providers=("NoSuchProvider",))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_graphs_own_answers_are_those_of_its_logits(scale: float, digits_bundle: bytes) -> None:
    bundle = decode_bundle(digits_bundle)
    source = bundle.source_parameters()
    last = max(name for name in source if name.endswith(".weight"))
    session = EdgeSession(bundle, {**source, last: source[last] * np.float32(scale)}, 0)
    images = np.random.default_rng(0).integers(0, 256, (5, *bundle.manifest.preprocess.size, 3), dtype=np.uint8)
    probabilities_BK, entropy_B, label_B, confidence_B = session.predict(images)
    expected_BK = softmax(session.logits(images))
    np.testing.assert_allclose(probabilities_BK, expected_BK, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(entropy_B, entropy(expected_BK), rtol=1e-3, atol=1e-5)
    assert np.isfinite(entropy_B).all()
    assert entropy_B.shape == (5,)
    np.testing.assert_array_equal(label_B, expected_BK.argmax(axis=1))
    np.testing.assert_array_equal(confidence_B, probabilities_BK.max(axis=1))


def test_a_graph_without_answers_is_helped_out(tiny_bundle: Bundle) -> None:
    session = EdgeSession(tiny_bundle, tiny_bundle.source_parameters(), 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    probabilities_BK, entropy_B, label_B, confidence_B = session.predict(images)
    np.testing.assert_array_equal(probabilities_BK, softmax(session.logits(images)))
    np.testing.assert_array_equal(entropy_B, entropy(probabilities_BK))
    np.testing.assert_array_equal(label_B, probabilities_BK.argmax(axis=1))
    np.testing.assert_array_equal(confidence_B, probabilities_BK.max(axis=1))

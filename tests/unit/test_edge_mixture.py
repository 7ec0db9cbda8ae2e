"""How many looks alternate in a stream, and which picture has which: held against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from cema.edge.memory import STYLES, pixel_style
from cema.edge.mixture import (
    Float64Array,
    Mixture,
    MixtureSettings,
    alternates,
    best_mixture,
    in_turns,
    look_of,
    single,
)

SETTINGS = MixtureSettings()
CENTRES = np.array([[0.5, -1.7, -2.9, 0.75], [0.5, -1.8, -3.5, 0.2], [0.5, -3.5, -4.7, 0.7], [0.5, -1.6, -2.4, 1.0]])
"""About where clean pictures, blurred ones, pale ones and noisy ones are."""
SPREAD = np.array([0.12, 0.33, 0.3, 0.08])


def looks(kinds: list[int], seed: int = 0) -> Float64Array:
    return CENTRES[kinds] + SPREAD * np.random.default_rng(seed).standard_normal((len(kinds), 4))


def turns(count: int, kinds: int) -> list[int]:
    return [index % kinds for index in range(count)]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 3), st.integers(128, 256), st.integers(0, 1000))
def test_pictures_of_one_look_are_one_look(kind: int, count: int, seed: int) -> None:
    assert len(best_mixture(looks([kind] * count, seed), SETTINGS)) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 3), st.integers(128, 256), st.integers(0, 1000))
def test_looks_that_alternate_are_told_apart(kinds: int, count: int, seed: int) -> None:
    true = np.array(turns(count, kinds))
    found = best_mixture(looks(true.tolist(), seed), SETTINGS).nearest(looks(true.tolist(), seed + 1))
    right = sum(np.bincount(true[found == part]).max() for part in np.unique(found))  # a kind may have several
    assert right >= 0.9 * count


def test_a_scene_that_never_moves_is_one_look() -> None:
    still = np.repeat(CENTRES[:1], 256, axis=0)
    best = best_mixture(still, SETTINGS)
    assert len(best) == 1
    assert np.isfinite(best.evidence(still))


def test_with_one_component_at_most_looks_never_alternate() -> None:
    mixed = looks(turns(256, 4))
    assert len(best_mixture(mixed, SETTINGS)) >= 4
    assert len(best_mixture(mixed, MixtureSettings(most=1))) == 1


def test_there_are_never_more_components_than_allowed() -> None:
    assert len(best_mixture(looks(turns(256, 4)), MixtureSettings(most=3))) == 3


def test_the_same_looks_give_the_same_mixture() -> None:
    one, other = (best_mixture(looks(turns(200, 3)), SETTINGS) for _ in range(2))
    np.testing.assert_array_equal(one.mean_KL, other.mean_KL)


def test_shares_means_and_covariance_are_recovered() -> None:
    kinds = [0] * 150 + [2] * 50
    found = best_mixture(looks(kinds), MixtureSettings(most=2))
    order = np.argsort(-found.share_K)
    np.testing.assert_allclose(found.share_K[order], [0.75, 0.25], atol=0.01)
    np.testing.assert_allclose(found.mean_KL[order], CENTRES[[0, 2]], atol=0.15)
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance_LL)), SPREAD, rtol=0.25)


def test_densities_and_evidence_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(3)
    root = rng.standard_normal((4, 4))
    mixture = Mixture(np.array([0.2, 0.5, 0.3]), rng.standard_normal((3, 4)), root @ root.T + np.eye(4))
    points, inverse = rng.standard_normal((50, 4)), np.linalg.inv(mixture.covariance_LL)
    volume = np.sqrt((2 * np.pi) ** 4 * np.linalg.det(mixture.covariance_LL))
    for point, squares, logs in zip(points, mixture.distances(points), mixture.log_densities(points), strict=True):
        expected = [(point - mean) @ inverse @ (point - mean) for mean in mixture.mean_KL]
        np.testing.assert_allclose(squares, expected, rtol=1e-9)
        np.testing.assert_allclose(np.exp(logs), mixture.share_K * np.exp(-np.array(expected) / 2) / volume, rtol=1e-9)
    likelihood = np.log(np.exp(mixture.log_densities(points)).sum(axis=1)).mean()
    free = 2 + 3 * 4 - 4  # shares and means beyond those of one Gaussian
    assert mixture.evidence(points) == pytest.approx(likelihood - free * np.log(50) / 2 / 50)


@pytest.mark.parametrize("kinds", [2, 3])
def test_the_fit_is_as_good_as_that_of_a_library(kinds: int) -> None:
    points = looks(turns(256, kinds))
    ours = best_mixture(points, MixtureSettings(most=kinds))
    assert len(ours) == kinds
    theirs = GaussianMixture(len(ours), covariance_type="tied", reg_covar=0.0025, n_init=10, random_state=0).fit(points)
    parameters = (len(ours) - 1) * 5
    assert ours.evidence(points) == pytest.approx(theirs.score(points) - parameters * np.log(256) / 2 / 256, abs=0.02)
    matched = ours.nearest(theirs.means_)
    np.testing.assert_allclose(ours.mean_KL[matched], theirs.means_, atol=0.05)
    np.testing.assert_allclose(ours.covariance_LL, theirs.covariances_, atol=0.01)


def test_one_look_is_mean_and_covariance() -> None:
    points = looks([1] * 200)
    one = single(points)
    np.testing.assert_allclose(one.mean_KL[0], points.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(one.covariance_LL, np.cov(points.T, bias=True) + 0.0025 * np.eye(4), atol=1e-6)


@pytest.mark.parametrize(("block", "expected"), [(1, True), (2, True), (4, True), (24, False), (128, False)])
def test_looks_alternate_while_stretches_are_short(block: int, expected: bool) -> None:
    kinds = np.random.default_rng(0).integers(4, size=256 // block + 1).repeat(block)[:256]
    assert alternates(kinds, SETTINGS) == expected


def test_looks_that_alternated_before_the_world_changed_do_not_alternate() -> None:
    """Bright and dark clean pictures, some of them like the noisy ones, and then noisy ones alone."""
    before = np.random.default_rng(0).choice(3, size=128, p=(0.5, 0.38, 0.12))
    assert alternates(before, SETTINGS)
    assert not alternates(np.concatenate([before, np.full(128, 2)]), SETTINGS)
    kinds = np.concatenate([before, np.random.default_rng(1).choice(3, size=128)])
    assert alternates(kinds, SETTINGS), "these have changed, and go on in turns"


def test_one_look_does_not_alternate() -> None:
    assert not alternates(np.zeros(64, np.int64), SETTINGS)


@pytest.mark.parametrize(("every", "expected"), [(4, True), (8, True), (16, False), (60, False)])
def test_a_few_odd_pictures_are_no_look(every: int, expected: bool) -> None:
    assert alternates((np.arange(256) % every == 0).astype(np.int64), SETTINGS) == expected


@pytest.mark.parametrize(("every", "expected"), [(2, True), (5, True), (30, False), (50, False)])
def test_odd_pictures_do_not_make_one_look_several(every: int, expected: bool) -> None:
    """Clean pictures are no Gaussian: once far ones have paid for more components, those share the clean ones."""
    rng = np.random.default_rng(0)
    for seed in range(6):
        clean = looks([0] * 256, seed)
        clean[:, 1:3] -= rng.exponential(0.3, (256, 1))  # a tail, as pictures with little in them give
        clean[::every] = (0.0, -6.9, -6.9, 0.0)  # black
        assert (len(in_turns(clean, SETTINGS)) > 1) == expected


def test_a_look_leaves_out_colour() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    grey = images.mean(axis=3, keepdims=True).round().repeat(3, axis=3).astype(np.uint8)
    styles, grey_styles = pixel_style(images), pixel_style(grey)
    assert styles.shape[1] == STYLES
    assert np.abs(styles - grey_styles).max() > 1, "the styles know colour"
    np.testing.assert_allclose(look_of(styles), look_of(grey_styles), atol=0.02)


@pytest.mark.parametrize("before", [32, 64, 128, 224])
def test_looks_of_before_and_of_now_that_are_several_each_are_a_change_not_turns(before: int) -> None:
    """A mixture may describe one world by several components, which come in turns."""
    drawn = np.random.default_rng(0).integers(3, size=256)
    assert alternates(drawn, SETTINGS)
    assert not alternates(drawn + 3 * (np.arange(256) >= before), SETTINGS)
    odd = np.where(np.arange(256) < 10, 9, drawn)
    assert alternates(odd, SETTINGS), "a few odd ones do not decide"

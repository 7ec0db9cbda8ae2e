"""The memory of a stream: how much of each class it keeps and for how long, and what the look of a picture is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.edge.memory import PATCH_PX, QUOTA_MIN, ClassMemory, pixel_style
from cema.types import Float32Array, Uint8Array

BRIGHTNESS, CONTRAST, GRADIENT, LAPLACIAN, SHARPNESS, COLOUR = range(6)
FLOOR = 1e-3
streams = st.lists(st.integers(0, 7), min_size=1, max_size=120)


def picture(number: int) -> Uint8Array:
    return np.full((2, 2, 3), number, np.uint8)


def remember(memory: ClassMemory, labels: list[int], first: int = 0) -> None:
    """Pictures with the numbers first, first + 1, ...; the style of each is its number as well."""
    numbers = range(first, first + len(labels))
    styles = np.array([[number] * 6 for number in numbers], np.float32).reshape(-1, 6)
    memory.add([picture(number) for number in numbers], styles, labels)


def held(memory: ClassMemory) -> list[int]:
    """Numbers of the pictures, in the memory's order."""
    return [int(each[0, 0, 0]) for each in memory.pictures(memory.places)]


def plain_memory(labels: list[int], places: int, quota: int) -> list[int]:
    """Which numbers stay, by the words of the class: a list, searched again for every picture."""
    kept: list[int] = []
    for number, label in enumerate(labels):
        kept.append(number)
        own = [each for each in kept if labels[each] == label]
        if len(own) > quota:
            kept.remove(own[0])
        if len(kept) > places:
            sizes = {each: sum(labels[other] == labels[each] for other in kept) for each in kept}
            kept.remove(max(kept, key=lambda each: (sizes[each], -each)))
    return kept


@given(streams, st.integers(1, 40), st.integers(2, 12))
@settings(deadline=None, max_examples=200)
def test_a_memory_keeps_what_a_plain_list_keeps(labels: list[int], places: int, classes: int) -> None:
    memory = ClassMemory(places, classes)
    remember(memory, labels)
    assert sorted(held(memory)) == plain_memory(labels, places, max(QUOTA_MIN, round(places / classes)))


@given(streams, st.integers(1, 40), st.integers(8, 12), st.integers(1, 9))
@settings(deadline=None)
def test_neither_places_nor_a_classs_quota_are_exceeded_at_any_time(
    labels: list[int], places: int, classes: int, size: int
) -> None:
    memory = ClassMemory(places, classes)
    for start in range(0, len(labels), size):
        remember(memory, labels[start : start + size], start)
        numbers = held(memory)
        assert len(memory) == len(numbers) == len(set(numbers)) <= places
        assert start + min(size, len(labels) - start) - 1 in numbers  # the latest of all
        of_label = [[number for number in numbers if labels[number] == label] for label in range(8)]
        assert max(map(len, of_label)) <= max(QUOTA_MIN, round(places / classes))
        assert sorted(memory.counts()) == sorted(len(own) for own in of_label if own)
        for label, own in enumerate(of_label):
            shown = [n for n in range(start + size) if n < len(labels) and labels[n] == label]
            assert sorted(own) == shown[len(shown) - len(own) :]


@given(streams)
@settings(deadline=None)
def test_pictures_come_in_rounds_of_the_latest_of_each_class(labels: list[int]) -> None:
    memory = ClassMemory(24, 8)
    remember(memory, labels)
    order = held(memory)
    by_label = {label: [n for n in order if labels[n] == label] for label in set(labels)}
    assert all(own == sorted(own, reverse=True) for own in by_label.values())
    ranks = [by_label[labels[number]].index(number) for number in order]
    assert ranks == sorted(ranks)


@given(streams, st.integers(1, 10))
@settings(deadline=None)
def test_fewer_pictures_are_the_first_of_these_or_of_the_classes_seen_last(labels: list[int], most: int) -> None:
    memory = ClassMemory(24, 8)
    remember(memory, labels)
    latest = {labels[number]: number for number in sorted(held(memory))}
    fewer = [int(each[0, 0, 0]) for each in memory.pictures(most)]
    assert fewer == (sorted(latest.values(), reverse=True) if len(latest) > most else held(memory))[:most]


def test_the_quota_is_an_even_share_but_never_tiny() -> None:
    for places, classes, quota in ((20, 2, 10), (30, 4, 8), (96, 1000, QUOTA_MIN)):
        memory = ClassMemory(places, classes)
        remember(memory, [0] * 50)
        assert held(memory) == list(range(49, 49 - quota, -1))


def test_a_full_memory_makes_room_in_its_largest_class() -> None:
    memory = ClassMemory(6, 2)
    remember(memory, [0, 0, 0, 0, 1, 1, 2])
    assert sorted(held(memory)) == [1, 2, 3, 4, 5, 6]
    remember(memory, [3], 7)
    assert sorted(held(memory)) == [2, 3, 4, 5, 6, 7]
    remember(memory, [4], 8)  # classes 0 and 1 have two each: the older picture goes
    assert sorted(held(memory)) == [3, 4, 5, 6, 7, 8]


def test_a_memory_with_more_classes_than_places_keeps_the_latest() -> None:
    memory = ClassMemory(3, 8)
    remember(memory, [0, 1, 2, 3, 4])
    assert sorted(held(memory)) == [2, 3, 4]
    assert memory.counts().tolist() == [1, 1, 1]


def test_what_is_kept_is_a_copy() -> None:
    memory = ClassMemory(4, 2)
    batch_BHWC = np.full((2, 2, 2, 3), 7, np.uint8)
    memory.add(list(batch_BHWC), np.zeros((2, 6), np.float32), [0, 1])
    batch_BHWC[:] = 200
    memory.pictures(memory.places)[:] = 100
    assert held(memory) == [7, 7]


def test_styles_are_those_of_the_pictures_that_stay() -> None:
    memory = ClassMemory(8, 2)
    remember(memory, [0, 0, 0, 0, 0, 1, 0])
    assert memory.styles().shape == (5, 6)
    assert sorted(memory.styles()[:, 0]) == sorted(held(memory)) == [2, 3, 4, 5, 6]


def test_the_latest_pictures_can_be_dropped_and_their_places_filled_again() -> None:
    memory = ClassMemory(8, 2)
    remember(memory, [0, 1, 1, 0, 1])
    memory.drop_latest(2)
    assert sorted(held(memory)) == [0, 1, 2]
    assert memory.counts().tolist() == [1, 2]
    remember(memory, [1, 0, 1, 1], 50)
    assert sorted(held(memory)) == [0, 2, 50, 51, 52, 53]
    memory.drop_latest(99)
    assert len(memory) == 0
    assert memory.counts().size == 0


def test_thinned_it_keeps_the_latest_of_each_class() -> None:
    memory = ClassMemory(12, 3)
    remember(memory, [0, 0, 0, 0, 1, 1, 2])
    memory.thin(5)
    assert sorted(held(memory)) == [2, 3, 4, 5, 6]
    memory.thin(5)
    assert len(memory) == 5


def test_its_size_is_that_of_the_pictures_that_it_holds() -> None:
    memory = ClassMemory(4, 2)
    assert memory.size_bytes == 0
    memory.add([np.zeros((5, 7, 3), np.uint8)] * 9, np.zeros((9, 6), np.float32), [0] * 9)
    assert memory.size_bytes == len(memory) * 5 * 7 * 3 == 4 * 105


def plain_style(image: Uint8Array) -> list[float]:
    """Of a picture of at least 3 x 3 px that is no larger than the middle, one pixel at a time."""
    pixels = image.astype(np.float64) / 255
    grey = pixels.mean(axis=2)
    rows, columns = range(grey.shape[0]), range(grey.shape[1])
    across = [abs(grey[y, x + 1] - grey[y, x]) for y in rows for x in columns[:-1]]
    down = [abs(grey[y + 1, x] - grey[y, x]) for y in rows[:-1] for x in columns]
    second = [
        abs(4 * grey[y, x] - grey[y - 1, x] - grey[y + 1, x] - grey[y, x - 1] - grey[y, x + 1])
        for y, x in itertools.product(rows[1:-1], columns[1:-1])
    ]
    colour = [np.std(pixels[y, x]) for y, x in itertools.product(rows, columns)]
    gradient, laplacian = (np.mean(across) + np.mean(down)) / 2 + FLOOR, np.mean(second) + FLOOR
    logs = [np.std(grey) + FLOOR, gradient, laplacian, laplacian / gradient, np.mean(colour) + FLOOR]
    return [float(grey.mean()), *np.log(logs)]


def test_a_style_is_that_of_a_plain_loop() -> None:
    images_BHWC = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    style_BS = pixel_style(images_BHWC)
    assert style_BS.dtype == np.float32
    np.testing.assert_allclose(style_BS, [plain_style(image) for image in images_BHWC], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0, 51, 255])
def test_a_constant_picture_has_brightness_and_nothing_else(value: int) -> None:
    (style_S,) = pixel_style(np.full((1, 9, 9, 3), value, np.uint8))
    nothing = np.log(FLOOR)
    np.testing.assert_allclose(style_S, [value / 255, nothing, nothing, nothing, 0, nothing], atol=1e-3)


def ramp(size: int) -> Uint8Array:
    """Grey, and as smooth as a picture may be."""
    values = np.add.outer(np.arange(size), np.arange(size)).astype(np.uint8) + 60
    return np.repeat(values[None, :, :, None], 3, axis=3)


def test_noise_raises_the_laplacian_above_the_gradient() -> None:
    smooth = ramp(32)
    noisy = smooth + np.random.default_rng(0).integers(0, 20, smooth.shape[:3], dtype=np.uint8)[..., None]
    before, after = pixel_style(np.concatenate([smooth, noisy]))
    assert after[LAPLACIAN] > before[LAPLACIAN] + 3
    assert after[SHARPNESS] > before[SHARPNESS] + 1
    assert abs(after[COLOUR] - before[COLOUR]) < 0.01  # the noise is grey


def test_light_contrast_and_colour_show_each_in_a_number_of_its_own() -> None:
    plain = ramp(16)
    lighter = plain + np.uint8(100)
    stretched = (plain - np.uint8(60)) * np.uint8(4) + np.uint8(15)
    tinted = plain + np.array([20, 0, 0], np.uint8)
    base, light, contrast, colour = pixel_style(np.concatenate([plain, lighter, stretched, tinted]))
    assert light[BRIGHTNESS] - base[BRIGHTNESS] == pytest.approx(100 / 255, abs=1e-4)
    np.testing.assert_allclose(light[1:], base[1:], atol=1e-2)
    assert contrast[CONTRAST] - base[CONTRAST] == pytest.approx(np.log(4), abs=0.1)
    assert contrast[GRADIENT] > base[GRADIENT] + 1
    assert colour[COLOUR] > base[COLOUR] + 3


def test_only_the_middle_of_a_large_picture_counts() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 101, 90, 3), dtype=np.uint8)
    top, left = (101 - PATCH_PX) // 2, (90 - PATCH_PX) // 2
    middle = (slice(None), slice(top, top + PATCH_PX), slice(left, left + PATCH_PX))
    outside = rng.integers(0, 256, image.shape, dtype=np.uint8)
    outside[middle] = image[middle]
    np.testing.assert_array_equal(pixel_style(outside), pixel_style(image))
    np.testing.assert_array_equal(pixel_style(image), pixel_style(image[middle]))
    for y, x in ((top, left), (top + PATCH_PX - 1, left + PATCH_PX - 1)):
        inside = image.copy()
        inside[0, y, x] ^= 255
        assert (pixel_style(inside) != pixel_style(image)).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (3, 2), (1, 80), (3, 3)])
def test_tiny_pictures_give_finite_numbers(shape: tuple[int, int]) -> None:
    style_BS: Float32Array = pixel_style(np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8))
    assert style_BS.shape == (2, 6)
    assert np.isfinite(style_BS).all()


def test_a_picture_looks_the_same_alone_and_among_others() -> None:
    images_BHWC = np.random.default_rng(0).integers(0, 256, (3, 12, 9, 3), dtype=np.uint8)
    together = pixel_style(images_BHWC)
    alone = np.concatenate([pixel_style(images_BHWC[index : index + 1]) for index in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert pixel_style(images_BHWC[:0]).shape == (0, 6)

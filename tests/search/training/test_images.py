"""Epochs: every image once, each process its part, shifts and mirrors as asked."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.evaluators.data import Augmentation
from trimtab.search.training.images import Epoch


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((40, 2, 6, 6)).astype(np.float32)


def test_every_image_comes_once_in_an_order_of_the_seed_s(images: np.ndarray) -> None:
    orders = [
        np.concatenate([batch.indices for batch in Epoch(images, Augmentation(), seed, number).batches(8)])
        for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    for order in orders:
        assert sorted(order) == list(range(40))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()
    assert (orders[0] != orders[3]).any()


def test_parts_are_disjoint_and_make_up_the_batch(images: np.ndarray) -> None:
    epoch = Epoch(images, Augmentation(1, mirror=True), 0, 0)
    whole = list(epoch.batches(8))
    parts = [list(epoch.batches(8, part, 3)) for part in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(np.concatenate([share.indices for share in shares])) == sorted(batch.indices)
        places = {index: place for place, index in enumerate(batch.indices)}
        for share in shares:
            for x, index in zip(share.x, share.indices, strict=True):
                assert (x == batch.x[places[index]]).all()


def test_an_epoch_is_gone_on_with_from_any_batch(images: np.ndarray) -> None:
    epoch = Epoch(images, Augmentation(2, mirror=True), 3, 5)
    whole = list(epoch.batches(8))
    for batch, again in zip(whole[3:], epoch.batches(8, first=3), strict=True):
        assert (batch.x == again.x).all()


def test_without_variation_images_are_as_they_are(images: np.ndarray) -> None:
    for batch in Epoch(images, Augmentation(), 0, 0).batches(8):
        np.testing.assert_array_equal(batch.x.numpy(), images[batch.indices])


def test_images_are_shifted_by_whole_pixels_with_a_black_edge(images: np.ndarray) -> None:
    black = images.min((0, 2, 3))
    padded = np.empty((40, 2, 10, 10), np.float32)
    padded[:] = black[:, None, None]
    padded[:, :, 2:8, 2:8] = images
    shifts = set()
    for batch in Epoch(images, Augmentation(2), 0, 0).batches(8):
        for x, index in zip(batch.x.numpy(), batch.indices, strict=True):
            fits = [
                (row, column)
                for row in range(5)
                for column in range(5)
                if (padded[index, :, row : row + 6, column : column + 6] == x).all()
            ]
            assert len(fits) == 1
            shifts.add(fits[0])
    assert len(shifts) > 10


def test_half_are_mirrored_and_then_the_other_half(images: np.ndarray) -> None:
    mirrored = []
    for number in (0, 1):
        found = np.zeros(40, bool)
        for batch in Epoch(images, Augmentation(mirror=True), 0, number).batches(8):
            for x, index in zip(batch.x.numpy(), batch.indices, strict=True):
                found[index] = (x == images[index, :, :, ::-1]).all()
                assert found[index] or (x == images[index]).all()
        mirrored.append(found)
    assert (mirrored[0] != mirrored[1]).all()
    assert 10 < mirrored[0].sum() < 30


def test_vectors_are_taken_as_they_are(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((20, 7)).astype(np.float32)
    for batch in Epoch(vectors, Augmentation(2, mirror=True), 0, 0).batches(5):
        np.testing.assert_array_equal(batch.x.numpy(), vectors[batch.indices])

"""The embedded scenes: reproducible, hard enough, and with the structure that they promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from auxmae.data.synthetic import CHANNEL_NAMES, CLASS_NAMES, RESOLUTION, WAVELENGTHS, generate


def test_shapes_types_and_range() -> None:
    images, labels = generate(40, size=32)
    assert images.shape == (40, 13, 32, 32)
    assert images.dtype == np.uint16
    assert labels.shape == (40,)
    assert labels.dtype == np.int64
    assert images.min() >= 1
    assert images.max() < 20_000
    assert len(CHANNEL_NAMES) == len(WAVELENGTHS) == len(RESOLUTION) == 13
    assert set(np.unique(generate(400, size=8)[1])) == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize(("few", "many"), [(0, 3), (5, 10), (16, 17), (23, 50)])
def test_a_scene_does_not_depend_on_how_many_are_drawn(few: int, many: int) -> None:
    images, labels = generate(few, size=24, seed=3)
    more_images, more_labels = generate(many, size=24, seed=3)
    np.testing.assert_array_equal(images, more_images[:few])
    np.testing.assert_array_equal(labels, more_labels[:few])


def test_the_seed_decides() -> None:
    first, again, other = (generate(4, size=16, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


@pytest.mark.parametrize("size", [1, 5, 13, 50])
def test_any_size(size: int) -> None:
    assert generate(17, size=size)[0].shape == (17, 13, size, size)


@pytest.mark.parametrize("factor", [2, 6])
def test_coarse_bands_vary_less_inside_their_own_pixels(factor: int) -> None:
    """Only noise is left inside a coarse pixel; the fine bands vary there with the ground."""
    images = generate(64, size=60, seed=5)[0].astype(np.float64)
    squares = images.reshape(64, 13, 60 // factor, factor, 60 // factor, factor)
    within = squares.std((3, 5)).mean((2, 3)) / images.mean((2, 3))
    # Band 10 is left out: so dark that the noise is all there is.
    coarse = [band for band, value in enumerate(RESOLUTION) if value == factor and CHANNEL_NAMES[band] != "B10"]
    fine = [band for band, value in enumerate(RESOLUTION) if value == 1]
    assert within[:, coarse].mean() < 0.4 * within[:, fine].mean()


def test_bands_are_related_and_edges_are_sharp() -> None:
    images = generate(64, seed=6)[0].astype(np.float64)
    red_edge, infrared = images[:, 6], images[:, 7]
    assert np.median([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(red_edge, infrared, strict=True)]) > 0.8
    # A smooth field's steps are alike; at edges they are many times the typical step.
    steps = np.abs(np.diff(infrared, axis=-1))
    assert np.median(np.quantile(steps, 0.98, axis=(1, 2)) / np.median(steps, axis=(1, 2))) > 5


def test_channel_means_do_not_separate_the_classes() -> None:
    images, labels = generate(1600, size=32, seed=7)
    means = images.mean((2, 3))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(means[:1000], labels[:1000])
    accuracy = probe.score(means[1000:], labels[1000:])
    assert 0.2 < accuracy < 0.85

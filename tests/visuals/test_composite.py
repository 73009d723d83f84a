"""Which channels become colours, and how they are stretched."""

from __future__ import annotations

import numpy as np
import pytest

from auxmae.visuals.composite import choose_composite, stretch, stretch_limits


def _choose(names, wavelengths=None, seed=0):  # type: ignore[no-untyped-def]
    image = np.random.default_rng(seed).random((2, len(names), 6, 5)).astype(np.float32)
    return choose_composite(names, wavelengths, image, np.ones(image.shape, bool)), image


def test_named_bands_come_first() -> None:
    # The wavelengths would choose other channels.
    composite, image = _choose(["B02", "B08", "B03", "B04"], [665.0, 560.0, 490.0, 842.0])
    np.testing.assert_allclose(composite.apply(image[0]), image[0][[3, 2, 0]].transpose(1, 2, 0))
    assert "B04" in composite.description
    assert "blue" in _choose(["Blue", "Green", "Red"])[0].description


def test_then_the_nearest_wavelengths() -> None:
    composite, image = _choose(["a", "b", "c", "d"], [842.0, 480.0, 650.0, 570.0])
    np.testing.assert_allclose(composite.apply(image[0]), image[0][[2, 3, 1]].transpose(1, 2, 0))
    assert composite.description == "c, d, b (nearest to 665, 560, 490 nm)"


@pytest.mark.parametrize("wavelengths", [None, [900.0, 1600.0, 2200.0, 2300.0], [500.0, 900.0, 1600.0, 2200.0]])
def test_else_principal_components(wavelengths: list[float] | None) -> None:
    composite, image = _choose(list("abcd"), wavelengths)
    assert "principal components" in composite.description
    np.testing.assert_allclose(composite.weights @ composite.weights.T, np.eye(3), atol=1e-9)
    # Independent reference: the singular vectors of the centred pixels, up to sign.
    pixels = image.transpose(0, 2, 3, 1).reshape(-1, 4).astype(np.float64)
    expected = np.linalg.svd(pixels - pixels.mean(0))[2][:3]
    np.testing.assert_allclose(np.abs(np.sum(expected * composite.weights, 1)), 1, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_few_channels_are_grey(count: int) -> None:
    composite, image = _choose(["p", "q"][:count])
    picture = composite.apply(image[0])
    assert (picture == image[0, 0][..., None]).all()
    assert "grey" in composite.description


def test_nothing_valid_is_no_fault() -> None:
    image = np.zeros((1, 4, 3, 3), np.float32)
    composite = choose_composite(list("abcd"), None, image, np.zeros(image.shape, bool))
    limits = stretch_limits(composite.apply(image[0]), np.zeros((3, 3), bool))
    assert np.isfinite(stretch(composite.apply(image[0]), limits)).all()


def test_stretch_uses_valid_pixels_only() -> None:
    picture = np.linspace(0, 1, 300).reshape(10, 10, 3)
    valid = np.ones((10, 10), bool)
    expected = stretch_limits(picture, valid)
    spoiled = np.concatenate([picture, np.full((3, 10, 3), 1e9)])
    limits = stretch_limits(spoiled, np.concatenate([valid, np.zeros((3, 10), bool)]))
    np.testing.assert_allclose(limits, expected)
    stretched = stretch(picture, limits)
    assert stretched.min() == 0
    assert stretched.max() == 1

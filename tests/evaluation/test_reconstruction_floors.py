"""The floors against naive computations; hidden pixels are never read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import griddata
from torch import Tensor

from auxmae.evaluation.reconstruction_floors import interpolation_floor, mean_floor

FLOORS = (mean_floor, interpolation_floor)


def patch_mask(generator: torch.Generator, batch: int, channels: int, side: int, patch: int, ratio: float = 0.75) -> Tensor:
    """(B, C, side, side) bool, whole patches hidden, at least one visible."""
    n = side // patch
    order = torch.rand(batch, channels, n * n, generator=generator).argsort(-1).argsort(-1)
    hidden = order >= max(1, n * n // 4)
    return hidden.view(batch, channels, n, n).repeat_interleave(patch, 2).repeat_interleave(patch, 3)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_mean_floor_is_the_mean_of_visible_valid_pixels(seed: int, height: int, width: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, channels, height, width, generator=generator)
    hidden = torch.rand(image.shape, generator=generator) > 0.4
    valid = torch.rand(image.shape, generator=generator) > 0.2
    known = (valid & ~hidden).numpy()
    prediction = mean_floor(image, hidden, valid).numpy()
    values = image.numpy().astype(np.float64)
    for b in range(2):
        whole = values[b][known[b]]
        for c in range(channels):
            own = values[b, c][known[b, c]]
            expected = own.mean() if own.size else whole.mean() if whole.size else 0.0
            np.testing.assert_allclose(prediction[b, c], expected, atol=1e-6)


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 2, 13, 7), (1, 1, 1, 9), (1, 2, 1, 1), (0, 3, 8, 8)])
def test_hidden_and_invalid_pixels_are_never_read(floor, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(shape, generator=generator)
    hidden = torch.rand(shape, generator=generator) > 0.3
    valid = torch.rand(shape, generator=generator) > 0.1
    poisoned = image.masked_fill(hidden | ~valid, float("nan"))
    prediction = floor(poisoned, hidden, valid)
    assert prediction.shape == image.shape
    assert prediction.isfinite().all()
    torch.testing.assert_close(prediction, floor(image, hidden, valid), rtol=0, atol=0)


@pytest.mark.parametrize("floor", FLOORS)
def test_valid_may_be_left_out(floor) -> None:
    image = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    hidden = patch_mask(torch.Generator().manual_seed(3), 1, 2, 8, 2)
    torch.testing.assert_close(floor(image, hidden), floor(image, hidden, torch.ones_like(hidden)))


@pytest.mark.parametrize("floor", FLOORS)
def test_strides_do_not_matter(floor) -> None:
    image = torch.randn(8, 9, 3, 2, generator=torch.Generator().manual_seed(4)).permute(3, 2, 0, 1)
    hidden = torch.rand(image.shape, generator=torch.Generator().manual_seed(5)) > 0.5
    torch.testing.assert_close(floor(image, hidden), floor(image.contiguous(), hidden))


@pytest.mark.parametrize("floor", FLOORS)
def test_a_mask_of_another_shape_is_refused(floor) -> None:
    with pytest.raises(ValueError, match="shape"):
        floor(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool), None)


def test_interpolation_keeps_visible_pixels_and_constants() -> None:
    generator = torch.Generator().manual_seed(6)
    image = torch.randn(2, 3, 24, 24, generator=generator)
    hidden = patch_mask(generator, 2, 3, 24, 8)
    prediction = interpolation_floor(image, hidden, None)
    torch.testing.assert_close(prediction[~hidden], image[~hidden], rtol=0, atol=0)
    flat = torch.full_like(image, 0.37)
    torch.testing.assert_close(interpolation_floor(flat, hidden, None), flat)


def test_interpolation_uses_the_same_channel_only() -> None:
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(1, 2, 16, 16, generator=generator)
    hidden = patch_mask(generator, 1, 2, 16, 4)
    other = image.clone()
    other[:, 1] += 5
    torch.testing.assert_close(interpolation_floor(image, hidden)[:, 0], interpolation_floor(other, hidden)[:, 0])


def test_a_wholly_hidden_channel_takes_the_mean_of_the_others() -> None:
    generator = torch.Generator().manual_seed(8)
    image = torch.randn(1, 3, 8, 8, generator=generator)
    hidden = patch_mask(generator, 1, 3, 8, 2)
    hidden[:, 1] = True
    prediction = interpolation_floor(image, hidden)
    torch.testing.assert_close(prediction[:, 1], (prediction[:, 0] + prediction[:, 2]) / 2)
    everything = torch.ones_like(hidden)
    assert (interpolation_floor(image, everything) == 0).all()
    assert (mean_floor(image, everything) == 0).all()


def smooth_field(generator: torch.Generator, channels: int, side: int) -> Tensor:
    coarse = torch.randn(1, channels, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic", align_corners=True)


def error_of_others(image: Tensor, hidden: Tensor) -> dict[str, float]:
    """L1 at the hidden pixels of nearest and piecewise linear interpolation (nearest outside the hull) by scipy."""
    height, width = image.shape[2:]
    points = np.argwhere(np.ones((height, width)))
    sums = {"nearest": 0.0, "linear": 0.0}
    for b in range(image.shape[0]):
        for c in range(image.shape[1]):
            h, v = hidden[b, c].numpy().ravel(), image[b, c].numpy().ravel()
            nearest = griddata(points[~h], v[~h], points[h], "nearest")
            linear = griddata(points[~h], v[~h], points[h], "linear")
            linear = np.where(np.isnan(linear), nearest, linear)
            sums["nearest"] += np.abs(nearest - v[h]).sum()
            sums["linear"] += np.abs(linear - v[h]).sum()
    return {name: value / int(hidden.sum()) for name, value in sums.items()}


def test_interpolation_beats_the_mean_and_simpler_interpolants_on_smooth_fields() -> None:
    generator = torch.Generator().manual_seed(9)
    image = smooth_field(generator, 6, 32)
    hidden = patch_mask(generator, 1, 6, 32, 4)
    error = float((interpolation_floor(image, hidden) - image).abs()[hidden].mean())
    others = error_of_others(image, hidden)
    assert error < others["linear"]
    assert error < others["nearest"]
    assert error < 0.7 * float((mean_floor(image, hidden) - image).abs()[hidden].mean())


def test_interpolation_is_the_strongest_on_sentinel2(shared_data: Path) -> None:
    import rasterio

    with rasterio.open(shared_data / "sentinel2" / "slovenia_2015-07-11.tif") as file:
        pixels = file.read()[::3, :64, :64].astype(np.float32)
    low, high = np.percentile(pixels, [1, 99], axis=(1, 2), keepdims=True)
    image = torch.from_numpy((pixels - low) / (high - low))[None].float()
    for patch in (8, 16):
        hidden = patch_mask(torch.Generator().manual_seed(10), 1, image.shape[1], 64, patch)
        error = float((interpolation_floor(image, hidden) - image).abs()[hidden].mean())
        others = error_of_others(image, hidden)
        assert error < min(others.values())

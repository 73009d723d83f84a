"""SSIM agrees with the published formula, pixel by pixel, and never looks at what is not valid."""

from __future__ import annotations

import numpy as np
import torch

from auxmae.evaluation.similarity import structural_similarity


def by_definition(x: np.ndarray, y: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """SSIM of (h, w) images in float64, one window after the other, in two passes."""
    result = np.zeros(x.shape)
    rows, columns = np.indices(x.shape)
    for row, column in zip(*np.nonzero(valid), strict=True):
        near = valid & (abs(rows - row) <= 5) & (abs(columns - column) <= 5)
        weight = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 1.5**2))[near]
        weight /= weight.sum()
        a, b = x[near], y[near]
        mean_a, mean_b = weight @ a, weight @ b
        var_a, var_b = weight @ (a - mean_a) ** 2, weight @ (b - mean_b) ** 2
        both = weight @ ((a - mean_a) * (b - mean_b))
        light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        result[row, column] = light * (2 * both + 9e-4) / (var_a + var_b + 9e-4)
    return result


def test_every_pixel_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    # A large common level, as of a bright channel: its square must not drown the variance.
    x = random.normal(size=(2, 2, 17, 13)) * 0.2 + np.array([0.4, 9.0])[None, :, None, None]
    y = x + random.normal(size=x.shape) * 0.1
    valid = random.random(x.shape) > 0.2
    x[~valid], y[~valid] = np.nan, np.inf
    found = structural_similarity(torch.tensor(x).float(), torch.tensor(y).float(), torch.tensor(valid))
    for b, c in np.ndindex(2, 2):
        np.testing.assert_allclose(found[b, c].numpy(), by_definition(x[b, c], y[b, c], valid[b, c]), atol=2e-4)


def test_an_image_is_like_itself_and_a_flat_one_has_no_structure() -> None:
    x = torch.rand(1, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(structural_similarity(x, x, valid), torch.ones_like(x))
    assert structural_similarity(x, torch.full_like(x, float(x.mean())), valid).mean() < 0.2
    assert not structural_similarity(x, x, ~valid).any()

"""The floors' features against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from auxmae.data.loading import Batch
from auxmae.evaluation import feature_floors
from auxmae.evaluation.feature_floors import (
    convolution_extractor,
    floor_extractors,
    pca_extractor,
    raw_extractor,
    relations_extractor,
    sample_patches,
    spectrum_extractor,
)


def make(count: int = 6, height: int = 12, width: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, height, width, generator=generator)
    valid = torch.rand(image.shape, generator=generator) > 0.1
    return Batch(image.masked_fill(~valid, float("nan")), valid, torch.zeros(count, dtype=torch.int64))


def test_raw_pixels_spectra_and_patches_are_what_they_are_called() -> None:
    batch = make()
    filled = batch.image.nan_to_num(0.0).numpy()
    np.testing.assert_array_equal(raw_extractor()(batch).numpy(), filled.reshape(6, -1))
    patches = raw_extractor(4)(batch).numpy()
    assert patches.shape == (6, 6, 48)
    np.testing.assert_array_equal(patches[2, 3], filled[2, :, 4:8, 4:8].reshape(-1))
    # Single pixels have their neighbourhood beside their spectrum, and so have patches of two.
    padded = np.pad(filled, ((0, 0), (0, 0), (1, 1), (1, 1)))
    around = raw_extractor(1)(batch).numpy()
    assert around.shape == (6, 96, 27)
    np.testing.assert_array_equal(around[2, 5 * 8 + 7], padded[2, :, 5:8, 7:10].reshape(-1))
    odd = raw_extractor(2)(make(height=11, width=7)).numpy()
    padded = np.pad(make(height=11, width=7).image.nan_to_num(0).numpy(), ((0, 0), (0, 0), (1, 2), (1, 2)))
    assert odd.shape == (6, 24, 27)
    np.testing.assert_array_equal(odd[1, 5 * 4 + 3], padded[1, :, 11:14, 7:10].reshape(-1))
    np.testing.assert_array_equal(
        spectrum_extractor(3)(make(width=9))[1, 4].numpy(), make(width=9).image.nan_to_num(0)[1, :, 4, 4]
    )
    large = make(1, 120, 100)
    assert raw_extractor()(large).shape[1] <= 16384


def test_pca_is_scikit_learns_and_pooled_by_mean_and_deviation() -> None:
    batch = make()
    patches = raw_extractor(4)(batch).flatten(0, 1).numpy()
    extract = pca_extractor(patches, patch_size=4, components=5, dense=True)
    expected = PCA(5).fit_transform(patches).reshape(6, 6, 5)
    found = extract(batch).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    pooled = pca_extractor(patches, patch_size=4, components=5, dense=False)(batch).numpy()
    np.testing.assert_allclose(pooled, np.concatenate([found.mean(1), found.std(1)], 1), atol=1e-5)


def test_pca_of_thousands_of_features_needs_no_covariance_of_all() -> None:
    # 300 bands in patches of 8 px; seven directions of falling variance, and a little noise.
    random = np.random.default_rng(2)
    width = 300 * 64
    patches = random.normal(size=(90, 7)) * 2.0 ** -np.arange(7) @ random.normal(size=(7, width))
    patches = (patches + 1e-3 * random.normal(size=patches.shape)).astype(np.float32)
    image = torch.from_numpy(patches[:9].reshape(9, 300, 8, 8))
    batch = Batch(image, torch.ones_like(image, dtype=torch.bool), torch.zeros(9))
    found = pca_extractor(patches, patch_size=8, components=7, dense=True)(batch)[:, 0].numpy()
    centred = patches.astype(np.float64) - patches.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:7]
    np.testing.assert_allclose(np.abs(found), np.abs(centred[:9] @ axes.T), rtol=1e-2, atol=0.05)


def test_random_convolutions_answer_to_whitened_patches() -> None:
    random = np.random.default_rng(1)
    mixing = random.normal(size=(27, 27))
    patches = (random.normal(size=(4000, 27)) @ mixing + 3).astype(np.float32)
    extract = convolution_extractor(patches, 3, patch_size=None, seed=0)
    # An image made of one such patch: the response at its centre, before rectification, has variance 1 over patches.
    images = torch.from_numpy(patches[:500].reshape(500, 3, 3, 3))
    batch = Batch(images, torch.ones_like(images, dtype=torch.bool), torch.zeros(500))
    centre = convolution_extractor(patches, 3, patch_size=1, seed=0)(batch)[:, 4]
    assert centre.shape == (500, 512)
    # E[max(z − 1, 0)] of a standard normal is 0.0833.
    assert float(centre.mean()) == pytest.approx(0.0833, abs=0.02)
    assert extract(batch).shape == (500, 512)
    torch.testing.assert_close(extract(batch), convolution_extractor(patches, 3, patch_size=None, seed=0)(batch))


@pytest.mark.parametrize("dense", [False, True])
def test_all_floors_have_the_shapes_of_the_encoder_and_never_read_invalid_pixels(dense: bool) -> None:
    batch = make(height=10, width=7)
    floors = floor_extractors([batch], channels=3, patch_size=4, components=6, dense=dense, seed=0)
    assert len(floors) == 5
    for extract in floors.values():
        features = extract(batch)
        assert features.isfinite().all()
        assert features.shape[:-1] == ((6, 6) if dense else (6,))
    tiny = make(2, 1, 2)
    assert sample_patches([tiny], [3], seed=0)[3].shape == (16, 27)


@pytest.mark.parametrize("channels", [1, 3, 40])
def test_relations_are_those_of_numpy_over_valid_pixels(channels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, channels, 9, 7, generator=generator) * 4 + 2
    image[1, 0] = 5.0  # constant
    valid = torch.rand(image.shape, generator=generator) > 0.2
    valid[2, 0] = False
    found = relations_extractor()(Batch(image.masked_fill(~valid, torch.nan), valid, torch.zeros(3))).double().numpy()
    pairs = (
        [(a, b) for a in range(channels) for b in range(a + 1, channels)]
        if channels <= 32
        else [(a, a + 1) for a in range(channels - 1)]
    )
    for b in range(3):
        x, v = image[b].double().numpy(), valid[b].numpy()
        mean = [x[c][v[c]].mean() if v[c].any() else 0.0 for c in range(channels)]
        deviation = [x[c][v[c]].std() if v[c].any() else 0.0 for c in range(channels)]
        centred = [np.where(v[c], x[c] - mean[c], 0.0) for c in range(channels)]
        size = [np.sqrt((one**2).sum()) for one in centred]
        related = [
            (centred[i] * centred[j]).sum() / (size[i] * size[j]) if min(size[i], size[j]) > 1e-9 else 0.0 for i, j in pairs
        ]
        expected = [*mean, *deviation, *related]
        for axis in (0, 1):
            for c in range(channels):
                change, both = np.diff(x[c], axis=axis), np.diff(v[c].astype(int), axis=axis) == 0
                both &= v[c][1:] if axis == 0 else v[c][:, 1:]
                expected.append(np.sqrt((change[both] ** 2).mean()) if both.any() else 0.0)
        np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_size", [None, 4])
def test_random_convolutions_of_a_large_batch_are_made_piece_by_piece(
    patch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, patches = make(9), torch.randn(300, 27).numpy()
    extract = convolution_extractor(patches, 3, patch_size=patch_size, seed=0)
    whole = extract(batch)
    monkeypatch.setattr(feature_floors, "_RESPONSES", 4 * 512 * 12 * 8)
    torch.testing.assert_close(extract(batch), whole, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(feature_floors, "_RESPONSES", 1)
    torch.testing.assert_close(extract(batch), whole, rtol=1e-4, atol=1e-6)


def test_floors_of_an_image_are_of_its_valid_pixels_alone() -> None:
    """A small image in a large window, and one with a corner of no data: what is beyond weighs nothing."""
    image = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    valid = torch.zeros_like(image, dtype=torch.bool)
    valid[0, :, :8, :12] = True
    valid[1, :, 4:, :] = True
    valid[1, 1, 4:8] = False  # missing in one channel alone
    batch = Batch(image.masked_fill(~valid, 0.0), valid, torch.zeros(2))
    for patches in sample_patches([batch], [3, 4], seed=0).values():
        assert len(patches) < 16
        assert np.abs(patches).max(axis=1).min() > 0
    patches = torch.randn(200, 48).numpy()
    pooled = pca_extractor(patches, patch_size=4, components=5, dense=False)(batch)
    dense = pca_extractor(patches, patch_size=4, components=5, dense=True)(batch)
    for b, known in enumerate((valid[0, 0], valid[1, 0])):
        rows = dense[b][known.reshape(6, 4, 6, 4).any(3).any(1).flatten()]
        expected = torch.cat([rows.mean(0), rows.std(0, correction=0)])
        torch.testing.assert_close(pooled[b], expected, rtol=1e-4, atol=1e-5)
    patches = torch.randn(300, 27).numpy()
    small = convolution_extractor(patches, 3, patch_size=None, seed=0)(batch)
    fine = convolution_extractor(patches, 3, patch_size=1, seed=0)(batch).reshape(2, 24, 24, -1)
    for b in range(2):
        torch.testing.assert_close(small[b], fine[b][valid[b, 0]].mean(0), rtol=1e-4, atol=1e-5)


def test_patches_do_not_depend_on_the_batches() -> None:
    whole = make(6)
    parts = [Batch(whole.image[i : i + 2], whole.valid[i : i + 2], whole.label[i : i + 2]) for i in (0, 2, 4)]
    for side, expected in sample_patches([whole], [4, 3], seed=3).items():
        np.testing.assert_array_equal(sample_patches(parts, [4, 3], seed=3)[side], expected)

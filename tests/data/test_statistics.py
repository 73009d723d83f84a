"""Statistics against numpy on whole arrays; scaling there and back; warnings where something is wrong, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from auxmae.data.collection import Collection, memory_file
from auxmae.data.dataset import ImageDataset
from auxmae.data.splits import Part
from auxmae.data.statistics import ChannelStatistics, Scaling, compute_statistics, statistics_warnings
from auxmae.errors import CheckpointError, DataError


def whole(array_NCHW: np.ndarray, names: tuple[str, ...] | None = None, image_size: int | None = None) -> ImageDataset:
    """Every image of an array, as a data set."""
    count, channels, height, width = array_NCHW.shape
    names = names or tuple(f"c{i}" for i in range(channels))
    items = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    file = memory_file(array_NCHW, Path("array"))
    collection = Collection("memory", "array", names, None, (), (file,), [], items, (None,))
    part = Part("train", np.arange(count), np.zeros((0, 5), np.int64))
    return ImageDataset(collection, part, image_size=image_size or max(height, width))


def fitted(array: np.ndarray, names: tuple[str, ...] | None = None, **options: object) -> ChannelStatistics:
    return compute_statistics(whole(array, names), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("transform", ["none", "log1p", "arcsinh"])
def test_against_numpy_with_nan_and_padding(transform: str) -> None:
    random = np.random.default_rng(7)
    # A large mean beside a small spread: sums of squares in single precision would be lost.
    array = (random.normal(size=(70, 3, 9, 11)) * [[[[1]], [[20]], [[0.5]]]] + [[[[1e4]], [[60]], [[3]]]]).astype(np.float32)
    array[random.random(array.shape) < 0.1] = np.nan
    seen: list[tuple[int, int]] = []
    s = fitted(array, transform=transform, cofactor=5.0, low=2, high=97, progress=lambda a, b: seen.append((a, b)))
    function = {"none": lambda x: x, "log1p": lambda x: np.log1p(np.maximum(x, 0)), "arcsinh": lambda x: np.arcsinh(x / 5)}
    for channel in range(3):
        raw = array[:, channel].astype(np.float64)
        raw = raw[np.isfinite(raw)]
        values = function[transform](raw)
        assert s.count[channel] == raw.size
        expected = (values.mean(), values.std(), values.min(), values.max())
        assert (s.mean[channel], s.std[channel], s.minimum[channel], s.maximum[channel]) == pytest.approx(expected, rel=1e-9)
        assert (s.low[channel], s.high[channel]) == pytest.approx(
            tuple(function[transform](np.percentile(raw, [2, 97]))), rel=1e-6
        )
        assert s.raw_mean[channel] == pytest.approx(raw.mean(), rel=1e-9)
        assert s.fraction_valid[channel] == pytest.approx(raw.size / array[:, channel].size)
    assert seen[-1] == (70, 70)
    json.dumps(s.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("height", "width"), [(72, 72), (61, 90)])
def test_a_pixel_of_several_windows_counts_once(height: int, width: int) -> None:
    """Bright middles, which windows from edge to edge share, weigh no more than edges."""
    random = np.random.default_rng(3)
    array = random.normal(size=(4, 2, height, width)).astype(np.float32)
    array[..., 24:48, 24:48] += 100
    array[random.random(array.shape) < 0.1] = np.nan
    dataset = whole(array, image_size=48)
    # One window alone is in the middle.
    seen = array[:, :, 6:54] if height == 61 else array
    assert len(dataset) == (8 if height == 61 else 16)
    s = compute_statistics(dataset)
    for channel in range(2):
        values = seen[:, channel][np.isfinite(seen[:, channel])].astype(np.float64)
        assert s.count[channel] == values.size
        assert (s.mean[channel], s.std[channel]) == pytest.approx((values.mean(), values.std()), rel=1e-9)
        assert s.median[channel] == pytest.approx(np.percentile(values, 50), rel=1e-6)
        assert s.fraction_valid[channel] == pytest.approx(values.size / seen[:, channel].size)


def test_subsample_is_close() -> None:
    array = np.random.default_rng(0).gamma(2, 100, (200, 1, 16, 16)).astype(np.float32)
    s = fitted(array, samples=5000)
    low, high = np.percentile(array, [1, 99])
    assert s.low[0] == pytest.approx(low, rel=0.2)
    assert s.high[0] == pytest.approx(high, rel=0.1)


def test_large_sets_are_sampled() -> None:
    array = np.random.default_rng(0).random((400, 1, 16, 16)).astype(np.float32)
    s = fitted(array, samples=1000)
    assert 8000 <= s.count[0] < array.size / 2
    assert s.mean[0] == pytest.approx(0.5, abs=0.02)


def test_many_bands_in_large_crops_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).gamma(2, 100, (40, 10, 24, 24)).astype(np.float32)
    array[3, 2, :5] = np.nan
    expected = fitted(array).to_dict()
    for crops, limit in ((32, 2**28), (3, 3 * 24 * 24 * 10 * 5), (1, 1)):
        monkeypatch.setattr("auxmae.data.statistics._BATCH_BYTES", limit)
        done = [0]
        found = fitted(array, progress=lambda n, _, done=done: done.append(n)).to_dict()
        assert max(np.diff(done)) == crops
        for key, values in expected.items():
            assert found[key] == (pytest.approx(values, rel=1e-12) if key in ("mean", "std", "raw_mean") else values)


def test_channel_without_a_valid_pixel() -> None:
    array = np.random.default_rng(0).random((4, 2, 8, 8)).astype(np.float32)
    array[:, 1] = np.nan
    s = fitted(array)
    assert s.to_dict()["mean"][1] is None
    scaling = Scaling.fit(s)
    assert torch.isfinite(scaling.apply(torch.ones(2, 8, 8))).all()
    assert any("c1: no valid pixel among those looked at" in warning for warning in statistics_warnings(s))
    with pytest.raises(DataError, match="no valid pixel"):
        fitted(np.full((2, 1, 4, 4), np.nan, np.float32))


@pytest.mark.parametrize("method", ["percentile", "standard", "minmax", "none"])
@pytest.mark.parametrize("transform", ["none", "log1p", "arcsinh"])
def test_invert_undoes_apply(method: str, transform: str) -> None:
    array = np.random.default_rng(3).gamma(2, 50, (10, 3, 8, 8)).astype(np.float32)
    scaling = Scaling.fit(fitted(array, transform=transform, cofactor=3.0), method=method)
    x = torch.from_numpy(array)
    y = scaling.apply(x)
    assert torch.allclose(scaling.invert(y), x, rtol=1e-4, atol=1e-3)
    assert torch.equal(scaling.apply(x[0]), y[0])
    if method == "standard":
        assert y.mean(dim=(0, 2, 3)).abs().max() < 1e-4
        assert (y.std(dim=(0, 2, 3), unbiased=False) - 1).abs().max() < 1e-4
    if method == "minmax":
        assert y.min() == pytest.approx(0, abs=1e-5)
        assert y.max() == pytest.approx(1, abs=1e-5)
    if method == "percentile":
        assert 0.015 < float(((y < 0) | (y > 1)).float().mean()) < 0.025


@pytest.mark.parametrize("method", ["percentile", "standard", "minmax"])
@pytest.mark.parametrize("value", [0.0, 1e-3, 3.0e4])
def test_constant_channel_has_scale_one(method: str, value: float) -> None:
    scaling = Scaling.fit(fitted(np.full((3, 1, 5, 5), value, np.float32)), method=method)
    assert scaling.scale == (1.0,)
    assert scaling.apply(torch.full((1, 2, 2), value)).abs().max() < 1e-6


def test_mostly_zero_channel_keeps_its_range() -> None:
    array = np.zeros((10, 1, 20, 20), np.float32)
    array[0, 0, 0, :4] = 8
    assert Scaling.fit(fitted(array)).scale == (8.0,)


def test_clip_select_and_dict() -> None:
    array = np.random.default_rng(3).normal(size=(10, 3, 8, 8)).astype(np.float32)
    scaling = Scaling.fit(fitted(array), clip=True)
    y = scaling.apply(torch.from_numpy(array))
    assert (y.min(), y.max()) == (0, 1)
    assert Scaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling
    chosen = scaling.select(("c2", "c0"))
    assert torch.equal(chosen.apply(torch.from_numpy(array[:, [2, 0]])), y[:, [2, 0]])
    with pytest.raises(DataError, match="c9"):
        scaling.select(("c9",))
    with pytest.raises(CheckpointError):
        Scaling.from_dict({"method": "none"})
    identity = Scaling.identity(("c0",))
    assert torch.equal(identity.apply(torch.ones(1, 2, 2)), torch.ones(1, 2, 2))


def test_stored_scaling_follows_the_names() -> None:
    array = np.random.default_rng(3).random((2, 2, 4, 4)).astype(np.float32)
    raw = whole(array, ("x", "y"))
    stored = Scaling("minmax", "none", 1.0, False, ("y", "z", "x"), (5.0, 0.0, 7.0), (1.0, 1.0, 2.0))
    scaled = ImageDataset(raw.collection, raw.part, image_size=4, scaling=stored)[0].image
    assert torch.allclose(scaled, torch.from_numpy(np.stack([(array[0, 0] - 7) / 2, array[0, 1] - 5])))


def test_log1p_of_pixels_below_zero_is_told() -> None:
    array = np.random.default_rng(2).normal(5, 10, (4, 2, 8, 8)).astype(np.float32)
    for transform, told in (("log1p", True), ("arcsinh", False)):
        warnings = statistics_warnings(fitted(array, transform=transform))
        assert any("takes for 0" in warning for warning in warnings) == told


def test_warnings_name_what_is_wrong() -> None:
    random = np.random.default_rng(0)
    good = random.normal(1000, 100, (20, 16, 16))
    saturated = np.minimum(random.normal(1000, 100, good.shape), 1100)
    tails = random.lognormal(0, 2.5, good.shape) * 20
    array = np.stack([good, np.zeros_like(good), np.full_like(good, 7), saturated, tails, good / 1e4], axis=1)
    names = ("good", "dead", "constant", "saturated", "tails", "tiny")
    warnings = statistics_warnings(fitted(array.astype(np.float32), names))
    for name, word in (
        ("dead", "every pixel looked at is 0"),
        ("constant", "same value"),
        ("saturated", "saturated,"),
        ("tails", "heavy"),
        ("tiny", "factor"),
    ):
        assert any(name in warning and word in warning for warning in warnings), (name, warnings)
    assert not any("good" in warning for warning in warnings)


def test_heavy_tails_are_told_in_spite_of_noise_below_zero() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.02, (20, 32, 32))
    stars = np.where(random.random(noise.shape) < 0.02, random.lognormal(3, 2, noise.shape), 0)
    warnings = statistics_warnings(fitted(np.stack([noise + stars, noise], axis=1).astype(np.float32), ("stars", "noise")))
    assert [warning for warning in warnings if "heavy" in warning and "stars" in warning and "noise" not in warning]
    assert not [warning for warning in warnings if "heavy" in warning and "noise" in warning]


def test_pixels_that_nothing_marks_as_missing_are_told() -> None:
    random = np.random.default_rng(0)
    array = random.normal(1000, 100, (10, 3, 16, 16)).astype(np.float32)
    assert not statistics_warnings(fitted(array, ("a", "b", "c")))
    array[:, :, :5] = -9999
    assert any(
        "31% of the pixels are exactly -9999 in every channel" in text
        for text in statistics_warnings(fitted(array, ("a", "b", "c")))
    )
    # Dark in some channels alone is no filling.
    array[:, 0, :5] = 1000
    assert not any("exactly" in text for text in statistics_warnings(fitted(array, ("a", "b", "c"))))


def test_one_isolated_value_is_told() -> None:
    array = np.random.default_rng(0).normal(1000, 100, (30, 2, 16, 16)).astype(np.float32)
    array[3, 1, 4, 5] = 1e38
    (warning,) = statistics_warnings(fitted(array, ("a", "b")))
    assert warning.startswith("b: isolated values")


def test_unexpected_sentinel_scale() -> None:
    array = np.random.default_rng(0).normal(0.2, 0.02, (8, 3, 16, 16))
    names = ("B02", "B03", "B04")
    assert any("Sentinel-2" in warning for warning in statistics_warnings(fitted(array.astype(np.float32), names)))
    assert statistics_warnings(fitted((array * 1e4).astype(np.float32), names)) == []


def test_real_images(shared_data: Path) -> None:
    from auxmae.data.opening import open_collection
    from auxmae.data.splits import split_collection

    found = {}
    for name in ("sentinel2", "microscopy"):
        collection = open_collection(str(shared_data / name))
        part = split_collection(collection, image_size=32).train
        statistics = compute_statistics(ImageDataset(collection, part, image_size=32))
        found[name] = statistics_warnings(statistics, collection.dtype)
    assert found["sentinel2"] == []
    assert any("arcsinh" in warning for warning in found["microscopy"])

"""The linear floor against conditional means that are computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from auxmae.data.loading import Batch
from auxmae.errors import DataError
from auxmae.evaluation.linear_floor import LINEAR, LinearFloor
from auxmae.evaluation.reconstruction import draw_fixed_masks, evaluate_reconstruction
from auxmae.evaluation.reconstruction_floors import interpolation_floor
from auxmae.evaluation.reconstruction_sources import NEIGHBOURS, SAME_PLACE, SOURCES, evaluate_sources
from auxmae.model.mae import AuxMAE
from tests.evaluation.test_reconstruction_floors import patch_mask

NAMES = ["red", "green", "blue"]


def model_of(names: list[str] = NAMES, **arguments: object) -> AuxMAE:
    torch.manual_seed(0)
    return AuxMAE(names, image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, **arguments)


def batch_of(image: Tensor, valid: Tensor | None = None, channels: list[int] | None = None) -> Batch:
    valid = torch.ones_like(image, dtype=torch.bool) if valid is None else valid
    return Batch(image, valid, torch.full((len(image),), -1), None, None if channels is None else torch.tensor(channels))


def fit(model: AuxMAE, *batches: Batch, seed: int = 1) -> LinearFloor:
    return LinearFloor.fit(model, batches, seed=seed, device="cpu")


def fields(count: int, channels: int, side: int, seed: int) -> Tensor:
    """Smooth fields that are correlated between channels, with some noise."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 3, 3, generator=random) + torch.randn(count, 1, 3, 3, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return 0.3 * smooth + 0.05 * torch.randn(smooth.shape, generator=random) + 0.5


def brute_force(
    train: tuple[NDArray[np.float64], ...], test: tuple[NDArray[np.float64], ...], at: tuple[int, ...]
) -> NDArray[np.float64]:
    """The conditional mean of all channels at one pixel; each part: values, interpolated values, known, valid."""
    values, interpolated, known, valid = train
    channels = values.shape[1]
    seen = known.any(axis=(2, 3), keepdims=True)
    variables = [(values[:, c], valid[:, c]) for c in range(channels)]
    variables += [(interpolated[:, c], ~known[:, c] & seen[:, c]) for c in range(channels)]
    mean = np.array([x[there].mean() if there.any() else 0.0 for x, there in variables])
    covariance = np.zeros((2 * channels, 2 * channels))
    for i, j in np.ndindex(covariance.shape):
        both = variables[i][1] & variables[j][1]
        if both.any():
            covariance[i, j] = np.mean((variables[i][0][both] - mean[i]) * (variables[j][0][both] - mean[j]))
    spread = np.sqrt(np.diag(covariance).clip(1e-8 * np.diag(covariance).max()))
    eigenvalues, vectors = np.linalg.eigh(covariance / np.outer(spread, spread))
    covariance = (vectors * eigenvalues.clip(1e-3)) @ vectors.T * np.outer(spread, spread)

    values, interpolated, known, _ = test
    b, row, column = at
    given, observed = [], []
    for c in range(channels):
        if known[b, c, row, column]:
            given.append(c)
            observed.append(values[b, c, row, column])
        elif known[b, c].any():
            given.append(channels + c)
            observed.append(interpolated[b, c, row, column])
    if not given:
        return mean[:channels]
    inverse = np.linalg.inv(covariance[np.ix_(given, given)])
    return mean[:channels] + covariance[:channels][:, given] @ inverse @ (np.array(observed) - mean[given])


@pytest.mark.parametrize("strategy", ["independent", "shared", "channel"])
@pytest.mark.parametrize("groups", [1, [["red", "blue"], ["green"]]])
def test_it_is_the_conditional_mean_at_each_pixel(strategy: str, groups: object) -> None:
    model = model_of(mask_strategy=strategy, channel_groups=groups)
    random = torch.Generator().manual_seed(4)
    image, other = fields(6, 3, 14, seed=2), fields(2, 3, 14, seed=3)
    valid, other_valid = (torch.rand(x.shape, generator=random) > 0.1 for x in (image, other))
    image, other = image.masked_fill(~valid, float("nan")), other.masked_fill(~other_valid, float("nan"))
    floor = fit(model, batch_of(image[:4], valid[:4]), batch_of(image[4:], valid[4:]), seed=7)

    with torch.inference_mode():
        hidden = model.eval().reconstruct(image, draw_fixed_masks(model, image, seed=7, first=0), valid=valid).hidden
        other_hidden = model.reconstruct(other, draw_fixed_masks(model, other, seed=8, first=0), valid=other_valid).hidden
    # A channel that shows nothing, a place that shows nothing, and an image that shows nothing.
    other_hidden = torch.cat([other_hidden, other_hidden[:1]])
    other, other_valid = torch.cat([other, other[:1]]), torch.cat([other_valid, other_valid[:1]])
    other_hidden[0, 1] = True
    other_hidden[1, :, :4, :4] = True
    other_hidden[2] = True
    train = (image.double().numpy(), interpolation_floor(image, hidden, valid).double().numpy())
    test = (other.double().numpy(), interpolation_floor(other, other_hidden, other_valid).double().numpy())
    known, other_known = (valid & ~hidden).numpy(), (other_valid & ~other_hidden).numpy()
    prediction = floor(other, other_hidden, other_valid).numpy()
    assert prediction.dtype == np.float32
    for b, row, column in np.ndindex(3, 14, 14):
        expected = brute_force((*train, known, valid.numpy()), (*test, other_known, other_valid.numpy()), (b, row, column))
        kept = other_known[b, :, row, column]
        expected[kept] = other.numpy()[b, kept, row, column]
        np.testing.assert_allclose(prediction[b, :, row, column], expected, atol=2e-5)


def test_an_exact_linear_relation_is_recovered() -> None:
    image = fields(24, 2, 16, seed=5)
    image = torch.cat([image, 0.7 * image[:, :1] - 0.4 * image[:, 1:] + 0.2], 1)
    floor = fit(model_of(), batch_of(image[:20]))
    test = image[20:]
    for channel in range(3):
        hidden = torch.zeros_like(test, dtype=torch.bool)
        hidden[:, channel, 4:12] = True
        error = (floor(test, hidden) - test).abs()
        assert float(error[hidden].mean()) < 3e-3 < 0.05 < float((interpolation_floor(test, hidden) - test).abs()[hidden].mean())
        assert float(error[~hidden].max()) == 0
    # Copies of one channel, one of which is visible.
    alike = fields(24, 1, 16, seed=6) * torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1) + 0.1
    floor = fit(model_of(), batch_of(alike[:20]))
    hidden = torch.ones(4, 3, 16, 16, dtype=torch.bool)
    hidden[:, 2] = False
    assert float((floor(alike[20:], hidden) - alike[20:]).abs()[hidden].mean()) < 3e-3


def test_without_a_channel_it_is_as_where_the_channel_shows_nothing() -> None:
    image = fields(10, 3, 16, seed=8)
    floor = fit(model_of(), batch_of(image[:8]))
    random = torch.Generator().manual_seed(2)
    hidden = (torch.rand(2, 3, 4, 4, generator=random) < 0.6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    hidden[:, 1] = True
    left = [2, 0]
    expected = floor(image[8:], hidden)[:, left]
    torch.testing.assert_close(floor.select(left)(image[8:, left], hidden[:, left]), expected, rtol=0, atol=1e-4)


def test_hidden_and_invalid_pixels_are_never_read() -> None:
    floor = fit(model_of(), batch_of(fields(8, 3, 16, seed=7)))
    random = torch.Generator().manual_seed(1)
    for shape in ((2, 3, 16, 16), (1, 3, 13, 7), (1, 3, 1, 1), (0, 3, 8, 8)):
        image = torch.randn(shape, generator=random)
        hidden, valid = (torch.rand(shape, generator=random) > level for level in (0.3, 0.1))
        poisoned = image.masked_fill(hidden | ~valid, float("nan"))
        prediction = floor(poisoned, hidden, valid)
        assert prediction.shape == image.shape
        assert prediction.isfinite().all()
        torch.testing.assert_close(prediction, floor(image, hidden, valid), rtol=0, atol=0)
        torch.testing.assert_close(prediction, floor(image, hidden, valid, interpolation_floor(image, hidden, valid)))


def test_strides_and_the_rest_of_the_batch_do_not_matter() -> None:
    floor = fit(model_of(), batch_of(fields(8, 3, 16, seed=7)))
    image = fields(4, 3, 16, seed=8)
    hidden = patch_mask(torch.Generator().manual_seed(2), 4, 3, 16, 4)
    whole = floor(image, hidden)
    torch.testing.assert_close(floor(image[2:3], hidden[2:3]), whole[2:3])
    strided = image.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    torch.testing.assert_close(floor(strided, hidden), whole)


def test_one_channel_and_constant_channels() -> None:
    one = fields(80, 1, 16, seed=9)
    hidden = patch_mask(torch.Generator().manual_seed(3), 80, 1, 16, 4)
    prediction = fit(model_of(["grey"]), batch_of(one))(one, hidden)
    error, other = ((p - one).square()[hidden].mean() for p in (prediction, interpolation_floor(one, hidden)))
    assert float(error) < float(other)
    flat = torch.full((4, 3, 16, 16), 0.3)
    hidden = patch_mask(torch.Generator().manual_seed(3), 4, 3, 16, 4)
    torch.testing.assert_close(fit(model_of(), batch_of(flat))(flat, hidden), flat)
    # Of a channel that the training images have no valid pixel of, nothing is known.
    valid = torch.ones_like(flat, dtype=torch.bool)
    valid[:, 1] = False
    assert fit(model_of(), batch_of(flat, valid))(flat, hidden).isfinite().all()


def test_many_channels_in_groups() -> None:
    names = [str(number) for number in range(120)]
    model = model_of(names, channel_groups=3)
    # Mixtures of four materials, as in spectra.
    random = torch.Generator().manual_seed(15)
    image = torch.einsum("ck,bkhw->bchw", torch.rand(120, 4, generator=random), fields(24, 4, 16, seed=10))
    image, test = (image + 0.01 * torch.randn(image.shape, generator=random)).split([20, 4])
    floor = fit(model, batch_of(image))
    with torch.inference_mode():
        hidden = model.eval().reconstruct(test, draw_fixed_masks(model, test, seed=2, first=0)).hidden
    error, other = ((p - test).abs()[hidden].mean() for p in (floor(test, hidden), interpolation_floor(test, hidden)))
    assert float(error) < 0.2 * float(other)


def test_a_subset_of_the_channels() -> None:
    model = model_of(channel_groups=[["red"], ["blue", "green"]])
    image = fields(6, 3, 16, seed=11)
    some = batch_of(image[:, [2, 0]], channels=[2, 0])
    floor = fit(model, some)
    with pytest.raises(ValueError, match="2 channels, not 3"):
        floor(image, torch.zeros_like(image, dtype=torch.bool))
    with pytest.raises(ValueError, match="shape"):
        floor(image[:, :2], torch.zeros(6, 1, 16, 16, dtype=torch.bool))


def test_the_fit_depends_on_training_images_and_seed_and_not_on_the_batches() -> None:
    image, test = fields(9, 3, 40, seed=12), fields(2, 3, 40, seed=13)
    hidden = patch_mask(torch.Generator().manual_seed(3), 2, 3, 40, 4)
    model = model_of()
    floor = fit(model, batch_of(image))
    before = floor.mean.clone(), floor.correlation.clone()
    first = floor(test, hidden)
    floor(test + 3, hidden)
    torch.testing.assert_close((floor.mean, floor.correlation), before, rtol=0, atol=0)
    torch.testing.assert_close(floor(test, hidden), first, rtol=0, atol=0)
    parts = fit(model, *(batch_of(part) for part in image.split(2)))
    torch.testing.assert_close((parts.mean, parts.correlation), before)
    assert not torch.allclose(fit(model, batch_of(image), seed=2).mean, before[0], rtol=1e-6)
    with pytest.raises(DataError, match="no image"):
        fit(model)


def test_it_stands_beside_the_other_floors() -> None:
    model = model_of()
    image = fields(12, 3, 16, seed=14)
    image[:, 2] = image[:, 0] + 0.1
    more = {LINEAR: fit(model, batch_of(image[:8]))}
    batches = [batch_of(image[8:])]
    result = evaluate_reconstruction(model, batches, seed=0, device="cpu", more_floors=more)
    assert list(result.floors) == ["mean", "interpolation", LINEAR]
    assert result.best_floor == LINEAR
    for each in (result.floors_per_channel, result.floors_psnr, result.floors_spectral_angle, result.floors_ssim):
        assert list(each) == list(result.floors)
    plain = evaluate_reconstruction(model, batches, seed=0, device="cpu")
    assert plain.floors == {name: result.floors[name] for name in ("mean", "interpolation")}
    assert plain.masked_l1 == result.masked_l1
    sources = evaluate_sources(model, batches, seed=0, device="cpu", more_floors=more)
    assert sources is not None
    assert all(list(sources.floors[source]) == list(result.floors) for source in SOURCES)
    assert sources.floors[SAME_PLACE][LINEAR] < sources.floors[NEIGHBOURS][LINEAR]

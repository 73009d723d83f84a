"""Reconstruction error: weighted by pixels, independent of batching, masks fixed by seed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auxmae.data.loading import Batch
from auxmae.errors import DataError
from auxmae.evaluation.reconstruction import draw_fixed_masks, evaluate_reconstruction
from auxmae.evaluation.reconstruction_floors import predict_floors


class Shifted(nn.Module):
    """Reconstructs the truth plus a known error per channel: 0.25, 0.5, …; keeps its batch sizes for the test."""

    channel_names = ("red", "green", "blue")
    groups = (("red",), ("green",), ("blue",))
    patch_size = 4

    def draw_mask(self, shape, generator=None, *, ratio=None) -> Tensor:
        positions = -(-shape[2] // 4) * -(-shape[3] // 4)
        return torch.rand(shape[0], 3, positions, generator=generator).argsort(-1)[..., : max(1, positions // 4)]

    def reconstruct(self, image, keep, *, valid=None, channels=None, generator=None):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        rows, columns = -(-image.shape[2] // 4), -(-image.shape[3] // 4)
        masked = torch.ones(*keep.shape[:2], rows * columns, dtype=torch.bool).scatter_(2, keep, False)
        hidden = masked.view(*keep.shape[:2], rows, columns).repeat_interleave(4, 2).repeat_interleave(4, 3)
        hidden = hidden[..., : image.shape[2], : image.shape[3]]
        order = torch.arange(3) if channels is None else channels
        shift = (0.25 * (order + 1)).view(1, -1, 1, 1)
        return SimpleNamespace(prediction=(image + shift).masked_fill(~hidden, 0.0), hidden=hidden, keep=keep)


def make(count: int, height: int = 12, width: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, height, width, generator=generator)
    valid = torch.rand(image.shape, generator=generator) > 0.2
    return image.masked_fill(~valid, float("nan")), valid


def batches(image: Tensor, valid: Tensor, size: int) -> list[Batch]:
    none = torch.full((len(image),), -1)
    return [Batch(*parts) for parts in zip(image.split(size), valid.split(size), none.split(size), strict=True)]


def test_errors_are_those_of_the_model_on_hidden_valid_pixels() -> None:
    image, valid = make(7)
    model = Shifted().train()
    seen: list[int] = []
    result = evaluate_reconstruction(model, batches(image, valid, 3), seed=5, device="cpu", progress=seen.append)
    assert model.training
    assert seen == [3, 6, 7]
    assert result.windows == 7
    assert list(result.per_channel) == ["red", "green", "blue"]
    np.testing.assert_allclose(list(result.per_channel.values()), [0.25, 0.5, 0.75], rtol=1e-6)

    # An independent computation of the mask, the counts and the mean floor, in float64.
    keep = draw_fixed_masks(model, image, seed=5, first=0)
    with torch.inference_mode():
        hidden = model.eval().reconstruct(image, keep).hidden
    counts = (hidden & valid).sum(dim=(0, 2, 3)).double()
    assert result.pixels == int(counts.sum())
    expected = float((counts * torch.tensor([0.25, 0.5, 0.75])).sum() / counts.sum())
    assert result.masked_l1 == pytest.approx(expected, rel=1e-6)
    error = 0.0
    for b in range(7):
        for c in range(3):
            pixels = image[b, c].double()
            seen_mean = pixels[valid[b, c] & ~hidden[b, c]].mean()
            error += float((pixels[valid[b, c] & hidden[b, c]] - seen_mean).abs().sum())
    assert result.floors["mean"] == pytest.approx(error / float(counts.sum()), rel=1e-5)
    assert set(result.floors) == set(result.floors_per_channel) == {"mean", "interpolation"}
    assert result.best_floor == min(result.floors, key=result.floors.__getitem__)
    measures = {"psnr", "spectral_angle", "ssim"}
    beside = {f"floors_{name}" for name in measures}
    assert set(result.to_dict()) == {"masked_l1", "per_channel", "floors"} | measures | beside

    squares = float((counts * torch.tensor([0.25, 0.5, 0.75]) ** 2).sum() / counts.sum())
    assert result.psnr == pytest.approx(-10 * np.log10(squares), rel=1e-6)
    shift = torch.tensor([0.25, 0.5, 0.75])
    predictions = {"model": image + shift.view(3, 1, 1), **predict_floors(image, hidden, valid)}
    angles = {name: [] for name in predictions}
    for b, row, column in np.ndindex(7, 12, 10):
        ok, masked = valid[b, :, row, column], hidden[b, :, row, column]
        if ok.sum() > 1 and (ok & masked).any():
            truth = image[b, :, row, column].double()[ok]
            for name, prediction in predictions.items():
                guess = torch.where(masked, prediction[b, :, row, column], image[b, :, row, column]).double()[ok]
                cosine = truth @ guess / truth.norm() / guess.norm()
                angles[name].append(float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))))
    assert result.spectral_angle == pytest.approx(np.mean(angles["model"]), rel=1e-3)
    for name in ("mean", "interpolation"):
        assert result.floors_spectral_angle[name] == pytest.approx(np.mean(angles[name]), rel=1e-3)
        squares = (predictions[name] - image).double()[hidden & valid].square().mean()
        assert result.floors_psnr[name] == pytest.approx(-10 * np.log10(float(squares)), rel=1e-6)


def test_batch_size_does_not_matter_and_the_seed_does() -> None:
    image, valid = make(6, seed=1)
    model = Shifted().eval()
    results = [evaluate_reconstruction(model, batches(image, valid, n), seed=2, device="cpu") for n in (1, 4, 6)]
    for other in results[1:]:
        assert other.pixels == results[0].pixels
        assert other.floors["interpolation"] == pytest.approx(results[0].floors["interpolation"], rel=1e-6)
        assert other.masked_l1 == pytest.approx(results[0].masked_l1, rel=1e-6)
    assert not model.training
    changed = evaluate_reconstruction(model, batches(image, valid, 4), seed=3, device="cpu")
    assert changed.floors["mean"] != results[0].floors["mean"]


def test_images_of_a_batch_get_masks_of_their_own() -> None:
    keep = draw_fixed_masks(Shifted(), torch.zeros(5, 3, 32, 32), seed=0, first=0)
    assert len({tuple(row.flatten().tolist()) for row in keep}) == 5
    torch.testing.assert_close(draw_fixed_masks(Shifted(), torch.zeros(2, 3, 32, 32), seed=0, first=3), keep[3:])


def test_masks_of_unequal_length_are_padded() -> None:
    class Ragged(Shifted):
        def draw_mask(self, shape, generator=None, *, ratio=None) -> Tensor:
            count = int(torch.randint(1, 5, (), generator=generator))
            return torch.arange(count).expand(shape[0], 3, count)

    keep = draw_fixed_masks(Ragged(), torch.zeros(16, 3, 16, 16), seed=0, first=0)
    lengths = (keep >= 0).sum(2)
    assert keep.shape[2] == lengths.max()
    assert lengths.min() < lengths.max()
    assert ((keep[..., 1:] >= 0) <= (keep[..., :-1] >= 0)).all(), "padding stands at the tail"


def test_a_subset_of_the_channels_is_counted_under_its_names() -> None:
    image, valid = make(4, seed=4)
    some = [
        b._replace(image=b.image[:, [2, 0]], valid=b.valid[:, [2, 0]], channels=torch.tensor([2, 0]))
        for b in batches(image, valid, 2)
    ]
    result = evaluate_reconstruction(Shifted(), some, seed=0, device="cpu")
    assert result.per_channel == pytest.approx({"red": 0.25, "blue": 0.75})


def test_nothing_to_measure_is_said() -> None:
    with pytest.raises(DataError, match="no image"):
        evaluate_reconstruction(Shifted(), [], seed=0, device="cpu")
    image, valid = make(2)
    with pytest.raises(DataError, match="valid"):
        evaluate_reconstruction(Shifted(), batches(image, torch.zeros_like(valid), 2), seed=0, device="cpu")


def test_the_real_model_on_ragged_masks_and_odd_sizes() -> None:
    from auxmae.model.mae import AuxMAE

    torch.manual_seed(0)
    arguments = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1}
    for strategy in ("independent", "channel", "block", "mixed"):
        mixture = {"independent": 0.5, "channel": 0.5} if strategy == "mixed" else None
        model = AuxMAE(["red", "green", "blue"], **arguments, mask_strategy=strategy, mask_mixture=mixture)
        image, valid = make(5, height=14, width=11, seed=6)
        one, all_ = (evaluate_reconstruction(model, batches(image, valid, n), seed=9, device="cpu") for n in (1, 5))
        assert one.pixels == all_.pixels
        assert one.masked_l1 == pytest.approx(all_.masked_l1, rel=1e-4)
        assert one.floors == pytest.approx(all_.floors, rel=1e-4)


def test_a_higher_mask_ratio_hides_more_and_is_harder() -> None:
    from auxmae.model.mae import AuxMAE

    torch.manual_seed(0)
    model = AuxMAE(["red", "green", "blue"], image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    image = torch.linspace(0, 1, 32)[None, None, None].expand(3, 3, 32, 32).contiguous()
    data = batches(image, torch.ones_like(image, dtype=torch.bool), 3)
    half, most = (evaluate_reconstruction(model, data, seed=0, device="cpu", ratio=ratio) for ratio in (0.5, 0.9))
    assert half.pixels == image.numel() // 2
    assert most.pixels > 0.85 * image.numel()
    assert most.floors["interpolation"] > half.floors["interpolation"]


def test_an_error_that_is_not_finite_is_told_instead_of_printed():
    class Diverged(Shifted):
        def reconstruct(self, *args, **kwargs):
            result = super().reconstruct(*args, **kwargs)
            return SimpleNamespace(**{**vars(result), "prediction": result.prediction * float("nan")})

    with pytest.raises(DataError, match="error of the model is not a finite number"):
        evaluate_reconstruction(Diverged(), batches(*make(4), 2), seed=0, device="cpu")

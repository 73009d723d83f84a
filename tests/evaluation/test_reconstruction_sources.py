"""Where a reconstruction comes from: masks isolate one source, and models that copy from a known source are found out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from auxmae.data.loading import Batch
from auxmae.evaluation.reconstruction_sources import (
    AS_TRAINED,
    BOTH,
    ELSEWHERE,
    NEIGHBOURS,
    SAME_PLACE,
    evaluate_sources,
    source_masks,
)
from auxmae.model.mae import AuxMAE


def model_of(channels: int = 3) -> AuxMAE:
    torch.manual_seed(0)
    return AuxMAE(channels, image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)


@pytest.mark.parametrize(("groups", "positions"), [(2, 2), (3, 16), (5, 9)])
def test_masks_leave_one_source_each(groups: int, positions: int) -> None:
    for seed in range(5):
        group = seed % groups
        visible, target = source_masks(groups, positions, group, torch.Generator().manual_seed(seed), model_of())
        others = torch.arange(groups) != group
        places = target[group]
        assert places.any()
        assert not target[others].any()
        for shown in visible.values():
            assert shown.any()
            assert not shown[target].any()
        assert not visible[SAME_PLACE][group].any()
        assert (visible[SAME_PLACE][others] == places).all()
        assert not visible[NEIGHBOURS][others].any()
        assert (visible[NEIGHBOURS][group] == ~places).all()
        assert not visible[ELSEWHERE][group].any()
        assert not (visible[ELSEWHERE][others] & places).any()
        assert visible[BOTH][others].all()
        assert (visible[BOTH][group] == ~places).all()
        assert (visible[AS_TRAINED].sum(1) == visible[AS_TRAINED].sum(1)[0]).all()


class Copier(nn.Module):
    """Predicts each hidden pixel from the same pixel of another channel, or from the mean of its own channel's visible ones."""

    channel_names = ("red", "green", "blue")
    groups = (("red",), ("green",), ("blue",))
    patch_size = 4

    def __init__(self, across: bool) -> None:
        super().__init__()
        self.config = {"mask_ratio": 0.75}
        self.across = across

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 4), -(-width // 4)

    def reconstruct(self, image: Tensor, keep: Tensor, *, valid: Tensor, channels: Tensor | None = None) -> SimpleNamespace:
        rows, columns = self.grid(image.shape[2], image.shape[3])
        flags = torch.ones(*keep.shape[:2], rows * columns + 1, dtype=torch.bool)
        flags = flags.scatter_(2, torch.where(keep < 0, rows * columns, keep), False)[..., :-1]
        hidden = flags.view(*keep.shape[:2], rows, columns).repeat_interleave(4, 2).repeat_interleave(4, 3)
        hidden = hidden[..., : image.shape[2], : image.shape[3]]
        known = ~hidden & valid
        clean = image.masked_fill(~known, 0.0)
        axes = (1,) if self.across else (2, 3)
        mean = clean.sum(axes, keepdim=True) / known.sum(axes, keepdim=True).clamp(min=1)
        return SimpleNamespace(prediction=mean.expand_as(image).masked_fill(~hidden, 0.0), hidden=hidden, keep=keep)


def batch_of(image: Tensor, channels: Tensor | None = None) -> list[Batch]:
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[:, :, 0, 0] = False
    return [Batch(image, valid, torch.full((len(image),), -1), None, channels)]


def test_what_a_model_copies_from_is_found_out() -> None:
    random = torch.Generator().manual_seed(3)
    alike = torch.rand(6, 1, 14, 16, generator=random).expand(-1, 3, -1, -1).contiguous()
    found = evaluate_sources(Copier(across=True).train(), batch_of(alike), seed=0, device="cpu")
    assert found is not None
    assert found.recovered(SAME_PLACE) == pytest.approx(1.0)
    assert found.recovered(NEIGHBOURS) == pytest.approx(0.0, abs=1e-6)
    assert set(found.per_channel[BOTH]) == {"red", "green", "blue"}
    flat = torch.rand(6, 3, 1, 1, generator=random).expand(-1, -1, 14, 16).contiguous()
    found = evaluate_sources(Copier(across=False), batch_of(flat), seed=0, device="cpu")
    assert found is not None
    assert found.recovered(NEIGHBOURS) == pytest.approx(1.0)
    assert found.recovered(SAME_PLACE) == pytest.approx(0.0, abs=1e-6)
    assert found.floors[NEIGHBOURS]["mean"] == pytest.approx(0.0, abs=1e-6)


def test_a_real_model_is_measured_on_a_subset_of_its_channels_and_whatever_the_batches() -> None:
    model = model_of(4)
    image = torch.rand(5, 3, 18, 13, generator=torch.Generator().manual_seed(1))
    channels = torch.tensor([3, 0, 2])
    # A head that predicts 7 tells hidden pixels from visible ones, which count as predicted 0.
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, 7.0)
    whole = evaluate_sources(model, batch_of(image, channels), seed=0, device="cpu")
    parts = [batch_of(image[i : i + 2], channels)[0] for i in range(0, 5, 2)]
    split = evaluate_sources(model, parts, seed=0, device="cpu")
    assert whole is not None
    assert split is not None
    assert set(whole.per_channel[SAME_PLACE]) == {"1", "3", "4"}
    for source, error in whole.masked_l1.items():
        assert error > 6
        assert split.masked_l1[source] == pytest.approx(error, rel=1e-5)


def test_one_channel_or_one_patch_has_no_two_sources() -> None:
    one = AuxMAE(1, image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    assert evaluate_sources(one, batch_of(torch.rand(2, 1, 16, 16)), seed=0, device="cpu") is None
    assert evaluate_sources(model_of(), batch_of(torch.rand(2, 3, 4, 4)), seed=0, device="cpu") is None

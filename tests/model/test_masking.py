"""Masks: how much is hidden, where, and how a given mask is read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.errors import SettingsError
from auxmae.model.masking import draw_mask, hidden_positions, mask_from_keep, visible_count


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 6),
    st.floats(0.05, 0.95),
    st.sampled_from(["independent", "shared", "block"]),
    st.integers(0, 1000),
)
def test_every_position_is_either_kept_or_masked(batch, channels, rows, columns, ratio, strategy, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = draw_mask(batch, channels, (rows, columns), ratio=ratio, strategy=strategy, generator=generator)
    both = torch.cat([mask.keep, mask.masked_index], 2).sort(2).values
    assert torch.equal(both, torch.arange(rows * columns).expand_as(both))
    assert mask.keep.shape[2] == visible_count(rows * columns, ratio)
    if strategy != "independent":
        assert mask.aligned
        assert torch.equal(mask.keep, mask.keep[:, :1].expand_as(mask.keep))


def test_independent_masks_differ_between_channels():
    mask = draw_mask(8, 13, (8, 8), ratio=0.75, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(mask.keep, mask.keep[:, :1].expand_as(mask.keep))
    frequency = (~hidden_positions(mask.keep, 64)).float().mean((0, 1))
    assert 0.1 < frequency.min() < frequency.max() < 0.45


def test_channel_masking_hides_whole_channels():
    mask = draw_mask(4, 8, (3, 3), ratio=0.75, strategy="channel", generator=torch.Generator().manual_seed(1))
    shown = (mask.keep >= 0).sum(2)
    assert set(shown.unique().tolist()) == {0, 9}
    assert ((shown > 0).sum(1) == 2).all()
    assert torch.equal(mask.rows, (shown > 0).float().topk(2, 1).indices.sort(1).values)
    with pytest.raises(SettingsError, match="only one"):
        draw_mask(1, 1, (3, 3), ratio=0.5, strategy="channel")


def test_block_masking_hides_squares():
    mask = draw_mask(16, 1, (12, 12), ratio=0.75, strategy="block", block_size=4, generator=torch.Generator().manual_seed(2))
    hidden = hidden_positions(mask.keep, 144).view(-1, 12, 12)
    # In contiguous squares most neighbours share their state; under random masks 62% do.
    assert (hidden[:, 1:] == hidden[:, :-1]).float().mean() > 0.8


def test_mixture_draws_each_strategy():
    generator = torch.Generator().manual_seed(3)
    kinds = set()
    for _ in range(40):
        mask = draw_mask(
            2,
            4,
            (4, 4),
            ratio=0.75,
            strategy="mixed",
            mixture={"independent": 1, "shared": 1, "channel": 1},
            generator=generator,
        )
        kinds.add("channel" if mask.ragged else "shared" if mask.aligned else "independent")
    assert kinds == {"channel", "shared", "independent"}


def test_given_mask_is_checked_and_ordered():
    mask = mask_from_keep(torch.tensor([[[5, 0, -1], [2, 1, 7]]]), 9)
    assert mask.keep.tolist() == [[[0, 5, -1], [1, 2, 7]]]
    assert mask.ragged
    assert not mask.aligned
    assert mask.masked_index[0, 0].tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert mask.masked_index[0, 1].tolist() == [0, 3, 4, 5, 6, 8, -1]
    for bad in ([[[0, 0]]], [[[9]]], [[[-2]]], [[[-1]]]):
        with pytest.raises(ValueError):
            mask_from_keep(torch.tensor(bad), 9)

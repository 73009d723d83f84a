"""Features: what is not valid, and what an image is padded with."""

from __future__ import annotations

import itertools

import pytest
import torch

from auxmae.model.mae import AuxMAE
from tests.model.small import tiny


@pytest.mark.parametrize("where", ["beyond the edge", "within"])
def test_pixels_that_are_not_valid_are_seen_as_the_mean_of_their_patch(where):
    torch.manual_seed(0)
    model = AuxMAE(3, image_size=16, patch_size=8, width=16, depth=2, heads=2).eval()
    filled = torch.rand(2, 3, 16, 24) + 1
    valid = torch.ones_like(filled, dtype=torch.bool)
    if where == "within":
        valid = torch.rand(filled.shape) < 0.7
    else:
        valid[:, :, 13:], valid[..., 20:] = False, False
    for b, c, row, column in itertools.product(range(2), range(3), range(2), range(3)):
        patch = (b, c, slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        known = filled[patch][valid[patch]]
        filled[patch][~valid[patch]] = known.mean() if len(known) else 0.0
    given = filled.masked_fill(~valid, torch.nan)
    with torch.inference_mode():
        expected = model.forward_features(filled, pool=None)
        assert torch.allclose(model.forward_features(given, pool=None), expected, atol=1e-5)
        channels_last = given.to(memory_format=torch.channels_last)
        assert torch.allclose(model.forward_features(channels_last, pool=None), expected, atol=1e-5)
        assert torch.allclose(model.forward_features(given.nan_to_num(9.0), valid=valid, pool=None), expected, atol=1e-5)
        if where != "within":
            assert torch.allclose(model.forward_features(given[:, :, :13, :20], pool=None), expected, atol=1e-5)
        assert not torch.allclose(model.forward_features(filled.masked_fill(~valid, 0.0), pool=None), expected, atol=1e-2)


@pytest.mark.parametrize("attention", ["aligned", "slotwise"])
@pytest.mark.parametrize("cls_tokens", [True, False])
def test_features_do_not_depend_on_what_an_image_is_padded_with(attention, cls_tokens):
    torch.manual_seed(3)
    model = tiny(channel_attention=attention, cls_tokens=cls_tokens).eval()
    image, first = torch.randn(3, 5, 16, 12), int(cls_tokens)
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[1, 0] = False  # a channel that one image lacks
    valid[1, 2, 4:8, 4:8] = False  # a patch that one channel lacks
    padding = (0, 21, 0, 9)
    larger, known = torch.nn.functional.pad(image, padding, value=7.0), torch.nn.functional.pad(valid, padding)
    rows, columns = model.grid(*larger.shape[2:])
    inside = [first + row * columns + column for row in range(4) for column in range(3)]
    with torch.inference_mode():
        for pool in ("mean", "concat", "attention", "moments", "moments+embedding", *(["cls"] if cls_tokens else [])):
            expected = model.forward_features(image, valid=valid, pool=pool)
            torch.testing.assert_close(model.forward_features(larger, valid=known, pool=pool), expected, rtol=1e-4, atol=1e-5)
            dense = model.dense_features(image, valid=valid, pool=pool)
            found = model.dense_features(larger, valid=known, pool=pool)
            torch.testing.assert_close(found[:, :, :4, :3], dense, rtol=1e-4, atol=1e-5)
        tokens = model.forward_features(image, valid=valid, pool=None)
        found = model.forward_features(larger, valid=known, pool=None)
        torch.testing.assert_close(found[:, :, inside], tokens[:, :, first:], rtol=1e-4, atol=1e-5)
        assert found.shape == (3, 5, first + rows * columns, 16)
        if attention == "slotwise":
            return
        assert int(found.count_nonzero()) == int(tokens.count_nonzero()) == 16 * (3 * 5 * (12 + first) - 12 - first - 1)
        # A channel without a valid pixel is one that is not there.
        without = valid[1:2].clone()
        without[:, 2] = True
        there = [1, 2, 3, 4]
        alone = model.forward_features(image[1:2, there], channels=there)
        torch.testing.assert_close(model.forward_features(image[1:2], valid=without), alone, rtol=1e-4, atol=1e-5)
        # Of an image without any valid pixel nothing is known.
        nothing = model.forward_features(image, valid=torch.zeros_like(valid))
        assert nothing.isfinite().all()
        torch.testing.assert_close(
            model.forward_features(image[2:], valid=valid[2:]),
            model.forward_features(image, valid=valid & (torch.arange(3) == 2)[:, None, None, None])[2:],
            rtol=1e-4,
            atol=1e-5,
        )

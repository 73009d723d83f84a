"""The plain published design: it hides what it says, and does the same arithmetic as AuxMAE."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from auxmae.benchmark.model_gate import share_weights
from auxmae.benchmark.peers import PlainAuxiliaryMAE
from auxmae.model.mae import AuxMAE

CHANNELS, SIZE, PATCH, WIDTH, HIDDEN, HEADS = 3, 16, 4, 32, 48, 4
POSITIONS = (SIZE // PATCH) ** 2


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return PlainAuxiliaryMAE(
        CHANNELS, image_size=SIZE, patch_size=PATCH, width=WIDTH, hidden=HIDDEN, heads=HEADS, depth=2, decoder_depth=2
    )


def test_loss_is_finite_and_every_parameter_gets_a_gradient(plain):
    loss = plain(torch.rand(2, CHANNELS, SIZE, SIZE))
    assert loss.shape == ()
    assert 0 < loss.item() < 1
    loss.backward()
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.5, 8), (0.9, 2)])
def test_the_encoder_sees_as_many_patches_as_the_ratio_leaves(ratio, kept):
    model = PlainAuxiliaryMAE(
        CHANNELS, image_size=SIZE, patch_size=PATCH, width=WIDTH, hidden=HIDDEN, heads=HEADS, depth=1, decoder_depth=1,
        mask_ratio=ratio,
    )  # fmt: skip
    seen = {}
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.update(encoder=inputs[0].shape))
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.update(decoder=inputs[0].shape))
    model(torch.rand(2, CHANNELS, SIZE, SIZE))
    assert seen["encoder"] == (2, CHANNELS, 1 + kept, WIDTH)
    assert seen["decoder"] == (2, CHANNELS, 1 + POSITIONS, WIDTH)


def test_the_loss_is_that_of_the_hidden_patches(plain):
    # Every prediction is sigmoid(0) = 1/2, and each patch has a value of its own.
    nn.init.zeros_(plain.head.weight)
    nn.init.zeros_(plain.head.bias)
    value = torch.rand(2, CHANNELS, POSITIONS)
    side = SIZE // PATCH
    image = value.view(2, CHANNELS, side, side).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    noise = torch.rand(2, CHANNELS, POSITIONS)
    hidden = noise.argsort(2).argsort(2) >= POSITIONS // 4
    assert plain(image, noise).item() == pytest.approx((value - 0.5).abs()[hidden].mean().item(), rel=1e-5)


def test_equals_auxmae_where_all_channels_show_the_same_places(plain):
    ours = AuxMAE(
        CHANNELS, image_size=SIZE, patch_size=PATCH, width=WIDTH, depth=2, heads=HEADS, hidden=HIDDEN, decoder_width=WIDTH,
        decoder_depth=2, decoder_hidden=HIDDEN, output_activation="sigmoid",
    )  # fmt: skip
    share_weights(ours, plain)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())
    image = torch.rand(2, CHANNELS, SIZE, SIZE)
    # Under independent masks the published design pairs the k-th kept patches, wherever they lie; AuxMAE those of one place.
    noise = torch.rand(2, 1, POSITIONS).expand(-1, CHANNELS, -1)
    keep = noise.argsort(2)[..., : POSITIONS // 4].sort(2).values
    expected = ours(image, keep).loss
    found = plain(image, noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (ours_gradient,) = torch.autograd.grad(expected, ours.patch_embedding.weight)
    (plain_gradient,) = torch.autograd.grad(found, plain.embed.weight)
    torch.testing.assert_close(plain_gradient, ours_gradient, rtol=1e-4, atol=1e-6)

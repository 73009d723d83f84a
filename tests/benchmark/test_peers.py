"""The plain published design: it hides what it says, and does the same arithmetic as AuxMAE."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from auxmae.benchmark.peers import PlainAuxiliaryMAE
from auxmae.model.blocks import NORM_EPS
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


def test_the_loss_is_that_of_the_hidden_patches(plain, monkeypatch):
    # Every prediction is sigmoid(0) = 1/2, and each patch has a value of its own.
    nn.init.zeros_(plain.head.weight)
    nn.init.zeros_(plain.head.bias)
    value = torch.rand(2, CHANNELS, POSITIONS)
    side = SIZE // PATCH
    image = value.view(2, CHANNELS, side, side).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    noise = torch.rand(2, CHANNELS, POSITIONS)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: noise)
    hidden = noise.argsort(2).argsort(2) >= POSITIONS // 4
    assert plain(image).item() == pytest.approx((value - 0.5).abs()[hidden].mean().item(), rel=1e-5)


def load_into(ours, plain):
    """Gives AuxMAE the plain model's weights."""

    def copy(target, source):
        target.data.copy_(source.data.view_as(target))

    def linear(target, source):
        copy(target.weight, source.weight)
        copy(target.bias, source.bias)

    linear(ours.patch_embedding, plain.embed)
    copy(ours.channel_embedding.weight, plain.channel)
    copy(ours.cls_token, plain.cls)
    linear(ours.decoder_embedding, plain.decoder_embed)
    copy(ours.decoder_channel_embedding.weight, plain.decoder_channel)
    copy(ours.mask_token, plain.mask)
    linear(ours.head, plain.head)
    for blocks, norm, source in (
        (ours.encoder, ours.encoder_norm, plain.encoder),
        (ours.decoder, ours.decoder_norm, plain.decoder),
    ):
        *others, last = source
        linear(norm, last)
        for block, other in zip(blocks, others, strict=True):
            for target, layers in ((block.feed_forward_in, other.first), (block.feed_forward_out, other.second)):
                linear(target.norm, layers[0])
                linear(target.fc1, layers[1])
                linear(target.fc2, layers[4])
            for target, attention, layer_norm in (
                (block.patch_attention, other.patch, other.patch_norm),
                (block.channel_attention, other.channel, other.channel_norm),
            ):
                linear(target.norm, layer_norm)
                copy(target.qkv.weight, attention.in_proj_weight)
                copy(target.qkv.bias, attention.in_proj_bias)
                linear(target.projection, attention.out_proj)


def test_equals_auxmae_where_all_channels_show_the_same_places(plain, monkeypatch):
    for module in plain.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = NORM_EPS
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.1)
    ours = AuxMAE(
        CHANNELS, image_size=SIZE, patch_size=PATCH, width=WIDTH, depth=2, heads=HEADS, hidden=HIDDEN, decoder_width=WIDTH,
        decoder_depth=2, decoder_hidden=HIDDEN, output_activation="sigmoid",
    )  # fmt: skip
    load_into(ours, plain)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())
    image = torch.rand(2, CHANNELS, SIZE, SIZE)
    # Under independent masks the published design pairs the k-th kept patches, wherever they lie; AuxMAE those of one place.
    noise = torch.rand(2, 1, POSITIONS).expand(-1, CHANNELS, -1)
    keep = noise.argsort(2)[..., : POSITIONS // 4].sort(2).values
    expected = ours(image, keep).loss
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: noise)
    found = plain(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (ours_gradient,) = torch.autograd.grad(expected, ours.patch_embedding.weight)
    (plain_gradient,) = torch.autograd.grad(found, plain.embed.weight)
    torch.testing.assert_close(plain_gradient, ours_gradient, rtol=1e-4, atol=1e-6)

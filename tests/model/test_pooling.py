"""From tokens to features: every choice against its formula, and gradients that are finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.errors import SettingsError
from auxmae.model.embedding import sincos_positions
from auxmae.model.pooling import pool_windows
from tests.model.small import tiny


def test_pooling_choices():
    model = tiny()
    image = torch.rand(2, 5, 16, 16)
    assert model.forward_features(image).shape == (2, model.num_features)
    assert model.forward_features(image, pool="cls").shape == (2, 16)
    assert model.forward_features(image, pool="concat").shape == (2, 80)
    assert model.forward_features(image, pool="attention").shape == (2, 16)
    tokens = model.forward_features(image, pool=None)[:, :, 1:]
    moments = torch.cat([tokens.mean(2).flatten(1), tokens.std(2, correction=0).flatten(1)], 1)
    torch.testing.assert_close(model.forward_features(image, pool="moments"), moments)
    # Each channel's patches through its linear map, with its vector and the places' sines and cosines; the CLS tokens apart.
    patches = image.double().unfold(2, 4, 4).unfold(3, 4, 4).reshape(2, 5, 16, 16)
    weight, bias = (each.double() for each in model.patch_embedding.select(None))
    places = sincos_positions(4, 4, 16).double() + model.channel_embedding(None).double()[:, None]
    embedded = torch.einsum("bgnp,gdp->bgnd", patches, weight.expand(5, -1, -1)) + bias.expand(5, 1, -1) + places
    beside = torch.cat([embedded, tokens.double()], 3)
    both = torch.cat([beside.mean(2).flatten(1), beside.std(2, correction=0).flatten(1)], 1)
    torch.testing.assert_close(model.forward_features(image, pool="moments+embedding"), both.float())
    at_places = beside.transpose(1, 2).flatten(2).transpose(1, 2).reshape(2, 160, 4, 4)
    torch.testing.assert_close(model.dense_features(image, pool="moments+embedding"), at_places.float())
    order = [3, 0, 4, 1, 2]
    for pool in ("concat", "moments", "moments+embedding"):
        turned = model.forward_features(image[:, order], channels=order, pool=pool)
        torch.testing.assert_close(turned, model.forward_features(image, pool=pool))
    assert model.dense_features(image, pool="moments").equal(model.dense_features(image, pool="concat"))
    assert model.forward_features(image, pool=None).shape == (2, 5, 17, 16)
    assert model.dense_features(image, pool="concat").shape == (2, 80, 4, 4)
    for unknown in ("median", "moments+embeddings"):
        with pytest.raises(SettingsError, match="pooling"):
            model.forward_features(image, pool=unknown)
        with pytest.raises(SettingsError, match="pooling"):
            model.dense_features(image, pool=unknown)


@pytest.mark.parametrize("size", [16, 4])
def test_a_channel_without_spread_has_a_finite_gradient(size):
    """One patch that counts, or none, or an image of one patch: the deviation is 0, and so is its gradient."""
    model = tiny(2)
    valid = torch.zeros(1, 2, size, size, dtype=torch.bool)
    valid[:, 0, :4, :4] = True
    features = model.forward_features(torch.rand(1, 2, size, size), valid=valid, pool="moments")
    assert features[:, 32:].eq(0).all()
    features.sum().backward()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_windows_count_by_their_valid_pixels(seed, windows, images):
    """All alike where an image has none; one window alone is taken over to the bit."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((windows, images, 7)).astype(np.float32)
    valid = random.integers(0, 200 * 512**2, (windows, images)) * (random.random((windows, images)) < 0.6)
    found = pool_windows(torch.from_numpy(features), torch.from_numpy(valid))
    weight = np.where(valid.sum(0) > 0, valid, 1)
    for image in range(images):
        expected = np.average(features[:, image].astype(np.float64), axis=0, weights=weight[:, image])
        np.testing.assert_allclose(found[image].numpy(), expected, rtol=1e-6, atol=1e-7)
        one = pool_windows(torch.from_numpy(features[:, image]), torch.from_numpy(valid[:, image]))
        torch.testing.assert_close(one, found[image])
    assert windows > 1 or torch.equal(found, torch.from_numpy(features[0]))

"""The model: alignment, what is hidden stays hidden, channels by name, sizes, saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from auxmae.errors import CheckpointError, DataError, SettingsError
from auxmae.model.mae import AuxMAE
from auxmae.model.masking import hidden_positions
from tests.model.small import ragged_keep, tiny


@pytest.mark.parametrize("strategy", ["independent", "shared", "channel", "block", "mixed"])
@pytest.mark.parametrize("cls_tokens", [True, False])
def test_a_step_gives_a_gradient_to_every_parameter(strategy, cls_tokens):
    model = tiny(mask_strategy=strategy, cls_tokens=cls_tokens, mask_mixture={"independent": 1.0, "channel": 1.0}).train()
    out = model(torch.rand(2, 5, 16, 16), generator=torch.Generator().manual_seed(0))
    out.loss.backward()
    assert out.loss.isfinite()
    assert out.loss > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_output_shapes_follow_the_interface():
    model = tiny()
    keep = ragged_keep(3, 5, 16, 4)
    out = model(torch.rand(3, 5, 16, 16), keep)
    assert out.prediction.shape == (3, 5, 12, 16)
    assert out.masked_index.shape == (3, 5, 12)
    assert torch.equal(out.keep, keep)


def test_loss_is_the_l1_of_the_hidden_patches():
    model = tiny()
    image = torch.rand(2, 5, 16, 16, dtype=torch.float32)
    keep = ragged_keep(2, 5, 16, 4)
    out = model(image, keep)
    patches = image.view(2, 5, 4, 4, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(2, 5, 16, 16)
    target = patches.gather(2, out.masked_index[..., None].expand(-1, -1, -1, 16))
    expected = (out.prediction.double() - target.double()).abs().mean()
    assert torch.allclose(out.loss.double(), expected, atol=1e-6)


def encoder_tokens(model, image, keep):
    inputs = model._prepare(image, None, None)
    mask = model._given(inputs, keep)
    return model._encode(model._embed(inputs, mask), mask, inputs)


def test_channel_attention_is_aligned_by_position():
    """The first block's channel attention lets a token see its own place in other channels, and no other place there.

    Patch attention is silenced (its projection is zero), so that any path between places would be channel attention's.
    """
    model = tiny(cls_tokens=False, depth=1)
    attention = model.encoder[0].patch_attention
    torch.nn.init.zeros_(attention.projection.weight)
    torch.nn.init.zeros_(attention.projection.bias)
    image = torch.rand(1, 5, 16, 16)
    keep = ragged_keep(1, 5, 16, 6, seed=3)
    before = encoder_tokens(model, image, keep)
    seen_other = seen_own = 0
    for channel in range(5):
        for token, place in enumerate(keep[0, channel].tolist()):
            changed = image.clone()
            row, column = divmod(place, 4)
            changed[0, channel, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
            difference = (encoder_tokens(model, changed, keep) - before).abs().amax(-1)[0]
            for other in range(5):
                for index, where in enumerate(keep[0, other].tolist()):
                    if (other, index) == (channel, token):
                        continue
                    if where == place and other != channel:
                        assert difference[other, index] > 1e-6
                        seen_own += 1
                    else:
                        assert difference[other, index] == 0
                        seen_other += 1
    assert seen_own > 5
    assert seen_other > 100


def test_slotwise_channel_attention_joins_the_kth_visible_patches():
    """The published way: token k of every channel attends to token k of the others, whatever place it shows."""
    model = tiny(cls_tokens=False, depth=1, channel_attention="slotwise")
    attention = model.encoder[0].patch_attention
    torch.nn.init.zeros_(attention.projection.weight)
    torch.nn.init.zeros_(attention.projection.bias)
    image = torch.rand(1, 5, 16, 16)
    keep = ragged_keep(1, 5, 16, 6, seed=3)
    before = encoder_tokens(model, image, keep)
    for channel, token in ((0, 0), (2, 3), (4, 5)):
        changed = image.clone()
        row, column = divmod(int(keep[0, channel, token]), 4)
        changed[0, channel, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
        difference = (encoder_tokens(model, changed, keep) - before).abs().amax(-1)[0]
        assert (difference[:, token] > 1e-6).all()
        assert difference[:, [k for k in range(6) if k != token]].eq(0).all()


def test_slotwise_and_aligned_agree_where_every_channel_shows_the_same_places():
    image = torch.rand(2, 5, 16, 16)
    aligned, slotwise = tiny(), tiny(channel_attention="slotwise")
    shared = ragged_keep(2, 1, 16, 4).expand(-1, 5, -1)
    assert torch.equal(aligned(image, shared).loss, slotwise(image, shared).loss)
    assert torch.equal(aligned.forward_features(image), slotwise.forward_features(image))
    ragged = ragged_keep(2, 5, 16, 4)
    assert not torch.equal(aligned(image, ragged).loss, slotwise(image, ragged).loss)


def test_the_embedding_activation_comes_ahead_of_position_and_channel():
    plain, activated = (
        AuxMAE(2, image_size=8, patch_size=4, width=8, heads=2, depth=1, embedding_activation=name) for name in ("none", "gelu")
    )
    activated.load_state_dict(plain.state_dict())
    inputs = plain._prepare(torch.rand(1, 2, 8, 8), None, None)
    mask = plain._given(inputs, torch.tensor([[[0, 3], [1, 2]]]))
    position = plain._positions(inputs.grid, 8, inputs.image.device)[1:][mask.keep] + plain.channel_embedding()[:, None]
    projected = plain._embed(inputs, mask)[:, :, 1:] - position
    torch.testing.assert_close(activated._embed(inputs, mask)[:, :, 1:], torch.nn.functional.gelu(projected) + position)
    with pytest.raises(SettingsError, match="embedding_activation 'relu'"):
        AuxMAE(2, embedding_activation="relu")


def test_an_unknown_channel_attention_is_named():
    with pytest.raises(SettingsError, match="channel_attention 'slots'"):
        tiny(channel_attention="slots")


@pytest.mark.parametrize("strategy", ["independent", "shared", "channel", "block"])
def test_a_hidden_pixel_never_reaches_the_encoder(strategy):
    model = tiny(mask_strategy=strategy)
    image = torch.rand(2, 5, 16, 16)
    keep = model.draw_mask(image.shape, torch.Generator().manual_seed(4))
    hidden = model.reconstruct(image, keep).hidden
    poisoned = torch.where(hidden, torch.nan, image)
    assert hidden.any()
    assert torch.equal(encoder_tokens(model, image, keep), encoder_tokens(model, poisoned, keep))
    assert torch.equal(model(image, keep).prediction, model(poisoned, keep).prediction)


def test_invalid_pixels_do_not_count():
    model = tiny()
    image = torch.rand(2, 5, 16, 16)
    keep = ragged_keep(2, 5, 16, 4)
    valid = torch.rand(2, 5, 16, 16) > 0.3
    wild = torch.where(valid, image, 1e6)
    nan = torch.where(valid, image, torch.nan)
    assert torch.equal(model(wild, keep, valid=valid).loss, model(nan, keep).loss)
    model.train()
    model(nan, keep).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("groups", [1, (("a", "c"), ("b", "d"), ("e",))], ids=["single", "groups"])
@pytest.mark.parametrize("size", [(16, 16), (10, 13)])
@pytest.mark.parametrize("known", [1.0, 0.6])
@pytest.mark.parametrize("channels", [None, ("e", "c", "a")])
def test_the_output_tells_how_many_pixels_its_loss_is_of(groups, size, known, channels):
    model = tiny(tuple("abcde"), channel_groups=groups, mask_ratio=0.6)
    image = torch.rand(2, len(channels or "abcde"), *size)
    valid = torch.rand(image.shape) < known
    image[0, 1, :5, :5] = torch.nan if known < 1 else 1.0
    out = model(image, valid=valid, channels=channels)
    hidden = model.reconstruct(image, out.keep, valid=valid, channels=channels).hidden
    assert out.count().item() == (hidden & valid & image.isfinite()).sum().item() > 0


def test_ragged_keep_equals_the_same_tokens_without_padding():
    """A channel that shows fewer patches than another changes nothing for an image where all show as few."""
    model = tiny()
    image = torch.rand(2, 5, 16, 16)
    keep = ragged_keep(2, 5, 16, 4)
    padded = torch.nn.functional.pad(keep, (0, 3), value=-1)
    padded[1, :, 4:] = hidden_positions(keep[1:], 16)[0].nonzero()[:, 1].view(5, -1)[:, :3]
    assert (padded[1] >= 0).all()
    assert torch.allclose(model(image, padded).prediction[0, :, :12], model(image, keep).prediction[0], atol=1e-5)


def test_hidden_channels_match_between_the_compact_and_the_ragged_way():
    """Whole hidden channels are dropped from the encoder; the general ragged path must say the same."""
    model = tiny()
    image = torch.rand(2, 5, 16, 16)
    everything = torch.arange(16).expand(2, 5, 16).clone()
    everything[0, [1, 3]] = -1
    everything[1, [0, 4]] = -1
    compact = model(image, everything)
    uneven = everything.clone()
    uneven[1, 1] = -1  # two and three channels hidden: no compact form
    general = model(image, uneven)
    assert torch.allclose(compact.prediction[0, 1], general.prediction[0, 1], atol=1e-5)


def test_shown_channels_of_different_places_attend_by_place():
    """What is alike in two batches comes out alike, though one of them could do without the hidden channels."""
    model = tiny()
    image = torch.rand(2, 5, 16, 16)
    keep = torch.full((2, 5, 4), -1)
    keep[:, 0] = torch.tensor([0, 1, 2, 3])
    keep[:, 1] = torch.tensor([2, 3, 4, 5])
    uneven = keep.clone()
    uneven[1, 2] = torch.tensor([2, 3, 4, 5])
    assert torch.allclose(model(image, keep).prediction[0], model(image, uneven).prediction[0], atol=1e-5)


def test_channels_by_name_in_any_order():
    names = ["B02", "B03", "B04", "B08"]
    model = tiny(names)
    image = torch.rand(2, 4, 16, 16)
    full = model.forward_features(image)
    order = [2, 0, 3, 1]
    shuffled = model.forward_features(image[:, order], channels=[names[i] for i in order])
    assert torch.allclose(full, shuffled, atol=1e-5)
    subset = model.forward_features(image[:, [3, 1]], channels=["B08", "B03"])
    assert torch.allclose(subset, model.forward_features(image[:, [1, 3]], channels=[1, 3]), atol=1e-5)
    for numbers in (np.array([3, 1]), [np.int32(3), np.int64(1)], torch.tensor([3, 1])):
        assert torch.equal(model.forward_features(image[:, [3, 1]], channels=numbers), subset)
    with pytest.raises(DataError, match="'True'"):
        model.forward_features(image[:, :1], channels=[True])
    with pytest.raises(DataError, match="index 4"):
        model.forward_features(image[:, :1], channels=np.array([4]))
    out = model(image[:, [3, 1]], channels=["B08", "B03"])
    assert out.prediction.shape[1] == 2
    with pytest.raises(DataError, match="B99"):
        model.forward_features(image[:, :1], channels=["B99"])
    with pytest.raises(DataError, match="3 channels"):
        model.forward_features(image[:, :3])


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (1, 1), (40, 9)])
def test_any_image_size(size):
    model = tiny()
    image = torch.rand(2, 5, *size)
    rows, columns = model.grid(*size)
    reconstruction = model.reconstruct(image)
    assert reconstruction.prediction.shape == image.shape
    assert model.dense_features(image).shape == (2, 16, rows, columns)
    assert model(image).loss.isfinite()


def test_padding_is_invisible_to_the_loss():
    model = tiny()
    image = torch.rand(1, 5, 13, 13)
    padded = torch.full((1, 5, 16, 16), 7.0)
    padded[..., :13, :13] = image
    valid = torch.zeros(1, 5, 16, 16, dtype=torch.bool)
    valid[..., :13, :13] = True
    keep = ragged_keep(1, 5, 16, 4)
    assert torch.equal(model(image, keep).loss, model(padded, keep, valid=valid).loss)


@pytest.mark.parametrize("groups", [2, (("a", "c"), ("b", "e", "d"))])
def test_channel_groups(groups):
    names = list("abcde")
    model = tiny(names, channel_groups=groups)
    image = torch.rand(2, 5, 16, 16)
    model.train()
    out = model(image)
    out.loss.backward()
    assert out.prediction.shape[1] == len(model.groups)
    model.eval()
    order = [names.index(n) for g in model.groups for n in g]
    assert torch.allclose(
        model.forward_features(image),
        model.forward_features(image[:, order], channels=[names[i] for i in order]),
        atol=1e-5,
    )
    keep = model.draw_mask(image.shape, torch.Generator().manual_seed(0))
    assert torch.isfinite(model.reconstruct(image, keep).prediction).all()
    first = model.groups[0]
    with pytest.raises(DataError, match="shares a token"):
        model.forward_features(image[:, :1], channels=[first[0]])


def test_reconstruction_lays_predictions_where_they_belong():
    model = tiny()
    image = torch.rand(2, 5, 16, 16)
    keep = ragged_keep(2, 5, 16, 4)
    out = model(image, keep)
    reconstruction = model.reconstruct(image, keep)
    place = out.masked_index[1, 2, 5].item()
    row, column = divmod(place, 4)
    patch = reconstruction.prediction[1, 2, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
    # Without gradients the attention is computed another way.
    assert torch.allclose(patch.flatten(), out.prediction[1, 2, 5], atol=1e-5)
    assert reconstruction.hidden.float().mean() == 0.75
    assert (reconstruction.prediction[~reconstruction.hidden] == 0).all()


def test_normalised_targets_come_back_without_ground_truth():
    model = tiny(normalize=True)
    image = 100 + 10 * torch.rand(2, 5, 16, 16)
    keep = ragged_keep(2, 5, 16, 4)
    reconstruction = model.reconstruct(image, keep)
    other = torch.where(reconstruction.hidden, -1e3, image)
    assert torch.equal(reconstruction.prediction, model.reconstruct(other, keep).prediction)
    assert 80 < reconstruction.prediction[reconstruction.hidden].mean() < 130


def test_wavelength_embedding_and_its_need():
    model = tiny(["a", "b"], channel_embedding="wavelength", wavelengths=[450.0, 2200.0])
    assert model(torch.rand(1, 2, 16, 16)).loss.isfinite()
    with pytest.raises(SettingsError, match="wavelengths"):
        tiny(["a", "b"], channel_embedding="wavelength")


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 16, "hidden": 48},
        {"width": 16, "decoder_width": 48},
        {"width": 48, "channel_embedding": "wavelength", "wavelengths": [450.0, 550.0, 650.0]},
    ],
    ids=["hidden", "decoder", "wavelength"],
)
def test_matrices_fill_xavier_bounds_whatever_their_shapes(sizes):
    """Of uniform draws within ±b the root mean square is b / √3; only queries, keys and values are three matrices in one."""
    for name, parameter in tiny(3, **sizes).named_parameters():
        if parameter.ndim == 2 and not name.endswith("channel_embedding.weight"):
            outputs, inputs = parameter.shape
            bound = (6 / (inputs + outputs / (3 if "qkv" in name else 1))) ** 0.5
            assert parameter.abs().max() <= bound, name
            assert parameter.square().mean().sqrt().item() == pytest.approx(bound / 3**0.5, rel=0.12), name


def test_recompute_changes_no_gradient():
    image = torch.rand(2, 5, 16, 16)
    keep = ragged_keep(2, 5, 16, 4)
    gradients = []
    for recompute in (False, True):
        model = tiny().train()
        model.set_recompute(recompute)
        model(image, keep).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_saved_and_loaded_gives_the_same_features(tmp_path):
    names = ["a", "b", "c"]
    model = tiny(names, wavelengths=[450.0, 550.0, 650.0], scaling={"method": "none"})
    model.save_pretrained(tmp_path / "model")
    loaded = AuxMAE.from_pretrained(tmp_path / "model")
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.forward_features(image), loaded.forward_features(image))
    assert loaded.channel_names == ("a", "b", "c")
    assert loaded.wavelengths == (450.0, 550.0, 650.0)
    assert loaded.scaling == {"method": "none"}


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        AuxMAE.from_pretrained(tmp_path / "nowhere")
    tiny().save_pretrained(tmp_path / "model")
    with pytest.raises(TypeError, match="revision, patch_size cannot apply"):
        AuxMAE.from_pretrained(tmp_path / "model", revision="main", patch_size=8)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        AuxMAE.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        AuxMAE.from_pretrained(tmp_path / "model")

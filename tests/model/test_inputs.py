"""Images on their way into the network: what is known to be whole is not gone through; types, empty batches, validity."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle

import numpy as np
import pytest
import torch
from auxmae_kernels import boundary

from auxmae.errors import DataError
from auxmae.model import embedding
from auxmae.model.embedding import ChannelSelection, sincos_positions
from auxmae.model.inputs import Preparation
from auxmae.model.mae import AuxMAE
from tests.model.small import TINY, ragged_keep, tiny


def model_of(**options):
    torch.manual_seed(0)
    settings = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "image_size": 16, "decoder_heads": 2}
    return AuxMAE(5, **{**settings, **options}).double()


def results(model, image, valid, channels):
    model.zero_grad()
    names = list(model.channel_names)
    kept = names if channels is None else [names[index] for index in channels]
    generator = torch.Generator().manual_seed(0)
    keep = model.draw_mask((len(image), 5, 16, 16), generator) if channels is None else None
    out = model(image, keep, valid=valid, channels=kept, generator=generator)
    out.loss.backward()
    gradients = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
    picture = model.reconstruct(image, valid=valid, channels=kept, generator=torch.Generator().manual_seed(1)).prediction
    with torch.no_grad():
        return [
            out.loss.detach(),
            *(each for each in gradients if each is not None),
            picture,
            model.dense_features(image, valid=valid, channels=kept),
        ]


@pytest.mark.parametrize(
    "options", [{}, {"normalize": True}, {"channel_groups": 2, "loss_kind": "mse"}, {"mask_strategy": "channel"}]
)
@pytest.mark.parametrize("channels", [None, [3, 1, 0, 2, 4], [4, 0, 1]])
def test_a_whole_image_gives_what_it_gives_where_nothing_may_be_looked_at(monkeypatch, options, channels):
    """On a GPU, where looking means waiting, every image goes the long way."""
    model = model_of(**options)
    image = torch.rand(3, 5 if channels is None else len(channels), 16, 16, dtype=torch.float64)
    turned = image.transpose(2, 3).contiguous().transpose(2, 3)
    found = [results(model, image, valid, channels) for valid in (None, torch.ones(1, 1, 16, 16, dtype=torch.bool))]
    found.append(results(model, turned, None, channels))
    monkeypatch.setattr(boundary, "reading_is_free", lambda tensor: False)
    expected = results(model, image, None, channels)
    for each in found:
        for a, b in zip(each, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(bad):
    model = model_of()
    image = torch.rand(2, 5, 16, 16, dtype=torch.float64)
    image[1, 2, 3, 4] = bad
    valid = image.isfinite()
    prepared = model._prepare(image, None, None)
    assert torch.equal(prepared.valid, valid)
    assert model._prepare(image.nan_to_num(0, 0, 0), valid, None).valid is not None
    assert prepared.image.isfinite().all()


def test_values_whose_sum_overflows_stay_as_they_are():
    image = torch.full((1, 5, 16, 16), 3e38, dtype=torch.float64)
    prepared = model_of()._prepare(image, None, None)
    assert prepared.valid is None or prepared.valid.all()
    assert torch.equal(prepared.image, image)


@pytest.mark.parametrize("shape", [(0, 5, 16, 16), (1, 5, 16, 15)])
def test_empty_batches_and_images_that_patches_do_not_divide(shape):
    prepared = model_of()._prepare(torch.rand(shape), None, None)
    assert prepared.image.shape == (shape[0], 5, 16, 16)
    assert prepared.valid is None if shape[3] == 16 else not prepared.valid.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_model_of_another_type_takes_images_of_any(dtype, normalize):
    options = {"normalize": normalize, "channel_embedding": "wavelength", "wavelengths": [450, 560, 665, 842, 1610]}
    plain = tiny(**options)
    model = tiny(**options).to(dtype)
    image = (8 * torch.rand(2, 5, 13, 16)).round()
    keep = ragged_keep(2, 5, 16, 4)
    tolerance = {"rtol": 0.1, "atol": 0.1} if dtype != torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for given in (image, image.double(), image.half(), image.to(torch.uint8)):
        out, picture = model(given, keep), model.reconstruct(given, keep).prediction
        assert out.prediction.dtype == picture.dtype == model.forward_features(given).dtype == dtype
        torch.testing.assert_close(out.loss, plain(image, keep).loss, check_dtype=False, **tolerance)
        expected = plain.reconstruct(image, keep).prediction
        assert (picture.float() - expected).norm() < 0.05 * expected.norm()
    out.loss.backward()


def test_double_precision_knows_no_table_of_less():
    model = tiny(2, channel_embedding="wavelength", wavelengths=[450.3, 2200.7]).double()
    position = model._positions((5, 5), 16, torch.device("cpu"))[1:]
    assert torch.equal(position, sincos_positions(5, 5, 16))
    assert not torch.equal(position, position.float().double())
    features = model.channel_embedding.features
    octaves = [np.log(wave) * np.pi / 4 * 2.0**octave for wave in (450.3, 2200.7) for octave in range(8)]
    np.testing.assert_allclose(features[:, :8].flatten(), np.sin(octaves), rtol=0, atol=1e-12)


def test_empty_batches_and_arrays_in_place_of_tensors():
    for model in (tiny(), tiny(normalize=True, channel_groups=2)):
        nothing = torch.rand(0, 5, 13, 16)
        assert model.dense_features(nothing).shape == (0, 16, 4, 4)
        assert model.forward_features(nothing, pool="moments").shape[0] == 0
        assert model.reconstruct(nothing).prediction.shape == nothing.shape
    array = np.zeros((1, 5, 16, 16))
    for function in (model, model.reconstruct, model.forward_features, model.dense_features):
        with pytest.raises(TypeError, match="image must be a tensor, not ndarray"):
            function(array)
    with pytest.raises(TypeError, match="valid must be a tensor, not ndarray"):
        model(torch.zeros(1, 5, 16, 16), valid=array > 0)


def test_a_keep_that_is_no_tensor_of_integers_is_told():
    model, image = tiny(), torch.rand(2, 5, 16, 16)
    keep = model.draw_mask(image.shape)
    for function in (model, model.reconstruct):
        for given, kind in ((keep.numpy(), "ndarray"), (keep.tolist(), "list")):
            with pytest.raises(TypeError, match=f"keep must be a tensor, not {kind}"):
                function(image, given)
        for wrong in (torch.ones(2, 5, 16, dtype=torch.bool), keep.float(), keep.to(torch.complex64)):
            with pytest.raises(ValueError, match=r"keep must be integers of shape \(B, C, K\), not torch\."):
                function(image, wrong)


def test_images_without_pixels_and_channels_named_by_one_text_are_told():
    model = tiny(["red", "green"])
    for function in (model, model.reconstruct, model.forward_features, model.dense_features):
        with pytest.raises(ValueError, match=r"image \(1, 2, 0, 16\) has no pixels"):
            function(torch.zeros(1, 2, 0, 16))
        with pytest.raises(DataError, match="channels is one text, 'red'") as told:
            function(torch.zeros(1, 1, 16, 16), channels="red")
        assert told.value.hint == "give a list: channels=['red']"


def test_valid_broadcasts_to_the_image_and_is_bool():
    model = tiny()
    image = torch.rand(2, 5, 16, 16)
    for shape in ((2, 1, 16, 16), (16, 16), (1, 5, 1, 1)):
        model.forward_features(image, valid=torch.ones(shape, dtype=torch.bool))
    for shape in ((3, 5, 16, 16), (1, 2, 5, 16, 16), (2, 5, 8, 16)):
        for function in (model, model.reconstruct, model.forward_features, model.dense_features):
            with pytest.raises(ValueError, match="does not broadcast"):
                function(image, valid=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not broadcast"):
        model(image[:1], valid=torch.ones(2, 5, 16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="valid must be bool"):
        model(image, valid=torch.ones(2, 5, 16, 16))


def test_what_inference_left_behind_serves_training():
    model = AuxMAE(["a", "b", "c", "d"], **{**TINY, "channel_groups": [["c", "d"], ["a", "b"]]})
    image = torch.rand(2, 4, 16, 16)
    with torch.inference_mode():
        model.forward_features(image)
    model(image).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_was_moved_for_inference_learns():
    model = tiny(3, channel_embedding="wavelength", wavelengths=[450, 560, 665])
    with torch.inference_mode():
        model.to("cpu")
    model(torch.rand(2, 3, 16, 16)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_position_tables_do_not_pile_up_and_are_no_part_of_copies(monkeypatch):
    model = tiny(1)
    expected = {side: model.forward_features(torch.ones(1, 1, side, side)) for side in (4, 8)}
    sizes = [len(pickle.dumps(model))]
    for rows, columns in itertools.product(range(1, 9), repeat=2):
        model.forward_features(torch.ones(1, 1, 4 * rows, 4 * columns))
    assert 2 <= len(held_tables(model)) <= 40
    sizes.append(len(pickle.dumps(model)))
    assert sizes[0] == sizes[1]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not held_tables(other)
        for side, features in expected.items():
            assert torch.equal(other.forward_features(torch.ones(1, 1, side, side)), features)
    # What a CUDA graph reads stays where it is.
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_capturing", lambda device: True)
        captured = model._positions((3, 2), 16, torch.device("cpu"))
    for rows, columns in itertools.product(range(1, 9), repeat=2):
        model._positions((rows, columns), 16, torch.device("cpu"))
        assert model._positions((3, 2), 16, torch.device("cpu")) is captured
    assert len(held_tables(model)) <= 40


def held_tables(model):
    return [table for held in vars(model._tables).values() if isinstance(held, dict) for table in held.values()]


def test_sets_of_channels_do_not_pile_up():
    names = tuple("abcdef")
    prepare = Preparation(names, [[name] for name in names], 4)
    for kept in itertools.permutations(names, 4):
        prepare(torch.rand(1, 4, 4, 4), None, kept, torch.float32)
    gc.collect()
    held = [each for each in gc.get_objects() if type(each) is ChannelSelection and set(each.names) <= set(names)]
    assert len(held) < 100

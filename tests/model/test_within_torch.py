"""The model among what else is made of PyTorch: torch.func, device meta, adapters of its layers."""

from __future__ import annotations

import copy

import pytest
import torch

from auxmae.errors import UsageError
from auxmae.model.mae import AuxMAE
from tests.model.small import tiny


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("size", [16, 13])
def test_gradients_of_every_image_by_torch_func(size):
    """One network's for a batch at once, as for influence functions and private training: of the features, and of the loss."""
    model, images = tiny(), torch.rand(3, 5, size, size)
    parameters = dict(model.named_parameters())

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model.forward_features(image[None], pool="moments").square().sum()

    network = Features()
    found = torch.func.vmap(
        torch.func.grad(lambda given, image: torch.func.functional_call(network, given, (image,))), in_dims=(None, 0)
    )({f"model.{name}": value for name, value in parameters.items()}, images)
    for index, image in enumerate(images):
        expected = torch.autograd.grad(network(image), parameters.values(), allow_unused=True, materialize_grads=True)
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[f"model.{name}"][index], value, rtol=1e-4, atol=1e-5)

    keep = model.draw_mask(images.shape)
    found = torch.func.grad(lambda given: torch.func.functional_call(model, given, (images, keep)).loss)(parameters)
    expected = torch.autograd.grad(model(images, keep).loss, parameters.values())
    torch.testing.assert_close(list(found.values()), list(expected), rtol=1e-4, atol=1e-6)
    drawn = torch.func.vmap(
        torch.func.grad(lambda given, image: torch.func.functional_call(model, given, (image[None],)).loss),
        in_dims=(None, 0), randomness="different",
    )(parameters, images)  # fmt: skip
    assert all(value.isfinite().all() for value in drawn.values())


def test_a_model_without_memory_tells_shapes():
    with torch.device("meta"):
        model = AuxMAE(5, patch_size=4, width=16, depth=2, heads=2, decoder_depth=1, dropout=0.1)
        out = model(torch.rand(2, 5, 15, 16))
        out.loss.backward()
        assert model.forward_features(torch.rand(2, 5, 15, 16)).shape == (2, 16)
    assert (out.loss.shape, out.prediction.shape) == ((), (2, 5, 12, 16))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channel_groups": [["5", "2"], ["1"], ["3", "4"]], "normalize": True},
        {"mask_strategy": "mixed", "mask_mixture": {"independent": 1, "channel": 1}},
        {"channel_attention": "slotwise", "channel_embedding": "wavelength", "wavelengths": [450, 560, 665, 842, 1610]},
    ],
    ids=["plain", "groups", "mixed", "wavelength"],
)
def test_tensors_lie_where_the_model_does_whatever_the_default_device(options):
    """Of a default device without memory nothing can be copied."""
    model, images = tiny(**options), torch.rand(2, 5, 13, 16)
    found = []
    for device in ("cpu", "meta"):
        generator = torch.Generator().manual_seed(0)
        model = copy.deepcopy(model)  # without its tables
        with torch.device(device):
            model.to("cpu")
            out = model(images, generator=generator)
            out.loss.backward()
            picture = model.reconstruct(images.flip(1), channels=["5", "4", "3", "2", "1"], generator=generator).prediction
            found.append([out.loss, picture, model.forward_features(images, pool="moments"), model.dense_features(images)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


class Adapted(torch.nn.Module):
    """As the layers of LoRA libraries: the weight of the layer that it stands for, and something beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.beside = layer, torch.nn.Linear(layer.in_features, layer.out_features)

    @property
    def weight(self):
        return self.layer.weight

    @property
    def bias(self):
        return self.layer.bias

    def forward(self, x):
        return self.layer(x) + self.beside(x)


class LowRank(torch.nn.Linear):
    """An adapter that is a linear layer itself."""

    def forward(self, x):
        return super().forward(x) + x.mean(-1, keepdim=True)


@pytest.mark.parametrize(
    "place", ["feed_forward_in.fc1", "feed_forward_out.fc2", "patch_attention.qkv", "channel_attention.projection"]
)
def test_an_adapter_that_would_have_no_effect_is_told_and_one_of_the_weight_has_its_effect(place):
    model, images = tiny(), torch.rand(2, 5, 16, 16)
    before = model.forward_features(images)
    parent, name = place.split(".")
    owner = getattr(model.encoder[0], parent)
    layer = getattr(owner, name)

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    assert not torch.allclose(model.forward_features(images), before)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    setattr(owner, name, Adapted(layer))
    with pytest.raises(TypeError, match="Adapted stands for"):
        model.forward_features(images)
    setattr(owner, name, layer)
    for module, called in ((owner, name), (model, "decoder_embedding")):
        layer = getattr(module, called)
        setattr(module, called, LowRank(layer.in_features, layer.out_features))
        with pytest.raises(TypeError, match="LowRank stands for"):
            model(images)
        setattr(module, called, layer)


def test_a_model_with_an_adapter_is_saved_once_that_is_taken_in(tmp_path):
    model, images = tiny(), torch.rand(2, 5, 16, 16)
    layer = model.encoder[1].patch_attention.qkv

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    features = model.forward_features(images)
    other = tiny(3)
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"not saved: encoder\.1\.patch_attention\.qkv\.weight is parametrised") as refused:
        model.save_pretrained(tmp_path / "model")
    assert 'remove_parametrizations(layer, "weight")' in refused.value.hint
    assert AuxMAE.from_pretrained(tmp_path / "model").channel_names == other.channel_names
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(AuxMAE.from_pretrained(tmp_path / "model").forward_features(images), features)

"""Learning rates, what decays, and the memory that optimisers take."""

from __future__ import annotations

import itertools

import pytest
import torch

from auxmae.model.mae import AuxMAE
from auxmae.training.optimization import learning_rate_at, make_optimizers, parameter_groups, state_bytes


def test_schedule_rises_then_falls():
    rates = [learning_rate_at(i / 100, peak=1.0, final=0.1, warmup=0.1) for i in range(101)]
    assert rates[5] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_norms_biases_tokens_and_embeddings_of_channels_are_not_decayed():
    model = AuxMAE(3, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, channel_groups=2)
    decayed, others = (set(map(id, group["params"])) for group in parameter_groups(model, 0.1))
    for name, parameter in model.named_parameters():
        plain = "norm" in name or name.endswith("bias") or "channel_embedding" in name or "token" in name
        assert (id(parameter) in others) == plain, name
    assert not decayed & others


@pytest.mark.parametrize("kind", ["adamw", "adam", "muon"])
def test_memory_is_that_of_weights_gradients_and_moments(kind):
    model = AuxMAE(3, image_size=8, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)
    options = {"learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "device": torch.device("cpu")}
    optimizers = make_optimizers(model, kind, **options)
    counted = state_bytes(model, optimizers)
    model(torch.rand(2, 3, 8, 8)).loss.backward()
    held = [tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)]
    for optimizer in optimizers:
        optimizer.step()
        held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert counted == sum(tensor.numel() * tensor.element_size() for tensor in held)

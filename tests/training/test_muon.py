"""Muon: against the singular value decomposition, and against PyTorch's own, one matrix at a time."""

from __future__ import annotations

import pytest
import torch

from auxmae.model.mae import AuxMAE
from auxmae.training.muon import Muon, orthogonal
from auxmae.training.optimization import block_matrices, make_optimizers


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 12), (2, 12, 40), (1, 1, 1), (5, 1, 30)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ orthogonal(matrices) @ vh.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-9
    # Small singular values come up to 1 within the five iterations where they are not tiny beside the largest.
    assert diagonal.max() < 1.25
    assert diagonal.median() > 0.6


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_steps_are_those_of_pytorch(as_tensor: bool) -> None:
    """PyTorch's iterates in bf16, hence the tolerance; a wrong scale, sign, momentum or decay is off by far more."""
    shapes = [(24, 8), (8, 24), (16, 16), (24, 8)]
    ours, theirs = ([torch.nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one)
    rate = torch.tensor(0.02) if as_tensor else 0.02
    own = Muon(ours, lr=rate, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [parameter.detach().clone() for parameter in ours]
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        own.step()
        reference.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.03 * (one - before).norm()


def test_stacked_maps_are_taken_apart() -> None:
    """(3D, D) in three parts moves as three matrices (D, D) do."""
    whole = torch.nn.Parameter(torch.randn(18, 6))
    apart = [torch.nn.Parameter(part.detach().clone()) for part in whole.chunk(3)]
    gradient = torch.randn_like(whole)
    whole.grad = gradient.clone()
    for part, its_gradient in zip(apart, gradient.chunk(3), strict=True):
        part.grad = its_gradient.clone()
    Muon([whole], lr=0.1, parts=3).step()
    Muon(apart, lr=0.1).step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in apart]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unscaled_before", [False, True])
def test_scaled_gradients_and_a_step_that_overflows(unscaled_before: bool) -> None:
    """Under a GradScaler: the steps of gradients that were never scaled, and none at all where one is infinite."""
    scaled, plain = ([torch.nn.Parameter(torch.ones(6, 4)), torch.nn.Parameter(torch.ones(6, 4))] for _ in range(2))
    optimizer, expected = (Muon(parameters, lr=0.1, weight_decay=0.1) for parameters in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    for number in range(4):
        gradients = [torch.randn(6, 4) for _ in scaled]
        overflows = number == 2
        for one, other, gradient in zip(scaled, plain, gradients, strict=True):
            one.grad = scaler.scale(gradient)
            other.grad = gradient
        if overflows:
            scaled[1].grad[3, 2] = torch.inf
        if unscaled_before:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if not overflows:
            expected.step()
        torch.testing.assert_close(scaled, plain)
    assert scaler.get_scale() == 2.0**9


def test_parameters_without_gradient_stay() -> None:
    moved, still = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    moved.grad = torch.randn(3, 4)
    Muon([moved, still], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(3, 4))
    assert not torch.equal(moved, torch.ones(3, 4))


def test_only_matrices() -> None:
    with pytest.raises(ValueError, match=r"matrices only.*\(4,\)"):
        Muon([torch.nn.Parameter(torch.zeros(4))], lr=0.1)


def test_muon_has_the_blocks_and_adamw_the_rest_with_its_decay() -> None:
    model = AuxMAE(3, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, decoder_width=8, channel_groups=2)
    muon, adamw = make_optimizers(
        model, "muon", learning_rate=0.1, weight_decay=0.3, betas=(0.9, 0.95), device=torch.device("cpu")
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    stacked, others = ([names[id(parameter)] for parameter in group["params"]] for group in muon.param_groups)
    assert stacked
    assert all(name.endswith("qkv.weight") for name in stacked)
    assert all(name.startswith(("encoder.", "decoder.")) for name in (*stacked, *others))
    assert [[names[id(parameter)] for parameter in group] for group in block_matrices(model)] == [stacked, others]
    decayed, plain = ([names[id(parameter)] for parameter in group["params"]] for group in adamw.param_groups)
    assert {"head.weight", "decoder_embedding.weight"} <= set(decayed)
    assert sorted((*stacked, *others, *decayed, *plain)) == sorted(names.values())
    assert [group["weight_decay"] for group in (*muon.param_groups, *adamw.param_groups)] == [0.3, 0.3, 0.3, 0.0]

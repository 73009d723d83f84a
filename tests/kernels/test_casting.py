"""Weights that are cast together: what each would be by itself, and so the gradients."""

from __future__ import annotations

import pytest
import torch
from auxmae_kernels import cast_together, casting


def weights():
    return [torch.randn(shape, requires_grad=True) for shape in ((5, 3), (7,), (2, 2, 2))]


def test_values_and_gradients_are_those_of_casts():
    parts = weights()
    together = casting.CastTogether.apply(torch.bfloat16, *parts)
    assert all(torch.equal(one, part.bfloat16()) for one, part in zip(together, parts, strict=True))
    # The second is not used, and gets no gradient, not one of zeros.
    loss = together[0].float().square().sum() + together[2].float().sin().sum()
    loss.backward()
    alone = [part.detach().clone().requires_grad_() for part in parts]
    (alone[0].bfloat16().float().square().sum() + alone[2].bfloat16().float().sin().sum()).backward()
    assert parts[1].grad is None
    for one, other in zip(parts, alone, strict=True):
        assert one.grad is None or (one.grad.dtype == torch.float32 and torch.equal(one.grad, other.grad))


def test_it_can_be_differentiated_twice():
    parts = [part.detach().double().requires_grad_() for part in weights()]

    def function(*inputs):
        return sum(part.square().sum() for part in casting.CastTogether.apply(torch.float64, *inputs))

    assert torch.autograd.gradcheck(function, parts)
    assert torch.autograd.gradgradcheck(function, parts)


@pytest.mark.parametrize("entered", [False, True])
def test_on_a_cpu_and_in_full_precision_weights_are_cast_alone(entered):
    (weight, *_) = parts = weights()
    with cast_together(parts if entered else ()):
        assert casting.cast_weight(weight) is weight
        with torch.autocast("cpu", torch.bfloat16):
            assert casting.cast_weight(weight).dtype == torch.bfloat16
            assert casting.cast_weight(weight.double()).dtype == torch.float64


def test_transforms_see_weights_that_are_cast_alone(monkeypatch):
    """As on a GPU under autocast: `CastTogether` has no rule for vmap."""
    monkeypatch.setattr(casting, "product_type", lambda x: torch.bfloat16)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: True)

    def loss(weight):
        with cast_together([weight]):
            return casting.cast_weight(weight).float().square().sum()

    stacked = torch.randn(4, 3)
    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    assert torch.equal(found, (2 * stacked.bfloat16().float()).bfloat16().float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_one_launch_brings_all_of_them():
    parts = [part.detach().cuda().requires_grad_() for part in weights()]
    other = torch.randn(3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        with cast_together(parts):
            cast = [casting.cast_weight(part) for part in parts]
            assert len({id(part.grad_fn) for part in cast}) == 1
            assert casting.cast_weight(parts[0]) is cast[0]
            assert torch.equal(casting.cast_weight(other), other.bfloat16())
        # Outside, each by itself.
        assert casting.cast_weight(parts[0]) is not cast[0]
    assert all(torch.equal(one, part.bfloat16()) for one, part in zip(cast, parts, strict=True))
    sum(part.float().sum() for part in cast).backward()
    assert all(torch.equal(part.grad, torch.ones_like(part)) for part in parts)

"""The fused assembly of the decoder's input against loops in double precision."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch

from tests.kernels import checks
from tests.kernels.checks import leaf, odd


def draw(batch, channels, tokens, places, width, own_mask_token):
    keep = torch.rand(batch, channels, places).argsort(2)[..., :tokens]
    keep = torch.where((torch.arange(tokens) >= tokens - 1) & (torch.rand(batch, channels, 1) < 0.5), -1, keep)
    shapes = [(channels, width) if own_mask_token else (width,), (places, width), (channels, width)]
    return keep, [leaf(odd(batch, channels, tokens, width)), *(leaf(torch.randn(s, dtype=torch.float64)) for s in shapes)]


def naive(latent, mask_token, position, channel, keep):
    batch, channels, tokens, _ = latent.shape
    mask = mask_token if mask_token.ndim == 2 else mask_token.expand_as(channel)
    result = []
    for b in range(batch):
        for c in range(channels):
            token_at = {int(keep[b, c, t]): t for t in range(tokens)}
            for s in range(len(position)):
                token = latent[b, c, token_at[s]] if s in token_at else mask[c]
                result.append(token + position[s] + channel[c])
    return torch.stack(result).view(batch, channels, len(position), -1)


@pytest.mark.parametrize(
    "case", [(2, 3, 2, 5, 8, False), (5, 2, 4, 17, 17, True), (1, 1, 3, 4, 130, False), (9, 1, 1, 33, 3, True)]
)
def test_value_and_every_gradient(launched, case):
    keep, inputs = draw(*case)

    def fused(latent, *rest):
        return kernels.assemble(latent, keep, *rest)

    upstream = [odd(case[0], case[1], case[3], case[4])]
    ours = checks.check_value_and_gradients(fused, lambda *i: naive(*i, keep), inputs, upstream)
    assert launched == ["assemble_forward", "assemble_backward"] * 2
    # Whatever a padding token holds comes out nowhere.
    poisoned = torch.where(keep[..., None] < 0, torch.nan, inputs[0].detach())
    assert torch.equal(fused(poisoned, *inputs[1:]), ours[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reduced_precision_errs_no_more_than_pytorch(launched, dtype):
    keep, inputs = draw(3, 2, 3, 7, 24, True)
    inputs = [leaf(inputs[0], dtype), *(leaf(tensor, torch.float32) for tensor in inputs[1:])]
    upstream = [torch.randn(3, 2, 7, 24).to(dtype)]
    checks.check_precision(
        lambda latent, *rest: kernels.assemble(latent, keep, *rest), lambda *i: naive(*i, keep), inputs, upstream
    )


def test_gradcheck_operator_compilation_empty_and_what_is_kept(launched):
    keep, inputs = draw(2, 2, 2, 3, 4, False)

    def fused(latent, *rest):
        return kernels.assemble(latent, keep, *rest)

    assert torch.autograd.gradcheck(fused, inputs)
    upstream = [torch.randn(2, 2, 3, 4, dtype=torch.float64)]
    checks.check_operator("assemble", (inputs[0], keep, *inputs[1:]), fused, inputs, upstream)
    # Nothing of the latents' size: the table and the parameters alone.
    assert max(checks.kept_sizes(lambda: fused(*inputs))) <= 3 * 4
    assert kernels.assemble(inputs[0][:0], keep[:0], *inputs[1:]).shape == (0, 2, 3, 4)

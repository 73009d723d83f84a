"""The fused embedding of visible patches against loops in double precision."""

from __future__ import annotations

import math

import auxmae_kernels as kernels
import pytest
import torch

from tests.kernels import checks
from tests.kernels.checks import leaf, odd


def draw_keep(batch, groups, places, kept):
    """Distinct places of each channel, the last of some of them padding."""
    keep = torch.rand(batch, groups, places).argsort(2)[..., :kept]
    return torch.where((torch.arange(kept) >= kept - 1) & (torch.rand(batch, groups, 1) < 0.5), -1, keep)


def naive(image, keep, weight, bias, position, channel, side, activation="none"):
    batch, groups, kept = keep.shape
    g, across = image.shape[1] // groups, image.shape[3] // side
    rows = []
    for b in range(batch):
        for c in range(groups):
            for k in range(kept):
                n = int(keep[b, c, k])
                y, x = max(n, 0) // across * side, max(n, 0) % across * side
                patch = image[b, c * g : (c + 1) * g, y : y + side, x : x + side].reshape(-1)
                w, own = (weight[c], bias[c]) if weight.ndim == 3 else (weight, bias)
                token = w @ patch + own
                if activation == "gelu":
                    token = token * 0.5 * (1 + torch.erf(token / math.sqrt(2)))
                token = token + position[n] + channel[c]
                rows.append(token if n >= 0 else token * 0)
    return torch.stack(rows).view(batch, groups, kept, -1)


def draw(batch, groups, g, grid, side, kept, width, untied):
    image = odd(batch, groups * g, grid[0] * side, grid[1] * side)
    pixels = g * side * side
    shapes = [(width, pixels), (width,)]
    if untied:
        shapes = [(groups, *shape) for shape in shapes]
    shapes += [(grid[0] * grid[1], width), (groups, width)]
    keep = draw_keep(batch, groups, grid[0] * grid[1], kept)
    return leaf(image), keep, [leaf(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


CASES = [
    (2, 3, 1, (2, 3), 4, 3, 8, False),
    (1, 2, 3, (3, 2), 2, 4, 17, True),
    (3, 1, 2, (1, 5), 3, 5, 70, False),
    (2, 2, 1, (4, 4), 1, 40 // 3, 5, True),
]


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_every_gradient(launched, case, activation):
    image, keep, parts = draw(*case)

    def fused(image, *parts):
        return kernels.embed_visible(image, keep, *parts, case[4], activation)

    upstream = [odd(*keep.shape, case[6])]
    exact = lambda image, *parts: naive(image, keep, *parts, case[4], activation)  # noqa: E731
    checks.check_value_and_gradients(fused, exact, [image, *parts], upstream)
    assert launched == ["embed_forward", "embed_gather"] * 2


def test_hidden_patches_are_not_read(launched):
    image, keep, parts = draw(*CASES[0])
    clean = image.detach()
    hidden = torch.ones(2, 3, 6, dtype=torch.bool)
    for b, c, k in keep.ge(0).nonzero():
        hidden[b, c, keep[b, c, k]] = False
    pixels = hidden.view(2, 3, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    poisoned = torch.where(pixels, torch.nan, clean)
    upstream = [torch.randn(2, 3, 3, 8, dtype=torch.float64)]
    results = [
        checks.values_and_gradients(lambda *p, pixels=pixels: kernels.embed_visible(pixels, keep, *p, 4), parts, upstream)
        for pixels in (poisoned, clean)
    ]
    checks.assert_close(*results, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_autocast_and_reduced_precision(launched, dtype, activation):
    image, keep, parts = draw(*CASES[2])
    image = image.detach().float()
    parts = [leaf(part, torch.float32) for part in parts]
    upstream = [torch.randn(3, 1, 5, 70)]

    def embed(*parts):
        return kernels.embed_visible(image, keep, *parts, 3, activation)

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        checks.check_like_pytorch(embed, parts, upstream, 1e-5 if dtype == torch.float32 else 0.04)


def test_gradcheck_operator_compilation_empty_and_errors(launched):
    image, keep, parts = draw(1, 2, 1, (2, 1), 2, 2, 3, True)

    def fused(*inputs):
        return kernels.embed_visible(inputs[0], keep, *inputs[1:], 2)

    assert torch.autograd.gradcheck(fused, (image, *parts))
    activated = lambda *inputs: kernels.embed_visible(inputs[0], keep, *inputs[1:], 2, "gelu")  # noqa: E731
    assert torch.autograd.gradcheck(activated, (image, *parts))
    torch.library.opcheck(torch.ops.auxmae_kernels.embed_visible.default, (image, keep, *parts, 2, "gelu"))
    upstream = [torch.randn(1, 2, 2, 3, dtype=torch.float64)]
    checks.check_operator("embed_visible", (image, keep, *parts, 2), fused, [image, *parts], upstream)
    assert kernels.embed_visible(image[:0], keep[:0], *parts, 2).shape == (0, 2, 2, 3)
    # No image: a gradient of none.
    empty = checks.values_and_gradients(
        lambda *i: kernels.embed_visible(i[0], keep[:0], *i[1:], 2), [leaf(image[:0]), *parts], [upstream[0][:0]]
    )
    assert [x.shape for x in empty[1:]] == [(0, *image.shape[1:]), *(part.shape for part in parts)]
    assert not any(x.any() for x in empty)
    with pytest.raises(ValueError, match="'none' or 'gelu'"):
        kernels.embed_visible(image, keep, *parts, 2, "relu")
    with pytest.raises(ValueError, match="patch size 3"):
        kernels.embed_visible(image, keep, *parts, 3)

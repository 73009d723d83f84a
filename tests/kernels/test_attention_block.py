"""The fused attention sublayer against loops in double precision."""

from __future__ import annotations

import math

import auxmae_kernels as kernels
import pytest
import torch

from tests.kernels import checks
from tests.kernels.checks import leaf, odd


def sublayer(x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out, heads, axis, slots=None, lengths=None):
    batch, channels, tokens, width = x.shape
    centred = x - x.mean(-1, keepdim=True)
    n = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm_weight + norm_bias
    mixed = {}
    for b in range(batch):
        sequences = [[(c, t) for t in range(tokens)] for c in range(channels)]
        if axis == "channel" and slots is None:
            sequences = [[(c, t) for c in range(channels)] for t in range(tokens)]
        elif axis == "channel":
            sequences = [[(c, int(place[c])) for c in range(channels) if place[c] >= 0] for place in slots[b]]
        for sequence in sequences:
            members = [(c, t) for c, t in sequence if lengths is None or t < lengths[b, c]]
            if not members:
                continue
            q, k, v = (torch.stack([n[b, c, t] for c, t in members]) @ w_qkv.T + b_qkv).chunk(3, 1)
            parts = [part.unflatten(1, (heads, -1)).transpose(0, 1) for part in (q, k, v)]
            p = (parts[0] @ parts[1].transpose(1, 2) / math.sqrt(width // heads)).softmax(2)
            for member, row in zip(members, (p @ parts[2]).transpose(0, 1).flatten(1), strict=True):
                mixed[b, *member] = row
    places = [(b, c, t) for b in range(batch) for c in range(channels) for t in range(tokens)]
    rows = torch.stack([mixed.get(place, torch.zeros_like(w_out[0])) for place in places]).view(batch, channels, tokens, width)
    return x + 0.7 * (rows @ w_out.T + b_out)


def parameters(width, dtype=torch.float64):
    shapes = ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
    return [leaf(torch.randn(shape, dtype=torch.float64) / math.sqrt(shape[-1]), dtype) for shape in shapes]


def tables(kind, batch, channels, tokens):
    """Slots, of which some name no token and which leave some tokens unnamed, and lengths."""
    slots = lengths = None
    if "slots" in kind:
        places = tokens + 2
        slots = torch.full((batch, places, channels), -1, dtype=torch.int32)
        for b in range(batch):
            for c in range(channels):
                for t, place in enumerate(torch.randperm(places)[: max(1, tokens - 1)].tolist()):
                    slots[b, place, c] = t
    if "lengths" in kind:
        lengths = torch.randint(0, tokens + 1, (batch, channels))
        lengths[0, 0] = tokens
    return slots, lengths


CASES = [
    ("patch", (2, 3, 5), 2, 12, ""),
    ("patch", (2, 2, 7), 3, 21, "lengths"),
    ("channel", (1, 4, 3), 1, 16, ""),
    ("channel", (2, 5, 3), 2, 10, "slots"),
    ("channel", (2, 3, 4), 2, 8, "slots lengths"),
    ("patch", (1, 2, 70), 1, 6, "lengths"),
    ("channel", (1, 2, 2), 3, 264, "slots"),
]


@pytest.mark.parametrize(("axis", "grid", "heads", "width", "kind"), CASES)
def test_value_and_gradients(launched, axis, grid, heads, width, kind):
    slots, lengths = tables(kind, *grid)
    inputs = [leaf(odd(*grid, width)), *parameters(width)]
    upstream = [odd(*grid, width)]

    def fused(*inputs):
        return kernels.attention_block(*inputs, heads, axis, slots, lengths, residual_scale=0.7)

    checks.check_value_and_gradients(fused, lambda *i: sublayer(*i, heads, axis, slots, lengths), inputs, upstream, 1e-9)
    kind = "streaming" if grid[2 if axis == "patch" else 1] > 128 else "packed"
    forward = ["norm_forward", f"{kind}_forward"]
    # The way back through a packed tile gives the attention's output too.
    again = forward if kind == "streaming" else ["norm_forward"]
    backward = [*again, "scaled_rows", f"{kind}_backward", "scaled_rows", "norm_backward", "add_rows"]
    assert launched == [*forward, *["fused_linear"] * (width <= 512), *backward] * 2


@pytest.mark.parametrize("tokens", [4, 70])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nan_in_padding_reaches_nothing_else(request, backend, tokens):
    if backend == "triton":
        request.getfixturevalue("launched")
    lengths = torch.tensor([[3, tokens], [0, 1]])
    padding = torch.arange(tokens) >= lengths[..., None]
    clean = torch.randn(2, 2, tokens, 8, dtype=torch.float64)
    parts = parameters(8)
    upstream = torch.randn_like(clean)
    results = []
    for x in (clean, clean.masked_fill(padding[..., None], torch.nan)):
        x = leaf(x)
        out = kernels.attention_block(x, *parts, 2, "patch", None, lengths)
        gradients = torch.autograd.grad(out, [x, *parts], upstream)
        results.append([out[~padding], *gradients])
    checks.assert_close(results[1], results[0], 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [24, 264])
def test_reduced_precision_errs_no_more_than_pytorch(launched, dtype, width):
    inputs = [leaf(torch.randn(2, 3, 5, width), dtype), *parameters(width, dtype)]
    upstream = [torch.randn(2, 3, 5, width).to(dtype)]

    def block(*inputs):
        return kernels.attention_block(*inputs, 3, "patch", residual_scale=0.7)

    checks.check_precision(block, lambda *i: sublayer(*i, 3, "patch"), inputs, upstream)


def test_autocast_missing_biases_and_empty_batches(launched):
    x = leaf(torch.randn(2, 3, 4, 16))
    norm_weight, norm_bias, w_qkv, _, w_out, _ = parameters(16, torch.float32)
    inputs = [x, norm_weight, norm_bias, w_qkv, w_out]

    def block(x, norm_weight, norm_bias, w_qkv, w_out):
        return kernels.attention_block(x, norm_weight, norm_bias, w_qkv, None, w_out, None, 2, "channel")

    upstream = [torch.randn(2, 3, 4, 16)]
    with torch.autocast("cpu", torch.bfloat16):
        checks.check_like_pytorch(block, inputs, upstream, 0.03)
    checks.check_like_pytorch(block, inputs, upstream, 1e-5)
    for shape in ((0, 3, 4, 16), (2, 3, 0, 16), (2, 0, 4, 16)):
        empty = leaf(torch.zeros(shape))
        results = checks.values_and_gradients(block, [empty, *inputs[1:]], [torch.zeros(shape)])
        assert results[0].shape == shape
        assert all((result == 0).all() for result in results)


def test_gradcheck_operator_compilation_and_what_is_kept(launched):
    slots, _ = tables("slots", 1, 2, 2)
    inputs = [leaf(torch.randn(1, 2, 2, 4, dtype=torch.float64)), *parameters(4)]

    def fused(*inputs):
        return kernels.attention_block(*inputs, 1, "channel", slots)

    assert torch.autograd.gradcheck(lambda x: fused(x, *inputs[1:]), inputs[0])
    upstream = [torch.randn(1, 2, 2, 4, dtype=torch.float64)]
    checks.check_operator("attention_block", (*inputs, 1, True, slots, None, 1.0, 1e-6), fused, inputs, upstream)
    for tokens in (9, 70):
        x = leaf(torch.randn(2, 3, tokens, 4, dtype=torch.float64))
        assert max(checks.kept_sizes(lambda x=x: kernels.attention_block(x, *inputs[1:], 1, "patch"))) == x.numel()

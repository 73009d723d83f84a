"""Dropout in the kernels: its numbers against Philox written out, and the sublayers against formulas with the same masks."""

from __future__ import annotations

import auxmae_kernels as kernels
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from auxmae.model.mae import AuxMAE
from tests.kernels import checks
from tests.kernels.checks import leaf, odd
from tests.kernels.naive import naive_attention, random_slots

pytest.importorskip("triton", reason="Triton is not installed")

from auxmae_kernels import dropout, sublayer, tuning

HIDDEN, OUTPUT = dropout.HIDDEN_MASK, dropout.OUTPUT_MASK
BLOCK_WIDTHS = [("patch", (2, 3, 5), 2, 40, ""), ("channel", (2, 3, 4), 2, 8, "slots lengths"), ("patch", (1, 2, 70), 1, 6, "")]


def philox(counter, key, rounds=7):
    """Philox4x32 (Salmon et al., 2011) on arrays of 64-bit integers that hold 32 bits."""
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    lower, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key
    for _ in range(rounds):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> shift) ^ c[1] ^ np.uint64(k0), b & lower, (a >> shift) ^ c[3] ^ np.uint64(k1), a & lower]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def expected(rows, columns, seed, p, stream):
    """The mask, by its definition."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    words = philox([column // 256 * 32 + column % 32, row, row * 0, row * 0 + stream], (seed % 2**32, seed >> 32))
    number = column // 32 % 8
    word = np.choose(number // 2, words)
    return torch.from_numpy(np.where(number % 2, word >> np.uint64(16), word & np.uint64(0xFFFF)) >= round(p * 65536))


def mask(shape, seed, p, stream, dtype=torch.float64):
    """What the kernels multiply with, from ones."""
    return dropout.drop(torch.ones(shape, dtype=dtype), seed, p, stream)


def parameters(shapes):
    return [leaf(torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5) for shape in shapes]


def feed_forward_parameters(width, hidden):
    return parameters([(width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)])


def attention_parameters(width):
    return parameters([(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)])


def test_philox_gives_the_authors_known_answer():
    words = philox([0, 0, 0, 0], (0, 0))
    assert [int(word) for word in words] == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


@pytest.mark.parametrize(
    ("rows", "columns", "p", "stream"), [(5, 300, 0.3, OUTPUT), (70, 17, 0.9, HIDDEN), (33, 600, 0.1, HIDDEN)]
)
def test_the_mask_is_philox(launched, rows, columns, p, stream):
    seed = torch.randint(2**62, (1,))
    got = mask((rows, columns), seed, p, stream)
    assert torch.equal(got != 0, expected(rows, columns, int(seed), p, stream.value))
    assert torch.equal(got[got != 0].unique(), torch.tensor([1 / (1 - p)], dtype=torch.float64))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_rate_and_independence(p):
    """Of the definition that the test above holds the kernels to: 1.3 million decisions."""
    seed = int(torch.randint(2**62, (1,)))
    a = expected(2000, 640, seed, p, 0).double()
    others = [expected(2000, 640, seed, p, 1), expected(2000, 640, seed + 1, p, 0), expected(2000, 640, seed ^ 2**40, p, 0)]
    pairs = [(a, other.double()) for other in others]
    pairs += [(a[:, lag:], a[:, :-lag]) for lag in (1, 2, 32, 64, 128, 256)] + [(a[lag:], a[:-lag]) for lag in (1, 16, 64)]
    spread = (p * (1 - p)) ** 0.5
    assert abs(a.mean().item() - (1 - p)) < 5 * spread / a.numel() ** 0.5
    for axis in (0, 1):
        assert (a.mean(axis) - (1 - p)).abs().max() < 6 * spread / a.shape[axis] ** 0.5
    for one, two in pairs:
        correlation = ((one - (1 - p)) * (two - (1 - p))).mean().item() / spread**2
        assert abs(correlation) < 5 / one.numel() ** 0.5


@pytest.mark.parametrize(("width", "hidden"), [(10, 290), (17, 23), (264, 70)])
def test_feed_forward_is_the_formula_under_its_masks(launched, width, hidden):
    inputs = [leaf(odd(1, 5, width)), *feed_forward_parameters(width, hidden)]
    p, seed = 0.3, torch.randint(2**62, (1,))
    inner, outer = mask((1, 5, hidden), seed, p, HIDDEN), mask((1, 5, width), seed, p, OUTPUT)

    def formula(x, norm_weight, norm_bias, w1, b1, w2, b2):
        n = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, 1e-6)
        return x + 0.5 * outer * F.linear(inner * F.gelu(F.linear(n, w1, b1)), w2, b2)

    def fused(*inputs):
        return torch.ops.auxmae_kernels.feed_forward(*inputs, 0.5, 1e-6, seed, p)

    upstream = [odd(1, 5, width)]
    launched.clear()
    ours = checks.values_and_gradients(fused, inputs, upstream)
    checks.assert_close(ours, checks.values_and_gradients(formula, inputs, upstream), 1e-10)
    backward = ["norm_forward", "scaled_rows", "gelu_backward", "norm_backward", "add_rows"]
    assert launched == ["norm_forward", "fused_linear", "fused_linear", *backward]
    again = checks.values_and_gradients(fused, inputs, upstream)
    checks.assert_same_bits(ours, again)


@pytest.mark.parametrize(("axis", "grid", "heads", "width", "kind"), [*BLOCK_WIDTHS, ("channel", (1, 2, 2), 3, 264, "slots")])
def test_attention_is_the_formula_under_its_mask(launched, axis, grid, heads, width, kind):
    batch, channels, tokens = grid
    slots = random_slots(batch, channels, tokens - 1, tokens + 2, torch.Generator()) if "slots" in kind else None
    lengths = torch.tensor([[tokens, 0, 2], [1, tokens, tokens]]) if "lengths" in kind else None
    inputs = [leaf(odd(*grid, width)), *attention_parameters(width)]
    p, seed = 0.25, torch.randint(2**62, (1,))
    outer = mask((*grid, width), seed, p, OUTPUT)

    def formula(x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out):
        n = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, 1e-6)
        mixed = naive_attention(F.linear(n, w_qkv, b_qkv), heads, axis, slots, lengths)
        return x + 0.7 * outer * F.linear(mixed, w_out, b_out)

    def fused(*inputs):
        rest = (heads, axis == "channel", slots, lengths, 0.7, 1e-6, seed, p)
        return torch.ops.auxmae_kernels.attention_block(*inputs, *rest)

    upstream = [odd(*grid, width)]
    checks.assert_close(
        checks.values_and_gradients(fused, inputs, upstream), checks.values_and_gradients(formula, inputs, upstream), 1e-9
    )


def test_gradcheck_with_a_fixed_seed(launched):
    seed = torch.tensor([5])
    feed = [leaf(torch.randn(2, 3, dtype=torch.float64)), *feed_forward_parameters(3, 4)]
    assert torch.autograd.gradcheck(
        lambda *i: torch.ops.auxmae_kernels.feed_forward(*i, 0.5, 1e-6, seed, 0.4), feed, fast_mode=True
    )
    block = [leaf(torch.randn(1, 2, 1, 4, dtype=torch.float64)), *attention_parameters(4)]
    rest = (1, True, None, None, 1.0, 1e-6, seed, 0.4)
    fused = torch.ops.auxmae_kernels.attention_block
    assert torch.autograd.gradcheck(lambda *i: fused(*i, *rest), block, fast_mode=True)
    torch.library.opcheck(fused.default, (*block, *rest))
    torch.library.opcheck(torch.ops.auxmae_kernels.feed_forward.default, (*feed, 0.5, 1e-6, seed, 0.4))


@pytest.mark.parametrize("tile", [(16, 16), (32, 64), (128, 32)])
def test_the_mask_is_that_of_the_element_whatever_the_tile(launched, monkeypatch, tile):
    inputs = [leaf(torch.randn(20, 24)), *(leaf(part, torch.float32) for part in feed_forward_parameters(24, 290))]
    rest, upstream = (0.5, 1e-6, torch.tensor([9]), 0.5), [torch.randn(20, 24)]
    one = checks.values_and_gradients(lambda *i: torch.ops.auxmae_kernels.feed_forward(*i, *rest), inputs, upstream)
    rows, columns = tile
    monkeypatch.setattr(tuning, "linear_tile", lambda _: tuning.Tile(rows, 4, columns=columns, chunk=16))
    monkeypatch.setattr(sublayer, "_block_tile", lambda _: tuning.Tile(rows, 4, columns=columns))
    other = checks.values_and_gradients(lambda *i: torch.ops.auxmae_kernels.feed_forward(*i, *rest), inputs, upstream)
    checks.assert_close(one, other, 1e-5)


def sublayers(x, feed, block, p):
    x = kernels.feed_forward(x, *feed, residual_scale=0.5, dropout=p)
    x = kernels.attention_block(x, *block, 2, "patch", dropout=p)
    return kernels.feed_forward(x, *feed, residual_scale=0.5, dropout=p)


def test_the_seed_is_the_generators_under_compilation_and_checkpointing_too(launched):
    x, feed, block = leaf(torch.randn(2, 2, 3, 8)), feed_forward_parameters(8, 12), attention_parameters(8)
    feed, block = ([leaf(part, torch.float32) for part in parts] for parts in (feed, block))
    upstream = [torch.randn(2, 2, 3, 8)]

    def results(function, seed):
        torch.manual_seed(seed)
        return checks.values_and_gradients(lambda x: function(x, feed, block, 0.3), [x], upstream)

    plain = results(sublayers, 1)
    checks.assert_same_bits(plain, results(sublayers, 1))
    assert not torch.equal(plain[0], results(sublayers, 2)[0])
    compiled = torch.compile(sublayers, fullgraph=True, backend="aot_eager")
    checks.assert_close(results(compiled, 1), plain, 1e-6)
    recomputed = results(lambda *inputs: checkpoint(sublayers, *inputs, use_reentrant=False), 1)
    checks.assert_same_bits(plain, recomputed)


def test_sublayers_of_one_graph_have_masks_of_their_own(launched):
    """A compiler that took two draws of a seed for one would make them equal."""
    feed = [torch.ones(64), torch.zeros(64), torch.zeros(8, 64), torch.zeros(8), torch.zeros(64, 8), torch.ones(64)]

    def twice(x):
        return kernels.feed_forward(x, *feed, dropout=0.5), kernels.feed_forward(x, *feed, dropout=0.5)

    for function in (twice, torch.compile(twice, fullgraph=True, backend="aot_eager")):
        one, two = function(torch.zeros(9, 64))
        assert 0.35 < (one == two).float().mean() < 0.65


def test_nothing_is_kept_but_the_input_and_the_seed(launched):
    x, feed, block = leaf(torch.randn(2, 3, 50, 4, dtype=torch.float64)), feed_forward_parameters(4, 6), attention_parameters(4)
    for function in (
        lambda: kernels.feed_forward(x, *feed, dropout=0.1),
        lambda: kernels.attention_block(x, *block, 2, "patch", dropout=0.1),
    ):
        sizes = checks.kept_sizes(function)
        assert max(sizes) == x.numel()
        assert sizes.count(x.numel()) == 1
        assert 1 in sizes


@pytest.mark.parametrize(("p", "draws"), [(0.0, False), (1e-7, False), (1.0, True)])
def test_no_dropout_and_nothing_but_dropout(launched, p, draws):
    x, feed, block = leaf(torch.randn(2, 2, 3, 8)), feed_forward_parameters(8, 12), attention_parameters(8)
    feed, block = ([leaf(part, torch.float32) for part in parts] for parts in (feed, block))
    upstream = [torch.randn(2, 2, 3, 8)]
    state = torch.get_rng_state()
    ours = checks.values_and_gradients(lambda *i: kernels.feed_forward(*i, dropout=p), [x, *feed], upstream)
    ours += checks.values_and_gradients(lambda *i: kernels.attention_block(*i, 2, "patch", dropout=p), [x, *block], upstream)
    assert torch.equal(torch.get_rng_state(), state) != draws
    if draws:
        # The residual stream alone is left.
        zeros = [torch.zeros_like(part) for part in feed], [torch.zeros_like(part) for part in block]
        theirs = [x.detach(), upstream[0], *zeros[0], x.detach(), upstream[0], *zeros[1]]
    else:
        theirs = checks.values_and_gradients(kernels.feed_forward, [x, *feed], upstream)
        theirs += checks.values_and_gradients(lambda *i: kernels.attention_block(*i, 2, "patch"), [x, *block], upstream)
    checks.assert_same_bits(ours, theirs)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_an_error(p):
    feed = feed_forward_parameters(8, 12)
    with pytest.raises(ValueError, match="probability"):
        kernels.feed_forward(torch.zeros(2, 8), *feed, dropout=p)
    with pytest.raises(ValueError, match="probability"):
        kernels.attention_block(torch.zeros(1, 1, 2, 8), *attention_parameters(8), 2, "patch", dropout=p)


def test_autocast(launched, monkeypatch):
    x, parts, seed = leaf(torch.randn(40, 24)), feed_forward_parameters(24, 48), torch.tensor([3])
    parts = [leaf(part, torch.float32) for part in parts]
    upstream, rest = [torch.randn(40, 24)], (0.5, 1e-6, seed, 0.2)
    exact = checks.values_and_gradients(lambda *i: torch.ops.auxmae_kernels.feed_forward(*i, *rest), [x, *parts], upstream)
    monkeypatch.setattr(dropout, "draw_seed", lambda *_: seed)
    with torch.autocast("cpu", torch.bfloat16):
        ours = checks.values_and_gradients(lambda *i: kernels.feed_forward(*i, 0.5, dropout=0.2), [x, *parts], upstream)
    assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in exact]
    checks.assert_close(ours, exact, 0.04)


@pytest.mark.slow
def test_a_model_with_dropout_learns_on_the_kernels(launched):
    torch.manual_seed(0)
    model = AuxMAE(3, image_size=12, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    image = torch.rand(2, 3, 12, 12)
    losses = []
    for _ in range(6):
        loss = model(image).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-2:]) < losses[0]
    assert {"norm_forward", "packed_forward", "gelu_backward", "norm_backward", "dropout_rows"} <= set(launched)
    model.eval()
    with torch.no_grad():
        keep = model.draw_mask(image.shape)
        assert torch.equal(model(image, keep).loss, model(image, keep).loss)

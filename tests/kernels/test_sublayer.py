"""What stands between a sublayer's products, against autograd in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from auxmae_kernels import dropout, sublayer

from tests.kernels import checks
from tests.kernels.checks import leaf, odd

# Rows: fewer than one tile, many tiles for each program, and none.
SIZES = [(3, 8), (700, 17), (1, 300), (40, 33), (0, 8)]


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "width"), SIZES)
@pytest.mark.parametrize("ragged", [False, True])
def test_norm_and_its_gradient(launched, rows, width, ragged):
    x, weight, bias = leaf(odd(2, rows, width)), leaf(draw(width)), leaf(draw(width))
    lengths = torch.tensor([rows // 2, rows + 1]) if ragged else None
    real = torch.arange(rows) < (torch.full((2,), rows) if lengths is None else lengths)[:, None]
    expected = F.layer_norm(x * real[..., None], (width,), weight, bias, 1e-6)
    seen = x.detach().masked_fill(~real[..., None], torch.nan)
    checks.assert_close([sublayer.norm(seen, weight, bias, 1e-6, torch.float64, lengths)], [expected], 1e-10)
    grad_n, grad = draw(2, rows, width), odd(2, rows, width)
    # Padding gets no gradient through the norm, and gives none to its weights.
    of_x, of_weight, of_bias = torch.autograd.grad(expected, [x, weight, bias], grad_n * real[..., None])
    sums = sublayer.RowSums(2 * rows, (width, width), x)
    result = sublayer.norm_gradient(
        grad_n.masked_fill(~real[..., None], torch.nan), grad, seen, weight, 1e-6, sums, *sums.parts, lengths
    )
    checks.assert_close([result, *sums.totals()], [grad + of_x, of_weight, of_bias], 1e-9)


@pytest.mark.parametrize(("rows", "width"), SIZES)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_what_goes_into_the_last_map(launched, rows, width, p):
    grad, seed = odd(rows, width), torch.randint(2**62, (1,)) if p else None
    sums = sublayer.RowSums(rows, (5, width), grad)
    result = sublayer.scaled(grad, 0.7, torch.float64, sums, sums.parts[1], seed, p)
    expected = 0.7 * dropout.drop(grad, seed, p, dropout.OUTPUT_MASK)
    checks.assert_close([result, sums.totals()[1]], [expected, expected.sum(0)], 1e-11)
    sums = sublayer.RowSums(rows, (width,), grad)
    sublayer.scaled(grad, 1.0, None, sums, sums.parts[0])
    checks.assert_close(sums.totals(), [grad.sum(0)], 1e-11)


@pytest.mark.parametrize(("rows", "width"), SIZES)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gelu_and_its_gradient_in_place(launched, rows, width, p):
    hidden, grad, seed = leaf(draw(rows, width)), draw(rows, width), torch.randint(2**62, (1,)) if p else None
    bias = draw(width)
    mask = dropout.drop(torch.ones_like(hidden), seed, p, dropout.HIDDEN_MASK).detach()
    expected = F.gelu(hidden + bias) * mask
    (of_hidden,) = torch.autograd.grad(expected, hidden, grad)
    sums = sublayer.RowSums(rows, (width,), hidden)
    active, result = hidden.detach().clone(), grad.clone()
    sublayer.gelu_gradient_(active, bias, result, sums, sums.parts[0], seed, p)
    checks.assert_close([active, result, *sums.totals()], [expected, of_hidden, of_hidden.sum(0)], 1e-10)


def test_rows_far_from_zero_keep_their_digits(launched):
    x = torch.randn(9, 70) + 1000
    result = sublayer.norm(x, torch.ones(70), torch.zeros(70), 1e-6, torch.float32)
    checks.assert_close([result], [F.layer_norm(x.double(), (70,), eps=1e-6)], 1e-3)

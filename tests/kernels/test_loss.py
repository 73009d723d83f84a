"""The fused masked loss against loops in double precision."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch
from auxmae_kernels import KernelUnavailableError

from tests.kernels import checks
from tests.kernels.checks import leaf, odd


def draw(batch, groups, g, grid, side, hidden):
    image = odd(batch, groups * g, grid[0] * side, grid[1] * side) * 2
    index = torch.rand(batch, groups, grid[0] * grid[1]).argsort(2)[..., :hidden]
    index = torch.where((torch.arange(hidden) >= hidden - 1) & (torch.rand(batch, groups, 1) < 0.5), -1, index)
    valid = torch.rand(batch, groups * g, grid[0] * side, grid[1] * side) > 0.3
    return leaf(odd(batch, groups, hidden, g * side * side)), torch.where(valid, image, torch.nan), index, valid


def naive(prediction, image, index, valid, kind, normalize):
    groups, pixels = prediction.shape[1], prediction.shape[3]
    g = image.shape[1] // groups
    side = round((pixels / g) ** 0.5)
    across = image.shape[3] // side
    total, count = prediction.sum() * 0, 0
    for b, c, m in (index >= 0).nonzero().tolist():
        y, x = int(index[b, c, m]) // across * side, int(index[b, c, m]) % across * side
        where = (b, slice(c * g, c * g + g), slice(y, y + side), slice(x, x + side))
        real = valid[where].reshape(-1)
        target = image[where].reshape(-1)[real]
        if normalize and len(target):
            target = (target - target.mean()) / (target.var(correction=0) + 1e-6).sqrt()
        size = (prediction[b, c, m][real] - target).abs()
        error = {"l1": size, "mse": size**2, "smooth_l1": torch.where(size < 1, size**2 / 2, size - 0.5)}[kind]
        total, count = total + error.sum(), count + int(real.sum())
    return total / max(count, 1)


CASES = [(2, 3, 1, (2, 3), 4, 4), (1, 2, 3, (3, 2), 2, 6), (40, 5, 1, (1, 2), 1, 2), (3, 1, 2, (1, 5), 3, 3)]


@pytest.mark.parametrize("kind", ["l1", "mse", "smooth_l1"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(launched, kind, normalize, case):
    prediction, image, index, valid = draw(*case)
    fused, exact = (
        lambda prediction, f=f: f(prediction, image, index, valid, kind, normalize) for f in (kernels.masked_loss, naive)
    )
    checks.check_value_and_gradients(fused, exact, [prediction], [torch.tensor(0.7, dtype=torch.float64)])
    assert launched == ["masked_loss_forward"] * 2


def test_a_second_derivative_is_refused_and_not_wrong(launched):
    prediction, image, index, valid = draw(*CASES[0])
    value = kernels.masked_loss(prediction, image, index, valid, "mse")
    with pytest.raises(RuntimeError, match="AUXMAE_KERNELS=torch"):
        torch.autograd.grad(value, prediction, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reduced_precision_errs_no_more_than_pytorch(launched, dtype):
    prediction, image, index, valid = draw(*CASES[0])
    prediction, image = leaf(prediction, dtype), image.float()
    fused = lambda prediction: kernels.masked_loss(prediction, image, index, valid, "mse", True)  # noqa: E731
    exact = lambda prediction: naive(prediction, image.double(), index, valid, "mse", True)  # noqa: E731
    checks.check_precision(fused, exact, [prediction], [torch.tensor(1.0)])
    assert fused(prediction).dtype == torch.float32


def test_nothing_that_counts_and_other_edges(launched):
    prediction, image, index, valid = draw(*CASES[0])
    for arguments in ((index, torch.zeros_like(valid)), (torch.full_like(index, -1), valid)):
        loss = kernels.masked_loss(prediction, image, *arguments)
        assert loss == 0
        assert (torch.autograd.grad(loss, prediction)[0] == 0).all()
    whole = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    row = torch.ones(1, 1, 1, 12, dtype=torch.bool)
    everywhere = naive(prediction, whole, index, torch.ones_like(valid), "l1", False)
    for mask in (None, row):
        checks.assert_close([kernels.masked_loss(prediction, whole, index, mask)], [everywhere], 1e-10)
    empty = leaf(prediction[:0])
    loss = kernels.masked_loss(empty, image[:0], index[:0], valid[:0])
    assert loss == 0
    assert torch.autograd.grad(loss, empty)[0].shape == empty.shape
    with torch.no_grad():
        checks.assert_close([kernels.masked_loss(prediction, whole, index)], [everywhere], 1e-10)
    with pytest.raises(KernelUnavailableError, match="image asks for a gradient"):
        kernels.masked_loss(prediction, leaf(whole), index)
    with pytest.raises(ValueError, match="huber"):
        kernels.masked_loss(prediction, whole, index, kind="huber")


def test_gradcheck_operator_compilation_and_what_is_kept(launched):
    prediction, image, index, valid = draw(1, 2, 1, (2, 1), 2, 2)

    def fused(prediction):
        return kernels.masked_loss(prediction, image, index, valid, "smooth_l1", True)

    assert torch.autograd.gradcheck(fused, prediction)
    arguments = (prediction, image, index, valid, "mse", False, True)
    checks.check_operator("masked_loss", arguments, fused, [prediction], [torch.tensor(1.0, dtype=torch.float64)])
    assert sum(checks.kept_sizes(lambda: fused(prediction))) == prediction.numel() + 1

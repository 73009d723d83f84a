"""Training on the Triton kernels follows the PyTorch path."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch
from torch import nn

from auxmae.model.mae import AuxMAE
from tests.kernels.checks import pytorch

BETWEEN = {"norm_forward", "norm_backward", "scaled_rows", "gelu_backward", "add_rows"}
SUBLAYERS = BETWEEN | {"packed_forward", "packed_backward"}
REST = {"embed_forward", "embed_gather", "assemble_forward", "assemble_backward", "masked_loss_forward"}


def losses(strategy, steps):
    torch.manual_seed(0)
    model = AuxMAE(
        3, image_size=12, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, mask_ratio=0.6, mask_strategy=strategy
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    history = []
    for _ in range(steps):
        image = torch.rand(2, 3, 12, 12, generator=generator)
        loss = model(image, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def assert_same_course(train, launched, expected):
    with pytorch():
        theirs = train()
    assert not launched
    ours = train()
    assert set(launched) == expected
    assert theirs[-1] < theirs[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5 * len(theirs)


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [("independent", 5), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("independent", 50), ("shared", 20)))],
)
def test_the_model_trains_to_the_same_losses(launched, strategy, steps):
    """Channel attention that is ragged by place ("independent") and dense ("shared"); every kernel of the model runs."""
    assert_same_course(lambda: losses(strategy, steps), launched, SUBLAYERS | REST)


class Stack(nn.Module):
    """A block of what the model does not call by itself: attention along both axes between residual sums and their norms."""

    def __init__(self, width):
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)])
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.head = nn.Linear(width, width)

    def forward(self, x, slots):
        normed = x
        for axis, linear, norm in zip(("patch", "channel"), self.maps, self.norms, strict=True):
            attended = kernels.axial_attention(linear(normed), 2, axis, slots)
            x, normed = kernels.add_norm(attended, x, norm.weight, norm.bias)
        return self.head(normed)


@pytest.mark.slow
def test_fifty_steps_of_attention_and_add_norm_alone(launched):
    """Short sequences along the patches; along the channels so many that they stream."""

    def train():
        torch.manual_seed(0)
        model = Stack(8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        x, target = torch.randn(1, 40, 2, 8), torch.randn(1, 40, 2, 8)
        slots = torch.stack([torch.randperm(3)[:3] for _ in range(40)], 1)[None].int()
        slots = torch.where(slots == 2, -1, slots)
        history = []
        for _ in range(50):
            loss = (model(x, slots) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    expected = {"packed_forward", "packed_backward", "streaming_forward", "streaming_backward"}
    assert_same_course(train, launched, expected | {"add_norm_forward", "add_norm_backward"})

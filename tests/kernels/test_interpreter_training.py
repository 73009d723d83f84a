"""Training on the Triton kernels follows the PyTorch path."""

from __future__ import annotations

import pytest
import torch

from auxmae.model.mae import AuxMAE


def losses(backend, strategy, device, monkeypatch, steps=20):
    monkeypatch.setenv("AUXMAE_KERNELS", backend)
    torch.manual_seed(0)
    model = AuxMAE(
        3, image_size=12, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, mask_ratio=0.6, mask_strategy=strategy
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    history = []
    for _ in range(steps):
        image = torch.rand(2, 3, 12, 12, generator=generator).to(device)
        loss = model(image, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


@pytest.mark.parametrize(
    "strategy", ["independent", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shared", "channel"))]
)
def test_twenty_steps_give_the_same_losses(triton, monkeypatch, strategy):
    """Dense channel attention ("shared"), ragged by place ("independent"), whole channels hidden ("channel")."""
    ours, theirs = (losses(backend, strategy, triton, monkeypatch) for backend in ("triton", "torch"))
    assert theirs[-1] != theirs[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4

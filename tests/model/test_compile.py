"""`train.compile` changes nothing but the speed."""

from __future__ import annotations

import shutil

import pytest
import torch

from auxmae.model.mae import AuxMAE
from auxmae.model.masking import draw_mask


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU, and there is no g++")
@pytest.mark.parametrize("strategy", ["independent", "shared"])
def test_compiled_blocks_give_the_same_loss_and_gradients(strategy):
    torch.manual_seed(0)
    arguments = {"image_size": 16, "patch_size": 4, "width": 32, "depth": 2, "heads": 4, "mask_strategy": strategy}
    eager, compiled = AuxMAE(5, **arguments), AuxMAE(5, **arguments)
    compiled.load_state_dict(eager.state_dict())
    compiled.compile_blocks()
    image = torch.rand(3, 5, 16, 16)
    keep = eager.draw_mask(image.shape, torch.Generator().manual_seed(1))
    losses = [model(image, keep).loss for model in (eager, compiled)]
    assert torch.allclose(losses[0], losses[1], atol=1e-6)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


@pytest.mark.parametrize("strategy", ["independent", "shared", "channel", "block"])
def test_masks_are_drawn_in_a_compiled_graph_of_any_batch_size(strategy):
    torch.compiler.reset()

    @torch.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    def keep_of(image):
        return draw_mask(image.shape[0], 3, (2, 2), ratio=0.5, strategy=strategy, device=image.device).keep

    for batch in (2, 3, 5):
        assert keep_of(torch.rand(batch, 3)).shape[0] == batch


@pytest.mark.slow
def test_a_compiled_model_takes_one_batch_size_after_another():
    model = AuxMAE(3, image_size=16, patch_size=8, width=8, depth=1, heads=2, decoder_depth=1)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for batch in (2, 3, 5):
        assert compiled(torch.rand(batch, 3, 16, 16)).loss.isfinite()

"""Dropout where only a GPU shows it: CUDA graphs, and the interpreter's masks."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def test_every_replay_of_a_graph_draws_anew(monkeypatch):
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    feed = [torch.ones(64), torch.zeros(64), torch.zeros(8, 64), torch.zeros(8), torch.zeros(64, 8), torch.ones(64)]
    feed = [part.cuda().requires_grad_() for part in feed]
    x = torch.zeros(128, 64, device="cuda", requires_grad=True)

    def step():
        out = kernels.feed_forward(x, *feed, dropout=0.5)
        (of_bias,) = torch.autograd.grad(out.sum(), feed[-1])
        return out, of_bias

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, of_bias = step()
    seen = []
    for _ in range(3):
        graph.replay()
        # The bias' gradient is the sum of the mask, which is the value here: the same one both ways.
        torch.testing.assert_close(of_bias, out.sum(0))
        seen.append(out.clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_the_mask_is_that_of_the_formula():
    from auxmae_kernels import dropout

    from tests.kernels.test_dropout import expected

    seed = torch.randint(2**62, (1,), device="cuda")
    for stream in (dropout.HIDDEN_MASK, dropout.OUTPUT_MASK):
        got = dropout.drop(torch.ones(70, 600, device="cuda"), seed, 0.3, stream)
        assert torch.equal(got.cpu() != 0, expected(70, 600, int(seed), 0.3, stream.value))

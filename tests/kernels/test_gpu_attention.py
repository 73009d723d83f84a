"""What only a GPU can show of `axial_attention`: rounding, repetition, graphs, and sizes."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch
from auxmae_kernels import reference

from tests.kernels.naive import random_slots

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none"),
]


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")


def both(function, qkv, upstream):
    leaf = qkv.detach().requires_grad_()
    out = function(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, upstream)[0]


# Every head tile in the two types that have tiles of their own, and some in fp16, which has bf16's.
@pytest.mark.parametrize(
    ("dtype", "dim"),
    [
        *((torch.bfloat16, dim) for dim in (8, 24, 32, 64, 128)),
        *((torch.float32, dim) for dim in (8, 64, 128)),
        (torch.float16, 32),
    ],
)
@pytest.mark.parametrize(
    ("axis", "shape"),
    [("patch", (16, 13, 5)), ("patch", (4, 13, 65)), ("patch", (2, 3, 257)), ("channel", (4, 13, 17)), ("channel", (2, 200, 5))],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_at_most_twice_the_error_of_pytorch(dtype, dim, axis, shape, ragged):
    torch.manual_seed(0)
    heads = 4
    qkv = torch.randn(*shape, 3 * heads * dim, device="cuda", dtype=dtype)
    upstream = torch.randn(*shape, heads * dim, device="cuda", dtype=dtype)
    slots = lengths = None
    if ragged and axis == "channel":
        slots = random_slots(*shape, shape[2] + 3, torch.Generator().manual_seed(0)).cuda()
    elif ragged:
        lengths = torch.randint(0, shape[2] + 1, shape[:2], device="cuda", dtype=torch.int32)
    run = lambda function: lambda x: function(x, heads, axis, slots, lengths, None)  # noqa: E731
    exact = both(run(reference.axial_attention), qkv.double(), upstream.double())
    theirs = both(run(reference.axial_attention), qkv, upstream)
    ours = both(run(kernels.axial_attention), qkv, upstream)
    for a, b, e in zip(ours, theirs, exact, strict=True):
        floor = torch.finfo(dtype).eps * e.abs().max()
        assert (a.double() - e).abs().max() <= 2 * (b.double() - e).abs().max() + floor


@pytest.mark.parametrize("shape", [(64, 13, 17, 768), (4, 3, 300, 384)])
def test_two_hundred_repetitions_give_the_same_bits(shape):
    qkv = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn(*shape[:3], shape[3] // 3, device="cuda", dtype=torch.bfloat16)
    first = both(lambda x: kernels.axial_attention(x, 4, "patch"), qkv, upstream)
    for _ in range(200):
        again = both(lambda x: kernels.axial_attention(x, 4, "patch"), qkv, upstream)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_cuda_graph_replays_it():
    qkv = torch.randn(8, 13, 17, 768, device="cuda", dtype=torch.bfloat16)
    kernels.axial_attention(qkv, 8, "channel")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.axial_attention(qkv, 8, "channel")
    qkv.copy_(torch.randn_like(qkv))
    graph.replay()
    assert torch.equal(out, kernels.axial_attention(qkv, 8, "channel"))


def test_compiled_and_eager_agree():
    qkv = torch.randn(8, 13, 17, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    compiled = torch.compile(lambda x: kernels.axial_attention(x, 8, "channel"), fullgraph=True)
    outs = [compiled(qkv), kernels.axial_attention(qkv, 8, "channel")]
    assert torch.equal(*outs)
    upstream = torch.randn_like(outs[0])
    assert torch.equal(*(torch.autograd.grad(out, qkv, upstream)[0] for out in outs))


def test_a_hundred_thousand_sequences():
    qkv = torch.randn(512, 4, 196, 96, device="cuda", dtype=torch.float16)
    out = kernels.axial_attention(qkv, 1, "channel")
    assert torch.equal(out[-1:], kernels.axial_attention(qkv[-1:], 1, "channel"))


@pytest.mark.xdist_group("most of the memory")
def test_more_than_two_to_the_31_elements():
    needed = 12 * 2**30
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    qkv = torch.randn(1, 16, 1, 96, device="cuda", dtype=torch.float16).expand(1_450_000, -1, -1, -1).contiguous()
    assert qkv.numel() > 2**31
    out = kernels.axial_attention(qkv, 1, "channel")
    assert torch.equal(out[-1], out[0])
    assert torch.equal(out[:1], kernels.axial_attention(qkv[:1].clone(), 1, "channel"))

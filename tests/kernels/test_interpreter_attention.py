"""`axial_attention`'s Triton kernels against loops in double precision, in the interpreter; other types on a GPU too."""

from __future__ import annotations

import auxmae_kernels as kernels
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.naive import naive_attention, random_slots

DRAWN = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def strided(shape, layout, generator, dtype=torch.float64):
    """Random numbers of a shape that lie in memory in one of several ways."""
    b, c, t, d = shape
    if layout == "sliced":
        return torch.randn(b, c, 2 * t, d + 3, generator=generator, dtype=torch.float64).to(dtype)[:, :, ::2, 3:]
    if layout == "transposed":
        return torch.randn(b, t, c, d, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)
    if layout == "last axis first":
        return torch.randn(d, b, c, t, generator=generator, dtype=torch.float64).to(dtype).permute(1, 2, 3, 0)
    if layout == "expanded":
        return torch.randn(1, c, t, d, generator=generator, dtype=torch.float64).to(dtype).expand(b, -1, -1, -1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


LAYOUTS = ("contiguous", "sliced", "transposed", "last axis first", "expanded")


def tables(kind, shape, generator):
    """Slots and lengths for a shape: "dense", "lengths", "slots" or "slots and lengths"."""
    b, c, t, _ = shape
    slots = random_slots(b, c, t, t + 2, generator) if "slots" in kind else None
    lengths = torch.randint(0, t + 1, (b, c), generator=generator) if "lengths" in kind else None
    return slots, lengths


def compare(qkv, heads, axis, slots, lengths, generator, layout="contiguous", tolerance=1e-9):
    """Value and gradient against the loops, from an upstream gradient that lies in memory anyhow."""
    leaf = qkv.detach().requires_grad_()
    out = kernels.axial_attention(leaf, heads, axis, slots, lengths)
    exact = qkv.detach().clone().requires_grad_()
    # Tied to the input even where there is nothing to attend to.
    expected = naive_attention(exact, heads, axis, slots, lengths) + 0 * exact.sum()
    assert torch.allclose(out, expected, atol=tolerance, rtol=tolerance)
    upstream = strided(out.shape, layout, generator)
    (ours,) = torch.autograd.grad(out, leaf, upstream)
    (theirs,) = torch.autograd.grad(expected, exact, upstream)
    assert torch.allclose(ours, theirs, atol=4 * tolerance, rtol=4 * tolerance)


@DRAWN
@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 5),
    tokens=st.integers(1, 19),
    heads=st.integers(1, 3),
    dim=st.sampled_from([1, 8, 12, 17]),
    axis=st.sampled_from(["patch", "channel"]),
    kind=st.sampled_from(["dense", "lengths", "slots", "slots and lengths"]),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    seed=st.integers(0, 10**6),
)
def test_drawn_shapes_and_strides(interpreter, batch, channels, tokens, heads, dim, axis, kind, layouts, seed):
    if axis == "patch":
        kind = kind.replace("slots", "").strip() or "dense"
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, tokens, 3 * heads * dim)
    qkv = strided(shape, layouts[0], generator)
    slots, lengths = tables(kind, shape, generator)
    compare(qkv, heads, axis, slots, lengths, generator, layouts[1])


@pytest.mark.parametrize("dim", [8, 24, 64, 128])
@pytest.mark.parametrize(
    "length", [1, 16, 17, 64, 65, pytest.param(128, marks=pytest.mark.slow), 129, pytest.param(200, marks=pytest.mark.slow)]
)
def test_every_length_of_a_sequence_and_every_head(interpreter, length, dim):
    """From one token to sequences that stream, ragged and dense."""
    generator = torch.Generator().manual_seed(length + dim)
    if length <= 128 and dim in (24, 64):
        shape = (1, 2, length, 3 * dim)
        compare(strided(shape, "contiguous", generator), 1, "patch", *tables("lengths", shape, generator), generator)
    shape = (1, length, 2, 3 * dim)
    slots, lengths = tables("slots and lengths", shape, generator)
    compare(strided(shape, "sliced", generator), 1, "channel", slots, lengths, generator, "transposed")


@pytest.mark.slow
def test_two_thousand_tokens(interpreter):
    generator = torch.Generator().manual_seed(0)
    compare(strided((1, 1, 2048, 48), "contiguous", generator), 1, "patch", None, None, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 13, 5, 96), (1, 2, 150, 48)])
def test_reduced_precision_is_as_good_as_pytorch(triton, dtype, shape, monkeypatch):
    """Against fp64, at most twice the error of PyTorch's path in the same type (and one unit in the last place)."""
    generator = torch.Generator().manual_seed(3)
    qkv = strided(shape, "contiguous", generator, dtype)
    upstream = strided((*shape[:3], shape[3] // 3), "contiguous", generator, dtype)
    exact = qkv.double().requires_grad_()
    expected = naive_attention(exact, 2, "patch")
    (exact_grad,) = torch.autograd.grad(expected, exact, upstream.double())

    def errors(backend):
        monkeypatch.setenv("AUXMAE_KERNELS", backend)
        leaf = qkv.detach().to(triton).requires_grad_()
        out = kernels.axial_attention(leaf, 2, "patch")
        assert out.dtype == dtype
        (grad,) = torch.autograd.grad(out, leaf, upstream.to(triton))
        return [(a.cpu().double() - b).abs().max().item() for a, b in ((out, expected), (grad, exact_grad))]

    for ours, theirs, scale in zip(errors("triton"), errors("torch"), (expected, exact_grad), strict=True):
        assert ours <= 2 * theirs + torch.finfo(dtype).eps * scale.abs().max().item()


@pytest.mark.parametrize(("axis", "kind"), [("patch", "lengths"), ("channel", "slots"), ("channel", "slots and lengths")])
def test_gradients_by_finite_differences(interpreter, axis, kind):
    generator = torch.Generator().manual_seed(5)
    shape = (1, 3, 3, 6)
    slots, lengths = tables(kind, shape, generator)
    qkv = strided(shape, "contiguous", generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernels.axial_attention(x, 1, axis, slots, lengths), qkv)


def test_gradients_of_streamed_sequences_by_finite_differences(interpreter):
    qkv = torch.randn(1, 1, 129, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernels.axial_attention(x, 1, "patch"), qkv, fast_mode=True)


@pytest.mark.parametrize("length", [7, 140])
def test_extreme_logits_give_no_nan(interpreter, length):
    generator = torch.Generator().manual_seed(0)
    qkv = strided((1, 2, length, 48), "contiguous", generator)
    qkv[..., :32] *= 1e4
    qkv[0, 0, 0] = 0
    compare(qkv, 1, "patch", None, None, generator, tolerance=1e-6)


@pytest.mark.parametrize("length", [5, 140])
@pytest.mark.parametrize("kind", ["lengths", "slots", "slots and lengths"])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_nan_in_what_takes_no_part_is_harmless(interpreter, monkeypatch, length, kind, backend):
    """In the input and in the upstream gradient; what takes no part gets 0 for both."""
    monkeypatch.setenv("AUXMAE_KERNELS", backend)
    generator = torch.Generator().manual_seed(1)
    shape = (2, length, 3, 24) if "slots" in kind else (2, 3, length, 24)
    axis = "channel" if "slots" in kind else "patch"
    slots, lengths = tables(kind, shape, generator)
    part = torch.ones(shape[:3], dtype=torch.bool)
    if slots is not None:
        slots[:, 0] = -1  # an empty place; its tokens lie nowhere
        part[:] = False
        for b, _, c in (slots >= 0).nonzero().tolist():
            part[b, c, slots[b, _, c]] = True
    if lengths is not None:
        part &= torch.arange(shape[2]) < lengths[..., None]
    clean = strided(shape, "contiguous", generator).masked_fill(~part[..., None], 0.0)
    upstream = strided((*shape[:3], 8), "contiguous", generator)
    results = []
    for fill in (0.0, torch.nan):
        leaf = clean.masked_fill(~part[..., None], fill).requires_grad_()
        out = kernels.axial_attention(leaf, 2, axis, slots, lengths)
        (grad,) = torch.autograd.grad(out, leaf, upstream.masked_fill(~part[..., None], fill))
        results.append((out.detach(), grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert not b[~part].any()


@pytest.mark.parametrize("length", [6, 40])
def test_the_same_bits_every_time(triton, length):
    generator = torch.Generator().manual_seed(0)
    qkv = strided((2, 3, length, 48), "contiguous", generator, torch.float32).to(triton).requires_grad_()
    upstream = strided((2, 3, length, 16), "contiguous", generator, torch.float32).to(triton)
    results = []
    for _ in range(3):
        out = kernels.axial_attention(qkv, 2, "patch")
        results.append((out.detach(), *torch.autograd.grad(out, qkv, upstream)))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


@pytest.mark.parametrize(("length", "more"), [(7, 0), (40, 1)])
def test_nothing_is_kept_but_the_input(triton, length, more):
    """Of sequences that stream: the output too, and one number a row and head."""
    qkv = torch.randn(1, 2, length, 48, device=triton, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        kernels.axial_attention(qkv, 2, "patch")
    assert sum(x.numel() for x in kept) == qkv.numel() + more * (qkv.numel() // 3 + 1 * 2 * length * 2)


def test_a_scale_of_the_logits(interpreter):
    generator = torch.Generator().manual_seed(0)
    qkv = strided((1, 2, 9, 48), "contiguous", generator)
    factor = torch.ones(48, dtype=torch.float64)
    factor[:16] = -0.3 * 8**0.5
    out = kernels.axial_attention(qkv, 2, "patch", scale=-0.3)
    assert torch.allclose(out, naive_attention(qkv * factor, 2, "patch"), atol=1e-9)


def test_autocast_computes_in_the_reduced_type(triton):
    qkv = torch.randn(1, 2, 5, 48, device=triton, requires_grad=True)
    with torch.autocast(triton, torch.bfloat16):
        out = kernels.axial_attention(qkv, 2, "patch")
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert qkv.grad.dtype == torch.float32


@pytest.mark.parametrize("length", [5, 40])
def test_the_operator_keeps_its_contract(triton, length):
    """Schema, fake tensors, autograd registration, and tracing with dynamic shapes."""
    generator = torch.Generator().manual_seed(0)
    qkv = strided((2, 3, length, 24), "sliced", generator, torch.float32).to(triton).detach().requires_grad_()
    lengths = torch.full((2, 3), length, dtype=torch.int32, device=triton)
    for tables_ in ((None, None), (None, lengths)):
        torch.library.opcheck(torch.ops.auxmae_kernels.axial_attention.default, (qkv, 2, False, *tables_, None))


def test_compiled_whole_and_once_for_every_batch_size(triton):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: kernels.axial_attention(x, 2, "patch") * 2, fullgraph=True, backend=counter)
    generator = torch.Generator().manual_seed(0)
    for batch in (2, 3, 5):
        qkv = strided((batch, 3, 5, 24), "contiguous", generator, torch.float32).to(triton).requires_grad_()
        torch._dynamo.mark_dynamic(qkv, 0)
        out = compiled(qkv)
        expected = kernels.axial_attention(qkv, 2, "patch") * 2
        assert torch.equal(out, expected)
        upstream = torch.randn_like(out)
        pair = [torch.autograd.grad(x, qkv, upstream)[0] for x in (out, expected)]
        assert torch.equal(*pair)
    assert counter.frame_count == 1


def test_where_it_cannot_run_it_says_why(triton):
    with pytest.raises(kernels.KernelUnavailableError, match="129"):
        kernels.axial_attention(torch.randn(1, 1, 2, 3 * 129, device=triton), 1, "patch")
    with pytest.raises(ValueError, match="head dim"):
        kernels.axial_attention(torch.randn(1, 1, 2, 10, device=triton), 2, "patch")

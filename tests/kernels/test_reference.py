"""The public functions against naive loops in double precision."""

from __future__ import annotations

import itertools
import math

import auxmae_kernels as kernels
import pytest
import torch
from auxmae_kernels import KernelUnavailableError, attention_reference, boundary, dispatch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.kernels.naive import naive_attention, random_slots


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.sampled_from([1, 3, 8]), st.integers(0, 99))
def test_axial_attention_against_loops(batch, channels, tokens, heads, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(batch, channels, tokens * 2, 3 * heads * dim, dtype=torch.float64, generator=generator)
    qkv = wide[:, :, ::2]  # not contiguous
    lengths = torch.randint(0, tokens + 1, (batch, channels), generator=generator)
    for axis in ("patch", "channel"):
        expected = naive_attention(qkv, heads, axis)
        assert torch.allclose(kernels.axial_attention(qkv, heads, axis), expected, atol=1e-10)
        poisoned = qkv.clone()
        poisoned[torch.arange(tokens) >= lengths[..., None]] = torch.nan
        expected = naive_attention(qkv, heads, axis, lengths=lengths)
        assert torch.allclose(kernels.axial_attention(poisoned, heads, axis, lengths=lengths), expected, atol=1e-10)


@pytest.mark.parametrize(("joint", "counted"), [(10**6, True), (0, True), (0, False)])
@pytest.mark.parametrize("seed", range(4))
def test_ragged_channel_attention_every_way(monkeypatch, joint, counted, seed):
    monkeypatch.setattr(attention_reference, "JOINT_TOKENS", joint)
    # As on a GPU, where values are not read.
    monkeypatch.setattr(boundary, "reading_is_free", lambda tensor: counted)
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(2, 4, 3, 24, dtype=torch.float64, generator=generator, requires_grad=True)
    slots = random_slots(2, 4, 3, 9, generator)
    out = kernels.axial_attention(qkv, 2, "channel", slots)
    expected = naive_attention(qkv, 2, "channel", slots)
    assert torch.allclose(out, expected, atol=1e-10)
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    (a,) = torch.autograd.grad(out, qkv, upstream)
    (b,) = torch.autograd.grad(expected, qkv, upstream)
    assert torch.allclose(a, b, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(0, 8), st.booleans(), st.integers(0, 10**6))
def test_places_of_any_fullness_are_gathered(batch, channels, tokens, hidden, first, seed):
    """Places that every channel shows (those of CLS tokens), that none does, and tokens that lie nowhere."""
    generator = torch.Generator().manual_seed(seed)
    slots = random_slots(batch, channels, tokens, tokens + hidden, generator)
    slots[torch.rand(slots.shape, generator=generator) < 0.3] = -1
    if first:
        slots[slots == 0] = -1
        slots[:, :1] = 0
    qkv = torch.randn(batch, channels, tokens, 24, dtype=torch.float64, generator=generator)
    expected = naive_attention(qkv, 2, "channel", slots)
    for readable in (True, False):  # how full the places are is counted, or bounded by shapes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_reference, "JOINT_TOKENS", 0)
            patch.setattr(boundary, "reading_is_free", lambda tensor, readable=readable: readable)
            assert torch.allclose(kernels.axial_attention(qkv, 2, "channel", slots), expected, atol=1e-10)


def test_gathering_by_place_is_one_graph_for_the_compiler(monkeypatch):
    monkeypatch.setattr(attention_reference, "JOINT_TOKENS", 0)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 7, 3, 24, dtype=torch.float64, generator=generator)
    slots = random_slots(2, 7, 3, 9, generator)
    compiled = torch.compile(kernels.axial_attention, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(qkv, 2, "channel", slots), naive_attention(qkv, 2, "channel", slots), atol=1e-10)


@pytest.mark.parametrize("axis", ["patch", "channel"])
@pytest.mark.parametrize("length", [31, 33, 40])
def test_short_and_long_sequences_agree_with_loops(axis, length):
    """On a CPU, the plain products and the fused attention behind them, from packed, strided queries, keys and values."""
    shape = (2, 3, length, 30) if axis == "patch" else (2, length, 3, 30)
    packed = torch.randn(*shape[:3], 40, dtype=torch.float64)[..., 5:35].requires_grad_()
    out = kernels.axial_attention(packed, 2, axis, scale=0.3)
    factor = torch.ones(30, dtype=torch.float64)
    factor[:10] = 0.3 * math.sqrt(5)
    expected = naive_attention(packed * factor, 2, axis)
    assert torch.allclose(out, expected, atol=1e-10)
    with torch.no_grad():
        assert torch.allclose(kernels.axial_attention(packed, 2, axis, scale=0.3), expected, atol=1e-10)
    upstream = torch.randn_like(out)
    (a,), (b,) = torch.autograd.grad(out, packed, upstream), torch.autograd.grad(expected, packed, upstream)
    assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("axis", ["patch", "channel"])
def test_lengths_without_padding_change_nothing(axis):
    qkv = torch.randn(2, 3, 5, 12, dtype=torch.float64, requires_grad=True)
    whole = torch.full((2, 3), 5)
    found, expected = (kernels.axial_attention(qkv, 2, axis, lengths=lengths) for lengths in (whole, None))
    assert torch.equal(found, expected)
    # One token less, and it takes no part and gets nothing.
    whole[1, 2] = 4
    fewer = kernels.axial_attention(qkv, 2, axis, lengths=whole)
    assert (fewer[1, 2, 4] == 0).all()
    rest = (1, 2, slice(4)) if axis == "patch" else (1, slice(2), 4)
    assert not torch.allclose(fewer[rest], expected[rest])


@pytest.mark.parametrize("axis", ["patch", "channel"])
def test_the_attention_sublayer_is_what_its_docstring_says(axis):
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    shapes = ((8,), (8,), (24, 8), (24,), (8, 8), (8,))
    norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm_weight + norm_bias
    for bias in (b_qkv, None):
        qkv = y @ w_qkv.T + (0 if bias is None else bias)
        expected = x + 0.5 * (naive_attention(qkv, 2, axis) @ w_out.T + b_out)
        out = kernels.attention_block(x, norm_weight, norm_bias, w_qkv, bias, w_out, b_out, 2, axis, residual_scale=0.5)
        assert torch.allclose(out, expected, atol=1e-10)


def test_the_feed_forward_sublayer_keeps_no_gelu_output():
    """Its value and gradient against the formula, and that what is kept is at most the input, its norm and one hidden layer."""
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    shapes = ((4,), (4,), (12, 4), (12,), (4, 12), (4,))
    parameters = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    norm_weight, norm_bias, w1, b1, w2, b2 = parameters
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        out = kernels.feed_forward(x, *parameters, residual_scale=0.5)
    assert sum(shape == (7, 12) for shape in kept) <= 1
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm_weight + norm_bias
    h = y @ w1.T + b1
    expected = x + 0.5 * ((h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))) @ w2.T + b2)
    assert torch.allclose(out, expected, atol=1e-10)
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad(out, [x, *parameters], upstream)
    theirs = torch.autograd.grad(expected, [x, *parameters], upstream)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_masked_attention_is_differentiated_twice_without_a_fused_kernel():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 3, 2, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    slots = random_slots(1, 3, 2, 4, generator)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: kernels.axial_attention(x, 2, "channel", slots), qkv)


def test_more_sequences_than_a_fused_back_end_takes():
    qkv = torch.randn(2, 3, 40_000, 6)
    out = kernels.axial_attention(qkv, 1, "channel")
    assert torch.allclose(out[:, :, 39_990:], kernels.axial_attention(qkv[:, :, 39_990:], 1, "channel"), atol=1e-5)


def test_embed_visible_reads_visible_patches_only():
    image = torch.randn(2, 6, 8, 12, dtype=torch.float64)
    keep = torch.tensor([[[0, 3, 5], [1, 2, -1], [4, 5, -1]]]).expand(2, 3, 3)
    weight = torch.randn(3, 5, 32, dtype=torch.float64, requires_grad=True)
    bias, channel = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    position = torch.randn(6, 5, dtype=torch.float64)
    poisoned = torch.full_like(image, torch.nan)
    expected = torch.zeros(2, 3, 3, 5, dtype=torch.float64)
    for b in range(2):
        for g in range(3):
            for k in range(3):
                n = int(keep[b, g, k])
                if n < 0:
                    continue
                rows, columns = slice(n // 3 * 4, n // 3 * 4 + 4), slice(n % 3 * 4, n % 3 * 4 + 4)
                patch = image[b, g * 2 : g * 2 + 2, rows, columns]
                poisoned[b, g * 2 : g * 2 + 2, rows, columns] = patch
                expected[b, g, k] = weight[g] @ patch.flatten() + bias[g] + position[n] + channel[g]
    out = kernels.embed_visible(poisoned, keep, weight, bias, position, channel, 4)
    assert torch.allclose(out, expected, atol=1e-10)
    (gradient,) = torch.autograd.grad(out.sum(), weight)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("untied", [False, True])
def test_embed_visible_takes_no_gradient_from_a_hidden_patch(triton, monkeypatch, backend, activation, untied):
    """Padding stands for no place at all, place 0 neither, whatever that holds."""
    monkeypatch.setenv("AUXMAE_KERNELS", backend)
    keep = torch.tensor([[[1, 2, -1], [0, 3, 5], [4, -1, -1]]], device=triton)
    shapes = [(1, 3, 8, 12), (5, 16), (5,), (6, 5), (3, 5)]
    if untied:
        shapes[1:3] = (3, 5, 16), (3, 5)
    clean, *parts = (torch.randn(shape, device=triton) for shape in shapes)
    hidden = torch.tensor([[1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1]], dtype=torch.bool, device=triton)
    pixels = hidden.view(1, 3, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    poisoned = torch.where(pixels, torch.nan, clean)
    upstream, found = torch.randn(1, 3, 3, 5, device=triton), []
    for image in (poisoned, clean):
        leaves = [tensor.clone().requires_grad_() for tensor in (image, *parts)]
        out = kernels.embed_visible(leaves[0], keep, *leaves[1:], 4, activation)
        found.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_feed_forward_sublayer_of_a_single_token():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    shapes = ((4,), (4,), (6, 4), (6,), (4, 6), (4,))
    parameters = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(kernels.feed_forward, (x, *parameters))


def test_assemble_against_loops():
    latent = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    keep = torch.tensor([[[0, 4], [2, -1], [-1, -1]]]).expand(2, 3, 2)
    token, position, channel = (torch.randn(*s, dtype=torch.float64) for s in ((4,), (5, 4), (3, 4)))
    expected = token + position[None, None] + channel[None, :, None] + torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    for b in range(2):
        for c in range(3):
            for t in range(2):
                if keep[b, c, t] >= 0:
                    expected[b, c, keep[b, c, t]] = latent[b, c, t] + position[keep[b, c, t]] + channel[c]
    assert torch.allclose(kernels.assemble(latent, keep, token, position, channel), expected)


@pytest.mark.parametrize("kind", ["l1", "mse", "smooth_l1"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_masked_loss_against_loops(kind, normalize, whole):
    torch.manual_seed(1)
    image = torch.randn(2, 3, 4, 6, dtype=torch.float64) * 3
    valid = torch.rand(2, 3, 4, 6) > (-1 if whole else 0.2)
    index = torch.tensor([[[0, 2, 5], [1, 3, 2], [4, 5, 0]] if whole else [[0, 2, 5], [1, 3, -1], [4, -1, -1]]]).expand(2, 3, 3)
    prediction = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    total, count = 0.0, 0
    for b in range(2):
        for c in range(3):
            for m in range(3):
                n = int(index[b, c, m])
                if n < 0:
                    continue
                rows, columns = slice(n // 3 * 2, n // 3 * 2 + 2), slice(n % 3 * 2, n % 3 * 2 + 2)
                target, ok = image[b, c, rows, columns].flatten(), valid[b, c, rows, columns].flatten()
                if normalize and ok.any():
                    target = (target - target[ok].mean()) / (target[ok].var(unbiased=False) + 1e-6).sqrt()
                d = (prediction[b, c, m] - target)[ok]
                e = {"l1": d.abs(), "mse": d**2, "smooth_l1": torch.where(d.abs() < 1, d**2 / 2, d.abs() - 0.5)}[kind]
                total, count = total + e.sum(), count + int(ok.sum())
    poisoned = torch.where(valid, image, torch.nan)
    loss = kernels.masked_loss(prediction, poisoned, index, None if whole else valid, kind, normalize)
    assert torch.allclose(loss, total / count)
    (gradient,) = torch.autograd.grad(loss, prediction)
    (expected,) = torch.autograd.grad(total / count, prediction)
    assert torch.allclose(gradient, expected)
    empty = kernels.masked_loss(prediction, poisoned, index, torch.zeros_like(valid), kind, normalize)
    assert empty == 0


def test_dispatch_says_why_and_never_falls_back_in_silence(monkeypatch):
    monkeypatch.delenv("AUXMAE_KERNELS", raising=False)
    decision = dispatch.explain("axial_attention", device="cpu")
    assert decision.backend == "torch"
    assert decision.reason
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    monkeypatch.setattr("auxmae_kernels.boundary.interpreting", lambda: False)
    with pytest.raises(KernelUnavailableError, match="axial_attention"):
        kernels.axial_attention(torch.randn(1, 1, 2, 6), 1, "patch")
    monkeypatch.setenv("AUXMAE_KERNELS", "fast")
    with pytest.raises(ValueError, match="AUXMAE_KERNELS"):
        dispatch.backend()
    monkeypatch.delenv("AUXMAE_KERNELS")
    with pytest.raises(ValueError, match="axis"):
        kernels.axial_attention(torch.randn(1, 1, 2, 6), 1, "rows")


@pytest.mark.parametrize("name", dispatch.FUNCTIONS)
def test_double_precision_is_for_the_interpreter_alone(monkeypatch, name):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr("auxmae_kernels.boundary.interpreting", lambda: False)
    monkeypatch.setenv("AUXMAE_KERNELS", "auto")
    decision = dispatch.explain(name, dtype=torch.float64, device="cuda")
    assert (decision.backend, "float64" in decision.reason) == ("torch", True)
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match=rf"{name} cannot run: float64"):
        dispatch.explain(name, dtype=torch.float64, device="cuda")
    assert dispatch.explain(name, dtype=torch.float32, device="cuda").backend == "triton"


def test_a_feed_forward_keeps_the_hidden_numbers_once_and_can_be_differentiated_twice():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5, 4), (4,), (4,), (11, 4), (11,), (4, 11), (4,))
    inputs = [torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        value = kernels.feed_forward(*inputs, residual_scale=0.5)
    assert kept.count(2 * 3 * 5 * 11) == 1
    x, norm_weight, norm_bias, w1, b1, w2, b2 = inputs
    normed = torch.nn.functional.layer_norm(x, (4,), norm_weight, norm_bias, 1e-6)
    torch.testing.assert_close(value, x + 0.5 * (torch.nn.functional.gelu(normed @ w1.t() + b1) @ w2.t() + b2))
    assert torch.autograd.gradcheck(lambda *each: kernels.feed_forward(*each, residual_scale=0.5), inputs)
    assert torch.autograd.gradgradcheck(lambda *each: kernels.feed_forward(*each, residual_scale=0.5), inputs)


def _arguments(name, device="cpu"):
    """Arguments that fit, by name: B = 2, G = C = 3, K = M = T = 2 of four places, D = 8, patches of 4 × 4."""
    keep = torch.tensor([0, 2]).expand(2, 3, 2)
    image, position, channel = torch.rand(2, 3, 8, 8), torch.rand(4, 8), torch.rand(3, 8)
    x, norm = torch.rand(2, 3, 2, 8), {"norm_weight": torch.rand(8), "norm_bias": torch.rand(8)}
    sequences = {"slots": torch.tensor([[0], [-1], [1], [-1]]).expand(2, 4, 3), "lengths": torch.full((2, 3), 2)}
    given = {
        "axial_attention": {"qkv": torch.rand(2, 3, 2, 24), "heads": 2, "axis": "channel", **sequences},
        "attention_block": {
            "x": x, **norm, "w_qkv": torch.rand(24, 8), "b_qkv": torch.rand(24), "w_out": torch.rand(8, 8),
            "b_out": torch.rand(8), "heads": 2, "axis": "channel", **sequences,
        },
        "add_norm": {"x": x, "residual": torch.rand(2, 3, 2, 8), "weight": torch.rand(8), "bias": torch.rand(8)},
        "feed_forward": {
            "x": torch.rand(2, 8), **norm,
            "w1": torch.rand(5, 8), "b1": torch.rand(5), "w2": torch.rand(8, 5), "b2": torch.rand(8),
        },
        "embed_visible": {
            "image": image, "keep": keep, "weight": torch.rand(8, 16), "bias": torch.rand(8), "position": position,
            "channel": channel, "patch_size": 4,
        },
        "assemble": {
            "latent": torch.rand(2, 3, 2, 8), "keep": keep, "mask_token": torch.rand(8), "position": position, "channel": channel,
        },
        "masked_loss": {
            "prediction": torch.rand(2, 3, 2, 16), "image": image, "masked_index": keep, "valid": torch.rand(2, 1, 8, 8) > 0.5,
        },
    }[name]  # fmt: skip
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in given.items()}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", dispatch.FUNCTIONS)
def test_an_argument_of_another_shape_is_named(triton, monkeypatch, backend, name):
    monkeypatch.setenv("AUXMAE_KERNELS", backend)
    given = _arguments(name, triton)
    getattr(kernels, name)(**given)
    for key, value in given.items():
        if not isinstance(value, torch.Tensor) or (name, key) == ("feed_forward", "x"):
            continue
        for wrong in (torch.cat([value, value]), value[:1], value[None]):
            if (name, key) == ("assemble", "position") and wrong.ndim == 2:
                continue  # as many places as it has rows
            if (key == "valid" and wrong.shape == (1, 1, 8, 8)) or (
                key in ("x", "residual") and name == "add_norm" and len(wrong) < 4
            ):
                continue  # it broadcasts
            with pytest.raises(ValueError, match=r"^\w+ (\(.+\) does not|must be) .*\(.+\)"):
                getattr(kernels, name)(**{**given, key: wrong})


POSITIONS = (
    ("embed_visible", "keep"), ("assemble", "keep"), ("masked_loss", "masked_index"), ("axial_attention", "slots"),
    ("attention_block", "slots"),
)  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_arguments_of_another_type_are_refused(triton, monkeypatch, backend):
    monkeypatch.setenv("AUXMAE_KERNELS", backend)
    for name, key in (*POSITIONS, ("axial_attention", "lengths")):
        given = _arguments(name, triton)
        for wrong in (torch.float64, torch.uint8, torch.bool):
            with pytest.raises(ValueError, match=f"{key} must be integers"):
                getattr(kernels, name)(**{**given, key: given[key].to(wrong)})
    with pytest.raises(ValueError, match="patch_size must be at least 1, not 0"):
        kernels.embed_visible(**{**_arguments("embed_visible", triton), "patch_size": 0})
    given = _arguments("masked_loss", triton)
    with pytest.raises(ValueError, match="valid must be bool"):
        kernels.masked_loss(**{**given, "valid": given["valid"].float()})
    whole = given["valid"].expand(2, 3, 8, 8).contiguous()
    assert torch.equal(kernels.masked_loss(**given), kernels.masked_loss(**{**given, "valid": whole}))


@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
@pytest.mark.parametrize(("name", "key"), POSITIONS)
def test_positions_that_can_be_read_are_in_range(monkeypatch, backend, name, key):
    """On a CPU, ahead of whichever implementation would follow; on a GPU to read them would be to wait."""
    monkeypatch.setenv("AUXMAE_KERNELS", backend)
    given = _arguments(name)
    expected = "holds 3, and there are 2 tokens" if key == "slots" else "holds 4, and there are 4 positions"
    with pytest.raises(ValueError, match=f"{key} {expected}"):
        getattr(kernels, name)(**{**given, key: given[key] + 2})


# The arguments that have an entry for every image.
BATCHED = ("qkv", "x", "residual", "image", "latent", "prediction", "keep", "masked_index", "slots", "lengths", "valid")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", dispatch.FUNCTIONS)
def test_gradients_of_every_image_by_torch_func_are_those_of_a_loop(name):
    given = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in _arguments(name).items()
    }
    batched = {key: given.pop(key) for key in BATCHED if key in given}

    def loss(*image):
        out = getattr(kernels, name)(**{key: item[None] for key, item in zip(batched, image, strict=True)}, **given)
        return (out[1] if isinstance(out, tuple) else out).square().sum()

    rows = torch.func.vmap(torch.func.grad(loss))(*batched.values())
    for row, first, *others in zip(rows, *batched.values(), strict=True):
        leaf = first.clone().requires_grad_()
        torch.testing.assert_close(row, torch.autograd.grad(loss(leaf, *others), leaf)[0])


@pytest.mark.parametrize("name", dispatch.FUNCTIONS)
def test_tensors_without_memory_give_shapes_and_types(name):
    expected, found = (getattr(kernels, name)(**_arguments(name, device)) for device in ("cpu", "meta"))
    for one, other in zip(expected, found, strict=True) if name == "add_norm" else ((expected, found),):
        assert other.device.type == "meta"
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


class Storages(TorchDispatchMode):
    """Bytes of the largest tensor that any operator has made."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        out = function(*arguments, **(named or {}))
        sizes = [each.untyped_storage().nbytes() for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def test_padding_of_long_sequences_takes_no_memory_of_their_square():
    tokens = 3000
    qkv = torch.randn(2, 3, tokens, 3 * 4)
    lengths = torch.tensor([[tokens, 5, 0], [1, tokens - 1, 7]])
    with Storages() as made:
        out = attention_reference.axial_attention(qkv, 1, "patch", lengths=lengths)
    assert made.largest < 4 * qkv.nbytes < tokens**2
    for b, c in itertools.product(range(2), range(3)):
        length = int(lengths[b, c])
        assert not out[b, c, length:].any()
        if length:
            alone = attention_reference.axial_attention(qkv[b : b + 1, c : c + 1, :length], 1, "patch")
            torch.testing.assert_close(out[b, c, :length], alone[0, 0], rtol=1e-4, atol=1e-5)

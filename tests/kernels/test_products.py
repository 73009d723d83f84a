"""Linear maps through oneDNN: against double precision, with any strides, plain and compiled."""

from __future__ import annotations

import shutil

import pytest
import torch
from auxmae_kernels import products, reference
from torch.autograd import forward_ad

pytestmark = pytest.mark.skipif(not products._available(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """oneDNN for every product, however small; gives the list of those that it computed."""
    monkeypatch.setenv("AUXMAE_ONEDNN", "1")
    monkeypatch.setattr(products, "smallest", lambda: 0)
    monkeypatch.setattr(products, "SMALLEST_WEIGHT", 0)
    calls, original = [], products._product

    def counted(*arguments):
        calls.append(tuple(arguments[0].shape))
        return original(*arguments)

    monkeypatch.setattr(products, "_product", counted)
    return calls


def operands(shape, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*s, generator=generator) for s in (shape, (outputs, shape[-1]), (outputs,)))
    return [each.requires_grad_() for each in (x, weight, bias)]


@pytest.mark.parametrize(("shape", "outputs"), [((7,), 3), ((5, 7), 1), ((2, 3, 4, 33), 65), ((300, 128), 257)])
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradients(taken, shape, outputs, biased):
    inputs = operands(shape, outputs)[: 3 if biased else 2]
    y = products.linear(*inputs)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = torch.nn.functional.linear(*exact)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    ours = torch.autograd.grad(y, inputs, upstream)
    theirs = torch.autograd.grad(expected, exact, upstream.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
    assert len(taken) == 3


def test_any_strides_and_an_expanded_gradient(taken):
    x, weight, bias = operands((64, 6, 48), 96)
    turned, parts = x.transpose(0, 1)[:, ::2], weight.chunk(3)[1]
    y = products.linear(turned, parts, bias.chunk(3)[1])
    torch.testing.assert_close(y, torch.nn.functional.linear(turned, parts, bias.chunk(3)[1]))
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    expected = torch.autograd.grad(torch.nn.functional.linear(turned, parts).sum(), (x, weight))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(taken) == 3


def test_only_the_gradients_that_are_asked_for(taken):
    x, weight, bias = operands((8, 16), 4)
    products.linear(x.detach(), weight, bias).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    assert taken == [(8, 16), (4, 8)]


def test_gradients_of_gradients(taken):
    x, weight, _ = operands((6, 8), 5)

    def penalty(function):
        (slope,) = torch.autograd.grad(function(x, weight).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, weight))

    for a, b in zip(penalty(products.linear), penalty(torch.nn.functional.linear), strict=True):
        torch.testing.assert_close(a, b)
    assert taken


def by_forward_mode(function):
    def derivative(weight, x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(weight, weight), x)).tangent

    return derivative


TRANSFORMS = {
    "grad": torch.func.grad,
    "gradients of every image": lambda function: torch.func.vmap(torch.func.grad(function), (None, 0)),
    "hessian": torch.func.hessian,
    "jvp": lambda function: lambda weight, x: torch.func.jvp(lambda each: function(each, x), (weight,), (weight,))[1],
    "forward mode": by_forward_mode,
    "compiled": lambda function: torch.compile(torch.func.grad(function), fullgraph=True, backend="aot_eager"),
}


# PyTorch's own forward mode has parts that it calls deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_torch_func_and_forward_mode(transform):
    x, weight, bias = (each.detach() for each in operands((3, 6, 8), 5))

    def derivative(linear):
        return transform(lambda weight, x: linear(x, weight, bias).tanh().square().sum())(weight, x)

    expected = derivative(torch.nn.functional.linear)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(derivative(products.linear), expected)


def test_a_sublayers_gradients_of_every_image_by_torch_func(taken):
    x, w1, b1 = operands((3, 6, 8), 16)
    _, w2, b2 = operands((16,), 8)
    norm = torch.ones(8), torch.zeros(8)

    def loss(w1, w2, image):
        return reference.feed_forward(image, *norm, w1, b1, w2, b2).square().sum()

    found = torch.func.vmap(torch.func.grad(loss, (0, 1)), (None, None, 0))(w1, w2, x)
    taken.clear()
    for index, image in enumerate(x):
        for row, expected in zip(found, torch.autograd.grad(loss(w1, w2, image), (w1, w2)), strict=True):
            torch.testing.assert_close(row[index], expected)
    assert taken


def test_nothing_is_kept_but_the_operands(taken):
    x, weight, bias = operands((128, 32), 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        products.linear(x, weight, bias)
    assert sorted(kept) == sorted([x.shape, weight.shape])
    assert taken


def test_other_types_autocast_and_small_products_are_left_to_pytorch(taken, monkeypatch):
    x, weight, bias = (each.detach() for each in operands((8, 16), 4))
    for dtype in (torch.float64, torch.bfloat16):
        assert products.linear(x.to(dtype), weight.to(dtype), bias.to(dtype)).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(x, weight, bias).dtype == torch.bfloat16
    monkeypatch.setattr(products, "smallest", lambda: 8 * 16 * 4 + 1)
    products.linear(x, weight, bias)
    monkeypatch.setattr(products, "smallest", lambda: 0)
    monkeypatch.setenv("AUXMAE_ONEDNN", "0")
    products.linear(x, weight, bias)
    assert not taken


def test_the_default_device_decides_nothing():
    products._available.cache_clear()
    with torch.device("meta"):
        assert products._available()


def test_the_vendor_decides(monkeypatch):
    monkeypatch.delenv("AUXMAE_ONEDNN")
    for vendor, capability, expected in (
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
    ):
        monkeypatch.setattr(products.Path, "read_text", lambda *_, vendor=vendor, **__: f"vendor_id\t: {vendor}\n")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        products._faster.cache_clear()
        assert products.onednn() is expected
    products._faster.cache_clear()


@pytest.mark.parametrize(
    ("about", "expected"),
    [("cpu family\t: 25\n", 2**24), ("cpu family\t: 26\n", 2**21), ("cpu family\t: 6\n", 2**21), ("", 2**21)],
)
def test_zen_4_takes_onednn_for_larger_products_alone(monkeypatch, about, expected):
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products.Path, "read_text", lambda *_, **__: f"vendor_id\t: AuthenticAMD\n{about}")
        products._smallest.cache_clear()
        assert products.smallest() == expected
    products._smallest.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_without_a_break(taken):
    inputs = operands((4, 32, 64), 48)
    compiled = torch.compile(products.linear, fullgraph=True)
    y = compiled(*inputs)
    expected = torch.nn.functional.linear(*inputs)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b)

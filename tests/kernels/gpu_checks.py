"""What a GPU alone can show of each function, as checks that also run small in the interpreter, to find their own faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import auxmae_kernels as kernels
import torch
from torch import Tensor

from tests.kernels import checks
from tests.kernels.naive import random_slots


@dataclass(frozen=True)
class Case:
    """A function of `inputs` alone, with the gradients of what comes out."""

    function: Callable[..., Any]
    inputs: list[Tensor]
    upstream: list[Tensor]


@dataclass(frozen=True)
class Sizes:
    """B images of C channels, h × w patches of p pixels a side of which K are visible; D numbers a token, in H heads."""

    batch: int
    channels: int
    grid: tuple[int, int]
    side: int
    kept: int
    width: int
    heads: int

    @property
    def places(self) -> int:
        """Positions of the patch grid."""
        return self.grid[0] * self.grid[1]


SMALL = Sizes(batch=2, channels=3, grid=(2, 2), side=2, kept=2, width=16, heads=2)
# The reference preset's, with odd sizes: tiles that are not full, a width that is no power of two.
GPU_SIZES = {
    "reference": Sizes(batch=16, channels=13, grid=(4, 4), side=16, kept=5, width=256, heads=8),
    "odd": Sizes(batch=7, channels=5, grid=(5, 3), side=6, kept=7, width=120, heads=5),
}


def _drawn(*shape: int, dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=device) * scale).to(dtype).requires_grad_()


def _keep(sizes: Sizes, count: int, device: str) -> Tensor:
    keep = torch.rand(sizes.batch, sizes.channels, sizes.places, device=device).argsort(2)[..., :count]
    # The last token of some channels is padding.
    padding = (torch.arange(count, device=device) == count - 1) & (
        torch.rand(sizes.batch, sizes.channels, 1, device=device) < 0.3
    )
    return torch.where(padding, -1, keep)


def axial_attention(sizes: Sizes, dtype: torch.dtype, device: str) -> Case:
    """Ragged, along the channels."""
    shape = (sizes.batch, sizes.channels, sizes.kept)
    slots = random_slots(*shape, sizes.places, torch.Generator().manual_seed(0)).to(device)
    return Case(
        lambda qkv: kernels.axial_attention(qkv, sizes.heads, "channel", slots),
        [_drawn(*shape, 3 * sizes.width, dtype=dtype, device=device)],
        [_drawn(*shape, sizes.width, dtype=dtype, device=device).detach()],
    )


def feed_forward(sizes: Sizes, dtype: torch.dtype, device: str) -> Case:
    """All tokens of a grid; hidden numbers twice the width."""
    width, hidden = sizes.width, 2 * sizes.width
    shape = (sizes.batch, sizes.channels, sizes.places, width)
    shapes = ((width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
    weights = [_drawn(*s, dtype=dtype, device=device, scale=s[-1] ** -0.5) for s in shapes]
    return Case(
        lambda *inputs: kernels.feed_forward(*inputs, residual_scale=0.5),
        [_drawn(*shape, dtype=dtype, device=device), *weights],
        [_drawn(*shape, dtype=dtype, device=device).detach()],
    )


def _block(axis: str) -> Callable[[Sizes, torch.dtype, str], Case]:
    def case(sizes: Sizes, dtype: torch.dtype, device: str) -> Case:
        shape = (sizes.batch, sizes.channels, sizes.kept)
        slots = lengths = None
        if axis == "channel":
            slots = random_slots(*shape, sizes.places, torch.Generator().manual_seed(0)).to(device)
        else:
            lengths = torch.randint(1, sizes.kept + 1, shape[:2], device=device, dtype=torch.int32)
        width = sizes.width
        shapes = ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
        weights = [_drawn(*s, dtype=dtype, device=device, scale=s[-1] ** -0.5) for s in shapes]
        return Case(
            lambda *inputs: kernels.attention_block(*inputs, sizes.heads, axis, slots, lengths, residual_scale=0.5),
            [_drawn(*shape, width, dtype=dtype, device=device), *weights],
            [_drawn(*shape, width, dtype=dtype, device=device).detach()],
        )

    return case


def add_norm(sizes: Sizes, dtype: torch.dtype, device: str) -> Case:
    """Both results count."""
    shape = (sizes.batch, sizes.channels, sizes.places, sizes.width)
    return Case(
        lambda *inputs: kernels.add_norm(*inputs, residual_scale=0.5),
        [_drawn(*s, dtype=dtype, device=device) for s in (shape, shape, shape[-1:], shape[-1:])],
        [_drawn(*shape, dtype=dtype, device=device).detach() for _ in range(2)],
    )


def embed_visible(sizes: Sizes, dtype: torch.dtype, device: str) -> Case:
    """A map per channel; the image asks for no gradient, as in training."""
    keep = _keep(sizes, sizes.kept, device)
    pixels = sizes.side**2
    image = _drawn(sizes.batch, sizes.channels, *(n * sizes.side for n in sizes.grid), dtype=dtype, device=device).detach()
    shapes = ((sizes.channels, sizes.width, pixels), (sizes.channels, sizes.width))
    shapes += ((sizes.places, sizes.width), (sizes.channels, sizes.width))
    return Case(
        lambda *parts: kernels.embed_visible(image.to(parts[0].dtype), keep, *parts, sizes.side),
        [_drawn(*s, dtype=dtype, device=device, scale=pixels**-0.5) for s in shapes],
        [_drawn(*keep.shape, sizes.width, dtype=dtype, device=device).detach()],
    )


def assemble(sizes: Sizes, dtype: torch.dtype, device: str) -> Case:
    """A mask token for all channels."""
    keep = _keep(sizes, sizes.kept, device)
    shapes = ((*keep.shape, sizes.width), (sizes.width,), (sizes.places, sizes.width), (sizes.channels, sizes.width))
    return Case(
        lambda latent, *rest: kernels.assemble(latent, keep, *rest),
        [_drawn(*s, dtype=dtype, device=device) for s in shapes],
        [_drawn(sizes.batch, sizes.channels, sizes.places, sizes.width, dtype=dtype, device=device).detach()],
    )


def masked_loss(sizes: Sizes, dtype: torch.dtype, device: str) -> Case:
    """Normalised targets, squared error, some pixels invalid."""
    index = _keep(sizes, sizes.places - sizes.kept, device)
    image = torch.randn(sizes.batch, sizes.channels, *(n * sizes.side for n in sizes.grid), device=device)
    valid = torch.rand_like(image) > 0.2
    image = image.masked_fill(~valid, torch.nan)
    double = dtype == torch.float64
    return Case(
        lambda prediction: kernels.masked_loss(prediction, image, index, valid, "mse", True),
        [_drawn(*index.shape, sizes.side**2, dtype=dtype, device=device)],
        [torch.tensor(1.0, device=device, dtype=torch.float64 if double else torch.float32)],
    )


CASES: dict[str, Callable[[Sizes, torch.dtype, str], Case]] = {
    "axial_attention": axial_attention,
    "feed_forward": feed_forward,
    "attention_block/patch": _block("patch"),
    "attention_block/channel": _block("channel"),
    "add_norm": add_norm,
    "embed_visible": embed_visible,
    "assemble": assemble,
    "masked_loss": masked_loss,
}


def check_error(case: Case) -> None:
    """At most twice the error of PyTorch's path in the same type, against that path in fp64."""

    def in_double(*inputs: Tensor) -> Any:
        with checks.pytorch():
            return case.function(*inputs)

    checks.check_precision(case.function, in_double, case.inputs, case.upstream)


def check_repetition(case: Case, times: int) -> None:
    """The same bits every time."""
    first = checks.values_and_gradients(case.function, case.inputs, case.upstream)
    for _ in range(times):
        checks.assert_same_bits(checks.values_and_gradients(case.function, case.inputs, case.upstream), first)


Replay = Callable[[], None]


def cuda_graph(work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Replay]:
    """Captures `work` in a CUDA graph: what it gives, and a function that computes it anew in place."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Compiles what there is to compile, which cannot be captured.
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return results, graph.replay


def repeated(work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Replay]:
    """What `cuda_graph` does, where there is no GPU: replaying does the work again."""
    results = work()

    def replay() -> None:
        for old, new in zip(results, work(), strict=True):
            old.data.copy_(new)

    return results, replay


def check_graph(case: Case, capture: Callable[[Callable[[], Sequence[Tensor]]], tuple[Sequence[Tensor], Replay]]) -> None:
    """Value and gradients, captured and replayed on other numbers, are those of plain calls."""
    work = lambda: checks.values_and_gradients(case.function, case.inputs, case.upstream)  # noqa: E731
    results, replay = capture(work)
    with torch.no_grad():
        case.inputs[0].copy_(torch.randn_like(case.inputs[0]))
    replay()
    checks.assert_same_bits(results, work())


def check_compiled(case: Case, backend: str) -> None:
    """Compiled without a break and called plainly: the same bits."""
    compiled = torch.compile(case.function, fullgraph=True, backend=backend)
    plain = checks.values_and_gradients(case.function, case.inputs, case.upstream)
    checks.assert_same_bits(checks.values_and_gradients(compiled, case.inputs, case.upstream), plain)


def check_far_tokens(name: str, elements: int, device: str) -> None:
    """The last image of so many that the largest tensor has more than `elements` comes out as it does alone, and so its gradient.

    fp16, width 256 or patches of 16 pixels a side; every image is the same, so that one is enough to draw.
    """
    one = Sizes(batch=1, channels=4, grid=(4, 4), side=16, kept=16, width=256, heads=8)
    largest = one.channels * one.places * one.width
    batch = elements // largest + 1
    width, dtype = one.width, torch.float16
    vector = lambda *shape: _drawn(*shape, dtype=dtype, device=device, scale=0.1).detach()  # noqa: E731
    tokens = vector(1, one.channels, one.places, width)
    image = vector(1, one.channels, 64, 64)
    keep = torch.rand(1, one.channels, one.places, device=device).argsort(2)
    call: Callable[[Tensor, Tensor], Any]
    if name == "feed_forward":
        weights = [vector(width), vector(width), vector(32, width), vector(32), vector(width, 32), vector(width)]
        call, source = (lambda x, _: kernels.feed_forward(x, *weights)), tokens
    elif name == "attention_block":
        weights = [vector(width), vector(width), vector(3 * width, width), None, vector(width, width), None]
        call, source = (lambda x, _: kernels.attention_block(x, *weights, one.heads, "patch")), tokens
    elif name == "add_norm":
        call, source = (lambda x, _: kernels.add_norm(x, x, vector(width) * 0 + 1, vector(width) * 0)[1]), tokens
    elif name == "embed_visible":
        parts = [vector(width, 256), vector(width), vector(one.places, width), vector(one.channels, width)]
        call, source = (lambda x, index: kernels.embed_visible(x, index, *parts, one.side)), image
    elif name == "assemble":
        parts = [vector(width), vector(one.places, width), vector(one.channels, width)]
        call, source = (lambda x, index: kernels.assemble(x, index, *parts)), tokens
    elif name == "masked_loss":

        def call(x: Tensor, index: Tensor) -> Tensor:
            # Of all images but the last, nothing is hidden.
            others = torch.arange(len(x), device=device) < len(x) - 1
            hidden = index.masked_fill(others[:, None, None], -1)
            return kernels.masked_loss(x, image.expand(len(x), -1, -1, -1).contiguous(), hidden, None, "mse")[None]

        source = tokens
    else:
        raise ValueError(f"{name} has no case of many images")
    many = source.expand(batch, *source.shape[1:]).contiguous()
    indices = keep.expand(batch, -1, -1).contiguous()
    assert many.numel() > elements
    results = []
    for images, index in ((many, indices), (source, keep)):
        x = images.detach().requires_grad_(name != "embed_visible")
        out = call(x, index)
        result = [out[-1:].detach().clone()]
        if x.requires_grad:
            # An upstream gradient of zeros everywhere but in the last image.
            upstream = torch.zeros_like(out)
            upstream[-1:] = 0.5
            result.append(torch.autograd.grad(out, x, upstream)[0][-1:].clone())
        results.append(result)
        del out, x
    # A library's product may add in another order where there are more rows (`attention_block` has one on the way forward too),
    # and so does a sum over all of them.  A tile of `embed_visible` holds rows of several images, and NumPy's product, the
    # interpreter's, rounds by a row's place on some CPUs.
    summed = 0 if name in ("masked_loss", "attention_block") or (name == "embed_visible" and device == "cpu") else 1
    checks.assert_same_bits(results[0][:summed], results[1][:summed])
    checks.assert_close(results[0][summed:], results[1][summed:], 4 * torch.finfo(dtype).eps)


# Those whose tensors a test can make so large; `axial_attention` has a case of its own.
FAR = ("feed_forward", "attention_block", "add_norm", "embed_visible", "assemble", "masked_loss")

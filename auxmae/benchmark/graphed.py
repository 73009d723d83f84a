"""A pass of the model suite as one CUDA graph, which gets a figure only where its first replay is the pass itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auxmae.benchmark.measure import WrongResultError
from auxmae.training.graph import WARMUP_STEPS, alike, beside, capture_cuda_graph


def replayed(work: Callable[[], Tensor], device: torch.device, optimizer: torch.optim.AdamW) -> Callable[[], object]:
    """The work as a CUDA graph, captured by the first call.

    Args:
        work: a pass, gives its loss; draws from the default generator; may step the optimizer.

    The first call raises WrongResultError where the graph's loss or gradients are not those of the work from the same state.
    """
    replays: list[Callable[[], None]] = []

    def run() -> None:
        if not replays:
            for _ in range(WARMUP_STEPS):
                beside(work, device)
            replays.append(_captured(work, device, optimizer))
        replays[0]()

    return run


def _captured(work: Callable[[], Tensor], device: torch.device, optimizer: torch.optim.AdamW) -> Callable[[], None]:
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    others = [value for state in optimizer.state.values() for name, value in state.items() if name != "exp_avg"]
    tensors = [*moments, *others, *(weight for group in optimizer.param_groups for weight in group["params"])]
    saved = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def restore() -> None:
        for tensor, before in zip(tensors, saved, strict=True):
            # In place: the graph knows nothing but addresses.
            tensor.copy_(before)

    def begin() -> None:
        restore()
        # From 0 the first moment of one step is its gradient, but for a factor.
        for moment in moments:
            moment.zero_()
        torch.manual_seed(0)

    def outcome(loss: Tensor) -> list[float]:
        norms = [moment.norm() for moment in moments]
        return [float(loss), float(torch.stack(norms).norm()) if norms else 0.0]

    begin()
    expected = outcome(beside(work, device))
    begin()
    losses: list[Tensor] = []
    replay = capture_cuda_graph(lambda: losses.append(work()), [])
    replay()
    found = outcome(losses[-1])
    restore()
    if not alike(found, expected):
        raise WrongResultError(
            f"the CUDA graph is not the pass: loss {found[0]:.6g} instead of {expected[0]:.6g}, norm of the gradients' moments "
            f"{found[1]:.6g} instead of {expected[1]:.6g}"
        )
    return replay

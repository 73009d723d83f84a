"""Muon: momentum whose every matrix is made orthogonal before it is added to the weights.

Source: K. Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale by which it takes
AdamW's learning rates is that of arXiv 2502.16982.  `torch.optim.Muon` computes the same, one matrix at a time, always in bf16,
and reads the learning rate back from the device; here matrices of one shape go together, and nothing is read, so that a step
can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Of the quintic p(x) = ax + bx³ + cx⁵, whose iterates bring every singular value in (0, 1] near 1 in few steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Updates matrices (out, in) with orthogonalised Nesterov momentum and decoupled weight decay.

    Args:
        params: matrices (out, in).
        lr: learning rate, a number or a scalar tensor; the update has the root mean square, 0.2 · lr, that AdamW's tends to have.
        weight_decay: part of the weights, times lr, that each step takes away.
        momentum: of the running mean of gradients.
        parts: as how many matrices each is treated, one on top of the other: 3 where it gives queries, keys and values.

    Raises:
        ValueError: a parameter that is not a matrix.
    """

    # `torch.amp.GradScaler` then gives `grad_scale` and `found_inf`, tensors, and leaves it to the step to divide and to skip;
    # otherwise it would read from the device whether a gradient is infinite, and no CUDA graph could hold the step.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        parts: int = 1,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": parts})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices only, not a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that there are."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for alike in shapes.values():
                self._update(alike, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        rate, scale, found_inf = group["lr"], getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            gradients = list(torch._foreach_div(gradients, scale))
        if found_inf is None:
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        else:
            # A step with an infinite gradient changes nothing: momentum by no part of a gradient of zeros, weights at no rate.
            finite = found_inf == 0
            gradients = list(torch.where(finite, torch.stack(gradients), 0.0))
            rate = rate * finite
            torch._foreach_mul_(momenta, 1 - finite * (1 - group["momentum"]))
            torch._foreach_add_(momenta, gradients, alpha=1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        height, width = parameters[0].shape
        parts = group["parts"]
        stacked = torch.stack(ahead).view(-1, height // parts, width)
        update = orthogonal(stacked).to(parameters[0].dtype)
        update *= rate * (0.2 * math.sqrt(max(height // parts, width)))
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_sub_(parameters, list(update.view(-1, height, width)))


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, M, N) → nearly U·Vᵀ of each matrix U·S·Vᵀ: the singular values come to lie between about 0.7 and 1.2.

    By Newton–Schulz iteration; in bf16 on a GPU, whose rounding such an aim forgives, in the given type elsewhere.
    """
    a, b, c = _QUINTIC
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    # The Frobenius norm is never below the largest singular value.
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x

"""When to stop early, and when something went wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from auxmae.errors import AuxMAEError


class DivergedError(AuxMAEError):
    """The loss, or a weight, is no longer a finite number."""


@dataclass
class EarlyStopping:
    """Keeps the best validation loss and says when to stop.

    Args:
        patience: validations without improvement to wait for; 0 never stops.
        tolerance: relative improvement that counts as one.
    """

    patience: int
    tolerance: float
    best: float = math.inf
    reference: float = math.inf
    waited: int = 0

    def update(self, loss: float) -> tuple[bool, bool]:
        """Returns (this is the best so far, it is time to stop).

        Small gains still make a new best; only gains beyond the tolerance reset the patience.
        """
        is_best = loss < self.best
        self.best = min(self.best, loss)
        if loss < self.reference * (1 - self.tolerance) or math.isinf(self.reference):
            self.reference, self.waited = loss, 0
        else:
            self.waited += 1
        return is_best, self.decided

    @property
    def decided(self) -> bool:
        """Whether it is time to stop."""
        return self.patience > 0 and self.waited >= self.patience

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "reference": self.reference, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best, self.reference, self.waited = state["best"], state["reference"], int(state["waited"])


@dataclass
class CollapseWatch:
    """Says when features fall into a few directions.

    Attributes:
        highest: the largest effective rank so far.
        warned: whether the present collapse was reported.
    """

    highest: float = 0.0
    warned: bool = False

    def update(self, rank: float) -> str | None:
        """A warning, once for each collapse: below 2 directions, or a tenth of the most so far; NaN is one too."""
        collapsed = not rank >= max(2.0, 0.1 * self.highest)
        if math.isfinite(rank):
            self.highest = max(self.highest, rank)
        news = collapsed and not self.warned
        self.warned = collapsed
        if not news:
            return None
        return (
            f"the features collapse: effective rank {rank:.1f}, at most {self.highest:.1f} so far "
            "(lower train.learning_rate, or look at `auxmae data stats`)"
        )

    def state_dict(self) -> dict[str, float]:
        return {"highest": self.highest, "warned": self.warned}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.highest, self.warned = state["highest"], bool(state["warned"])


def check_finite(loss: float, step: int, checkpoint: str) -> None:
    """Raises DivergedError where the loss is NaN or infinite; nothing is saved after that."""
    if not math.isfinite(loss):
        raise _diverged(f"the loss became {loss}", step, checkpoint)


def check_weights(model: nn.Module, step: int, checkpoint: str) -> None:
    """Raises DivergedError where a weight is NaN or infinite, as a gradient that overflows makes it while the loss is finite."""
    if not torch.stack([parameter.detach().isfinite().all() for parameter in model.parameters()]).all():
        raise _diverged("the weights became NaN or infinite", step, checkpoint)


def _diverged(what: str, step: int, checkpoint: str) -> DivergedError:
    return DivergedError(
        f"{what} by step {step}; {checkpoint}",
        hint="lower train.learning_rate, keep train.clip_norm above 0, and look at `auxmae data stats`",
    )

"""One optimiser step: forward passes, backward passes, clipping, update.  Nothing in it reads a value from the device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from auxmae.model.mae import AuxMAE
from auxmae.training.checkpoint import seed_from
from auxmae.training.distributed import Team
from auxmae.training.feed import Inputs
from auxmae.training.optimization import JointOptimizer, autocast, autocast_dtype, make_optimizers


class TrainingStep:
    """A model's optimiser step, computed operation by operation.

    Args:
        model: on `device`.
        optimizer, learning_rate, weight_decay, betas: see `make_optimizers`.
        clip_norm: largest gradient norm, 0 for any.
        precision: see `autocast_dtype`.
        seed: of the masks.
        device: where to compute.
        team: the processes that train together, each with its own part of the batches.
    """

    def __init__(
        self,
        model: AuxMAE,
        *,
        optimizer: str,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        clip_norm: float,
        precision: str,
        seed: int,
        device: torch.device,
        team: Team = Team(),  # noqa: B008  (frozen)
    ) -> None:
        self.model, self.device, self.clip_norm = model, device, clip_norm
        self.team, self.parallel = team, team.parallel(model)
        self.dtype = autocast_dtype(precision, device)
        self.optimizers = make_optimizers(
            model, optimizer, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas, device=device
        )
        self.joint = JointOptimizer(self.optimizers)
        # A no-op unless fp16 needs it.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.masks = torch.Generator(device).manual_seed(team.seed(seed))

    def __call__(self, batches: Sequence[Inputs], learning_rate: float) -> tuple[Tensor, Tensor]:
        """One step on the mean of the batches' losses → (loss, gradient norm), scalars on the device.

        A batch's loss is the mean over the hidden valid pixels of all processes.  Of several batches each counts alike, however
        many such pixels it has: those of the later ones are not known yet.  The loss is the mean of what all processes return.
        """
        self.set_learning_rate(learning_rate)
        return self.compute(batches)

    def set_learning_rate(self, value: float) -> None:
        """Of the steps to come."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(value)
                else:
                    group["lr"] = value

    def compute(self, batches: Sequence[Inputs]) -> tuple[Tensor, Tensor]:
        """`__call__` with the learning rate that was set; all that it needs of the host can be captured in a graph."""
        self.model.train()
        total = torch.zeros((), device=self.device)
        for number, (image, valid, channels) in enumerate(batches):
            with self._together(last=number + 1 == len(batches)):
                with autocast(self.dtype, self.device):
                    output = self.parallel(image, valid=valid, channels=channels, generator=self.masks)
                loss = output.loss
                if self.team.size > 1:
                    # Gradients become the mean over processes, and one with few valid pixels must not weigh as much as others.
                    loss = loss * self.team.weight(output.count()).to(loss.dtype)
                self.scaler.scale(loss / len(batches)).backward()
            total += loss.detach() / len(batches)
        self.scaler.unscale_(self.joint)  # type: ignore[arg-type]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm or float("inf"))
        self.scaler.step(self.joint)  # type: ignore[arg-type]
        self.scaler.update()
        self.zero_grad()
        return total, norm

    def _together(self, *, last: bool) -> AbstractContextManager[object]:
        """Of several batches' gradients the processes take the mean once, in the backward pass of the last one."""
        alone = self.team.size == 1 or last
        return nullcontext() if alone else self.parallel.no_sync()  # type: ignore[operator]

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, besides the weights and the global generators."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "masks": self.masks.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Goes on where `state_dict` was taken; whether the masks do, too.

        The generators of a CPU and of a GPU have no state in common: from one to the other, masks are drawn anew.
        """
        # Checkpoints of before hold that of the one optimiser that there was.
        states = state["optimizers"] if "optimizers" in state else [state["optimizer"]]
        for optimizer, its_state in zip(self.optimizers, states, strict=True):
            # How it is computed belongs to the device, not to the checkpoint, and says where PyTorch keeps the count of steps;
            # the rate is set before every step.
            groups = [
                {**saved, **{name: own[name] for name in ("lr", "capturable", "fused") if name in own}}
                for saved, own in zip(its_state["param_groups"], optimizer.param_groups, strict=True)
            ]
            optimizer.load_state_dict({**its_state, "param_groups": groups})
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if state["masks"].shape == self.masks.get_state().shape:
            self.masks.set_state(state["masks"])
            return True
        # From the state's own bytes, so that two such resumptions draw the same.
        self.masks.manual_seed(seed_from(state["masks"].numpy().tobytes()))
        return False

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes on the device, besides generators."""
        moments = [
            value
            for optimizer in self.optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        scale = [value for value in vars(self.scaler).values() if isinstance(value, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *moments, *scale]

"""The training loop, and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from auxmae.data.loading import Loader
from auxmae.errors import ResourceError
from auxmae.model.mae import AuxMAE
from auxmae.places import quoted
from auxmae.training.checkpoint import load_state, random_state, save_checkpoint, seed_from, set_random_state
from auxmae.training.distributed import Team
from auxmae.training.feed import Feed, Inputs
from auxmae.training.graph import GraphedStep
from auxmae.training.optimization import autocast, learning_rate_at
from auxmae.training.progress import Reporter
from auxmae.training.run import RunFolder
from auxmae.training.step import TrainingStep
from auxmae.training.stopping import graceful_stop
from auxmae.training.watch import CollapseWatch, EarlyStopping, check_finite, check_weights

LOG_EVERY = 10  # steps between metrics; reading the loss makes a GPU wait, so not every step


@dataclass(frozen=True)
class Plan:
    """What the loop is to do; the fields are those of the settings' [train] table, counted out in steps.

    Attributes:
        steps: optimiser steps in all.
        max_seconds: training time, 0 for no limit; the learning rate follows whichever ends first.
        cuda_graphs: replay the step as a CUDA graph; graphs_required: and fail where that cannot be.
        figure_every, probe_every: epochs between figures and between probes, 0 for none.
        decisive: the settings that checkpoints keep, to be found again by a training that goes on.
    """

    steps: int
    max_seconds: float = 0.0
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-5
    warmup_fraction: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    precision: str = "auto"
    cuda_graphs: bool = False
    graphs_required: bool = False
    patience: int = 0
    tolerance: float = 1e-4
    validate_every: int = 1
    figure_every: int = 0
    probe_every: int = 0
    checkpoint_seconds: float = 600.0
    seed: int = 0
    decisive: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a training ended.

    Attributes:
        step: optimiser steps done; seconds: spent training, over all sessions of the run; images: seen.
        reason: "finished", "stopped early" or "interrupted".
    """

    step: int
    seconds: float
    images: int
    reason: str

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


class Trainer:
    """Trains a model in a run folder.

    Args:
        model: on `device`.
        train: the training batches, resumable.
        validation: the held-out batches, always the same; None validates nothing.
        run: where metrics and checkpoints go.
        plan: what to do.
        device: where to compute.
        reporter: who is told.
        draw_figure: called with the epoch's number when a figure is due.
        probe: called when a probe is due; gives values by name, "effective_rank" among them.
        log_scalars: called with (step, values) for every logged step, for further loggers.
        clock: tells seconds; training time is measured by it.
        team: the processes that train together, each with its own part of `train` and `validation`; the first one writes.
    """

    def __init__(
        self,
        model: AuxMAE,
        train: Loader,
        validation: Loader | None,
        run: RunFolder,
        plan: Plan,
        *,
        device: torch.device,
        reporter: Reporter,
        draw_figure: Callable[[int], None] | None = None,
        probe: Callable[[], dict[str, float]] | None = None,
        log_scalars: Callable[[int, dict[str, float]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        team: Team = Team(),  # noqa: B008  (frozen)
    ) -> None:
        self.clock, self.team = clock, team
        self.model, self.train, self.validation, self.run, self.plan = model, train, validation, run, plan
        self.device, self.reporter, self.draw_figure, self.log_scalars = device, reporter, draw_figure, log_scalars
        self.probe = probe
        self.computed = TrainingStep(
            model,
            optimizer=plan.optimizer,
            learning_rate=plan.learning_rate,
            weight_decay=plan.weight_decay,
            betas=plan.betas,
            clip_norm=plan.clip_norm,
            precision=plan.precision,
            seed=plan.seed,
            device=device,
            team=team,
        )
        self.compute: TrainingStep | GraphedStep = self.computed
        if plan.cuda_graphs:
            self.compute = GraphedStep(self.computed, required=plan.graphs_required, notify=reporter.message)
        self.feed = Feed(train, device)
        self.learning_rate = 0.0
        self.stopping = EarlyStopping(plan.patience, plan.tolerance)
        # What its losses depend on beside the weights: how many images, and in how many processes, each of which draws its masks.
        self.validated = (0 if validation is None else validation.samples, team.size)
        self.collapse = CollapseWatch()
        self.step = 0
        self.images = 0
        self.seconds = 0.0

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, besides the weights; of several processes, all of them have to ask."""
        others = self.team.gather({"masks": self.computed.masks.get_state(), "random": random_state(self.device)})[1:]
        return {
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            **self.computed.state_dict(),
            "loader": self.feed.state_dict(),
            "random": random_state(self.device),
            "stopping": self.stopping.state_dict(),
            "validated": self.validated,
            "collapse": self.collapse.state_dict(),
            "settings": self.plan.decisive,
            **({"others": others} if others else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `state_dict` was taken, on the same kind of device."""
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        # What each process draws from.
        drawn = [state, *state.get("others", ())]
        own = drawn[min(self.team.rank, len(drawn) - 1)]
        masks_go_on = self.computed.load_state_dict({**state, "masks": own["masks"]})
        self.feed.load_state_dict(state["loader"])
        dropout_goes_on = set_random_state(own["random"], self.device)
        if not masks_go_on:
            self.reporter.message(
                "note: this checkpoint is of another kind of device: other masks and dropout are drawn from here on"
            )
        elif not dropout_goes_on:
            # One of before, of an MPS device or of a machine with fewer GPUs.
            self.reporter.message(
                f"note: this checkpoint lacks the random state of {self.device}: other dropout is drawn from here on"
            )
        if len(drawn) != self.team.size:
            self.reporter.message(
                f"note: this checkpoint is of a training in {len(drawn)} process{'es' * (len(drawn) > 1)}, and now there are "
                f"{self.team.size}: other masks are drawn from here on"
            )
            if self.team.rank >= len(drawn):
                seed = self.team.seed(seed_from(state["masks"].numpy().tobytes()))
                self.computed.masks.manual_seed(seed)
                torch.manual_seed(seed)
        # Checkpoints of before do not say how many were validated.
        if state.get("validated", (self.validated[0], len(drawn))) == self.validated:
            self.stopping.load_state_dict(state["stopping"])
        elif self.validation is not None:
            self.reporter.message(
                "note: validation is on other images or under other masks from here on: its next loss is the best so far, "
                "whatever those before were"
            )
        if "collapse" in state:  # not in checkpoints of before
            self.collapse.load_state_dict(state["collapse"])

    def resume(self) -> None:
        """Takes up the run's last checkpoint (the weights are the model's already).

        Raises:
            CheckpointError: missing or broken.
        """
        self.load_state_dict(load_state(self.run.checkpoint("last")))
        if self.team.first and (unreadable := self.run.truncate_metrics(self.step)):
            lines = "1 line is" if unreadable == 1 else f"{unreadable} lines are"
            self.reporter.message(f"note: {self.run.metrics_path}: {lines} damaged and left out")

    def save(self) -> None:
        """Writes the last checkpoint.

        Raises:
            DivergedError: a weight is not finite; the checkpoint from before is untouched.
        """
        # The loss, checked already, is that of before the last update.
        check_weights(self.model, self.step, self._what_is_left())
        state = self.state_dict()
        if self.team.first:
            self._write_checkpoint("last", state)

    def _write_checkpoint(self, name: str, state: dict[str, Any] | None = None) -> None:
        self.run.check_there()
        save_checkpoint(self.model, self.run.path / "checkpoints" / name, state)

    # ---- the loop --------------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Trains until the plan is done, validation stops improving, or a signal asks to stop.

        Raises:
            CheckpointError: what was learned cannot be saved.
            DataError: a file cannot be read.
            DivergedError: the loss or a weight is not finite.
            ResourceError: the machine lacks what a loader takes, or killed its process; alone, the steps until then are saved,
                unless it failed what is due at the end of an epoch.
        """
        # A run that is taken up again may have stopped early already.
        reason = "stopped early" if self.stopping.decided and not self._done() else "finished"
        self.reporter.start(self.plan.steps, self.step)
        earlier, began = self.seconds, self.clock()
        saved, logged, logged_images = earlier, began, self.images
        epoch = self.feed.epoch
        try:
            with graceful_stop() as stop_asked:
                while reason == "finished" and not self._done():
                    epoch = self.feed.epoch
                    loss, norm = self._train_step(self.feed)
                    if not self._done():
                        self.feed.prefetch()
                    now = self.clock()
                    self.seconds, stop = self._agree(earlier + now - began, stop_asked())
                    if self.step % LOG_EVERY == 0 or self._done() or self.step == 1:
                        rate = (self.images - logged_images) / max(now - logged, 1e-9)
                        logged, logged_images = now, self.images
                        self._log(loss, norm, epoch, rate)
                    epoch_ended = self.feed.epoch != epoch
                    if (epoch_ended or self._done()) and self._end_epoch(epoch, last=self._done()):
                        reason = "stopped early"
                        break
                    overdue = 0 < self.plan.checkpoint_seconds <= self.seconds - saved
                    if epoch_ended or overdue or stop:
                        check_finite(self.team.mean(loss), self.step, self._what_is_left())
                    if epoch_ended or overdue:
                        self.save()
                        saved = self.seconds
                    if stop:
                        break
                self.seconds = earlier + self.clock() - began
                self.save()
                # The last validation may have taken minutes, and what comes after training takes more.
                if self._agree(0.0, stop_asked())[1]:
                    reason = "interrupted"
        except ResourceError as error:
            # Of a loader, so the last step is whole.  Several processes cannot save it: the others wait for this one's next step.
            # Nor is it saved where a validation failed, which a run that goes on behind it would never make up for.
            keep = self.team.size == 1 and self.feed.epoch == epoch and not self._done()
            if keep:
                self.save()
            hints = [error.hint, f"step {self.step} is saved" if keep else self._what_is_left()]
            if self.run.checkpoint("last").is_dir() and not self.run.is_fast_dev_run:
                hints.append(f"go on with: auxmae train --resume {quoted(self.run.path)}")
            raise ResourceError(error.message, hint="; ".join(filter(None, hints))) from error
        finally:
            self.reporter.stop()
            if isinstance(self.compute, GraphedStep):
                # What comes after training wants the memory.
                self.compute.release()
        return Outcome(self.step, self.seconds, self.images, reason)

    def _agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process' time, which all go by, and whether any was asked to stop."""
        agreed, stops = self.team.total(seconds if self.team.first else 0.0, float(stop))
        return agreed, stops > 0

    def _progress(self) -> float:
        return self._with_time(self.step / self.plan.steps)

    def _with_time(self, done: float) -> float:
        return max(done, self.seconds / self.plan.max_seconds) if self.plan.max_seconds else done

    def _done(self) -> bool:
        return self._progress() >= 1

    def _train_step(self, batches: Iterator[Inputs]) -> tuple[Tensor, Tensor]:
        """One optimiser step → (loss, gradient norm), left on the device."""
        plan = self.plan
        self.learning_rate = learning_rate_at(
            # Never the rate before the first step, nor the one after the last.
            self._with_time((self.step + 1) / (plan.steps + 1)),
            peak=plan.learning_rate,
            final=plan.min_learning_rate,
            warmup=plan.warmup_fraction,
        )
        begin = self.feed.state_dict()
        try:
            given = [next(batches) for _ in range(plan.accumulation)]
        except ResourceError:
            # Batches of a step that is not taken are those of the next one.
            self.feed.load_state_dict(begin)
            raise
        loss, norm = self.compute(given, self.learning_rate)
        self.images += sum(inputs.image.shape[0] for inputs in given) * self.team.size
        self.step += 1
        return loss, norm

    def _log(self, loss: Tensor, norm: Tensor, epoch: int, images_per_second: float) -> None:
        mean = self.team.mean(loss)
        check_finite(mean, self.step, self._what_is_left())
        left = self.seconds * (1 / max(self._progress(), 1e-9) - 1)
        values = {
            "loss": mean,
            "learning_rate": self.learning_rate,
            "images_per_second": images_per_second,
            "grad_norm": float(norm),
        }
        self._record({"kind": "train", "step": self.step, "epoch": epoch, **values})
        self.reporter.step(self.step, {**values, "epoch": epoch, "seconds_left": left})
        if self.log_scalars:
            self.log_scalars(self.step, {f"train/{key}": value for key, value in values.items()})

    def _record(self, values: dict[str, Any]) -> None:
        if self.team.first:
            # JSON knows no NaN and no infinity, as the gradient norm of a step that overflowed is.
            unknown = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
            self.run.log({name: None if name in unknown else value for name, value in values.items()})

    def _what_is_left(self) -> str:
        folder = self.run.checkpoint("last")
        return f"the checkpoint {folder} is from before" if folder.is_dir() else "nothing was saved yet"

    def _end_epoch(self, epoch: int, *, last: bool) -> bool:
        """Validates, keeps the best, draws; returns whether to stop early.

        Args:
            epoch: of the step's first batch; a step of several batches may have ended more epochs than that one.
            last: no step follows.
        """
        stop = False
        number = max(self.feed.epoch, epoch + 1)

        def due(every: int) -> bool:
            return every > 0 and number // every > epoch // every

        if self.validation is not None and (last or due(self.plan.validate_every)):
            loss = self.validate()
            if loss is None:
                without = "there is no validation loss, and no best checkpoint"
                self.reporter.warning(f"no pixel held out for validation is valid: {without}")
                self.validation = None
            else:
                stop = self._take_validation(loss, number)
        if self.probe and self.plan.probe_every and (last or due(self.plan.probe_every)):
            self._probe(self.probe(), number - 1)
        if self.draw_figure and due(self.plan.figure_every) and not last:
            self.draw_figure(number)
        return stop and not last

    def _take_validation(self, loss: float, number: int) -> bool:
        """Records a validation loss, after so many epochs, and keeps the best; returns whether to stop early."""
        check_finite(loss, self.step, self._what_is_left())
        is_best, stop = self.stopping.update(loss)
        self._record({"kind": "validation", "step": self.step, "epoch": number - 1, "loss": loss})
        if self.log_scalars:
            self.log_scalars(self.step, {"validation/loss": loss})
        if is_best and self.team.first:
            self._write_checkpoint("best")
        mark = "  (best so far)" if is_best else ""
        self.reporter.message(f"epoch {number}: validation loss {loss:.4f}{mark}")
        return stop

    def _probe(self, values: dict[str, float], epoch: int) -> None:
        self._record({"kind": "probe", "step": self.step, "epoch": epoch, **values})
        if self.log_scalars:
            self.log_scalars(self.step, {f"probe/{name}": value for name, value in values.items()})
        accuracy = f", k-NN accuracy {values['knn_accuracy']:.3f}" if "knn_accuracy" in values else ""
        self.reporter.message(f"epoch {epoch + 1}: effective rank {values['effective_rank']:.1f}{accuracy}")
        warning = self.collapse.update(values["effective_rank"])
        if warning:
            self.reporter.warning(warning)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Loss on the validation batches under fixed masks, so that it can be compared between epochs; None: no pixel counts."""
        assert self.validation is not None
        self.model.eval()
        masks = torch.Generator().manual_seed(self.team.seed(self.plan.seed))
        total = weight = 0.0
        for batch in self.validation:
            with autocast(self.computed.dtype, self.device):
                loss = self.model(batch.image.to(self.device), valid=batch.valid.to(self.device), generator=masks).loss
            # Where nothing counts the loss is 0, and says nothing.
            counted = int(batch.valid.sum())
            total += float(loss) * counted
            weight += counted
        self.model.train()
        total, weight = self.team.total(total, weight)
        return total / weight if weight else None

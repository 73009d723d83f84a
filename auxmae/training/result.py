"""What a training gave: held-out error beside the floors, figures, report."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from auxmae.build import Data
from auxmae.data.digests import digest_weights
from auxmae.data.splits import how_to_hold_out
from auxmae.errors import DataError, ResourceError
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import EvalSettings
from auxmae.training.progress import Reporter
from auxmae.training.run import RunFolder
from auxmae.training.trainer import Outcome


@dataclass
class TrainingResult:
    """What a training gave.

    Attributes:
        run: the run folder.
        outcome: steps, seconds, images, and why it ended.
        masked_l1: mean absolute error on hidden valid pixels of held-out images, scaled units; NaN where none were held out.
        floors: the same error of predicting the "mean" of the visible pixels, and of "interpolation".
        figure: the reconstruction figure; None where none was drawn.
        per_channel: channel → the model's error.
    """

    run: Path
    outcome: Outcome
    masked_l1: float
    floors: dict[str, float]
    figure: Path | None = None
    per_channel: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The document that `auxmae train --json` prints."""
        return {
            "run": str(self.run),
            "steps": self.outcome.step,
            "seconds": round(self.outcome.seconds, 3),
            "images_per_second": round(self.outcome.images_per_second, 3),
            "masked_l1": None if math.isnan(self.masked_l1) else self.masked_l1,
            "floors": self.floors,
            "per_channel": self.per_channel,
            "reason": self.outcome.reason,
        }


def can_draw() -> bool:
    """Whether figures can be drawn; training on a machine with little more than PyTorch needs none."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_reconstruction(model: AuxMAE, data: Data, run: RunFolder, device: torch.device, name: str) -> Path:
    """The reconstruction figure of the first held-out images, always under the same masks."""
    from auxmae.visuals.figures import batch_to_show, reconstruction_figure

    run.check_there()
    held = data.test or data.validation or data.train
    batch = batch_to_show(held, 4)
    assert batch is not None
    rows = min(4, len(batch.image))
    image, valid = batch.image[:rows], batch.valid[:rows]
    training = model.training
    model.eval()
    reconstruction = model.reconstruct(
        image.to(device), valid=valid.to(device), channels=batch.channels, generator=torch.Generator().manual_seed(0)
    )
    model.train(training)
    return reconstruction_figure(
        image,
        reconstruction,
        valid,
        channel_names=model.channel_names,
        wavelengths=model.wavelengths,
        path=run.figures / name,
        rows=rows,
    )


def conclude(
    data: Data, run: RunFolder, outcome: Outcome, device: torch.device, reporter: Reporter, settings: EvalSettings, limit: int
) -> TrainingResult:
    """Held-out error against the floors, figures, report: of the best checkpoint, which is the one a user will load."""
    from auxmae.evaluation.reconstruction import evaluate_reconstruction
    from auxmae.visuals.report import write_report

    if outcome.reason == "interrupted":
        return TrainingResult(run.path, outcome, math.nan, {})
    best = run.load_model("best").to(device)
    began = time.monotonic()
    masked_l1, floors, per_channel = math.nan, dict[str, float](), dict[str, float]()
    held_out = data.test or data.validation
    if held_out is None:
        reporter.message(f"note: nothing is held out, so there is no error to report: {how_to_hold_out(data.collection)}")
    else:
        chosen = held_out.limited(limit)
        if chosen.samples < held_out.samples:
            reporter.message(f"note: measured on {chosen.samples} of {held_out.samples} held-out images or windows")
        try:
            measured = evaluate_reconstruction(best, chosen, seed=settings.mask_seed, device=device)
        except (DataError, ResourceError) as error:
            words = f"the training is done, in {run.path}, but not measured: {error.message}"
            raise type(error)(words, hint=error.hint) from error
        masked_l1, floors, per_channel = measured.masked_l1, dict(measured.floors), dict(measured.per_channel)
    figure = None
    if can_draw():
        from auxmae.visuals.figures import curves_figure

        figure = draw_reconstruction(best, data, run, device, "reconstruction.png")
        curves_figure(run.metrics(), run.figures / "curves.png")
    result = TrainingResult(run.path, outcome, masked_l1, floors, figure, per_channel)
    run.write_json("result.json", {**result.to_dict(), "evaluation_seconds": round(time.monotonic() - began, 3)})
    write_report(run.path, trained_on=_measured_before(run, best))
    return result


def _measured_before(run: RunFolder, best: AuxMAE) -> bool:
    """Whether eval.json, which `auxmae eval` writes, is of weights that the run had before this training."""
    try:
        details = json.loads((run.path / "eval.json").read_text(encoding="utf-8"))["details"]
        checkpoint, weights = details["checkpoint"], details["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    model = best if checkpoint == "best" else run.load_model("last")
    return bool(weights != digest_weights(model.state_dict()))

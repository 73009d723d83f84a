"""A whole training session: settings → data, model, run folder → training → what it gave."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from auxmae.build import Data, Progress, build_data, build_model, crop_size, open_data, outline_model
from auxmae.data.channels import shortened
from auxmae.device import configure, overruled, process_state_kept
from auxmae.errors import CheckpointError, DataError, UsageError
from auxmae.model.folders import SETTINGS_NAME, find_model
from auxmae.model.mae import AuxMAE
from auxmae.model.pretrained import check_architecture, load_weights, read_config
from auxmae.places import quoted
from auxmae.run_data import check_present, unread, with_absolute_places
from auxmae.settings import load_settings, override_names
from auxmae.settings.schema import SettingsTree
from auxmae.training.checkpoint import seed_everything
from auxmae.training.checks import can_classify, check_probe, check_settings, check_shares, check_space, tensorboard_writer
from auxmae.training.distributed import Team, find_team, joined
from auxmae.training.graph import WARMUP_STEPS, graphs_wanted
from auxmae.training.progress import Reporter, SilentReporter
from auxmae.training.result import TrainingResult, can_draw, conclude, draw_reconstruction
from auxmae.training.run import OF_THE_MACHINE, RunFolder, check_unused, create_run, decisive, open_run, way_to_change
from auxmae.training.trainer import Outcome, Plan, Trainer

FAST_DEV_STEPS = 3
FAST_DEV_BATCHES = 2
# More single channels than this deserve a hint at groups.
MANY_CHANNELS = 32


def make_plan(settings: SettingsTree, batches_per_epoch: int, *, graphs: bool, fast: bool = False) -> Plan:
    """[train] counted out in steps: `max_steps`, when set, else those of the epochs, within `max_minutes`."""
    train = settings.train
    steps = train.max_steps or max(train.epochs * batches_per_epoch // train.accumulation, 1)
    return Plan(
        # A CUDA graph is captured after the first steps, and then replayed.
        steps=min(steps, WARMUP_STEPS + 2 if graphs else FAST_DEV_STEPS) if fast else steps,
        max_seconds=60 * train.max_minutes,
        accumulation=train.accumulation,
        optimizer=train.optimizer,
        learning_rate=train.learning_rate,
        min_learning_rate=train.min_learning_rate,
        warmup_fraction=train.warmup_fraction,
        weight_decay=train.weight_decay,
        betas=train.betas,
        clip_norm=train.clip_norm,
        precision=train.precision,
        cuda_graphs=graphs,
        graphs_required=train.cuda_graphs == "on",
        patience=train.patience,
        tolerance=train.tolerance,
        validate_every=train.validate_every,
        figure_every=train.figure_every,
        probe_every=train.probe_every,
        checkpoint_seconds=60 * train.checkpoint_minutes,
        seed=train.seed,
        decisive=decisive(settings),
    )


@process_state_kept()
def train(
    settings: SettingsTree,
    *,
    resume: str | Path | None = None,
    overrides: Sequence[str] = (),
    init_from: str | Path | None = None,
    fast_dev_run: bool = False,
    reporter: Reporter | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingResult:
    """Pre-trains a masked autoencoder; called in every process that `torchrun` started, they train it together.

    Args:
        settings: every table; with `resume`, the run's own settings are used instead.
        resume: a run folder, or "last": goes on exactly where its last checkpoint was written.
        overrides: with `resume`, "table.key=value" each, in place of the run's own settings: those of `OF_THE_MACHINE`.
        init_from: a run or model whose weights to start from: see `AuxMAE.from_pretrained`.
        fast_dev_run: three steps (five, where a CUDA graph is made) and one validation, to see that everything works; neither
            with `resume` nor to be resumed.
        reporter: who is told how it goes.
        progress: told (done, total) while the data's statistics are computed.
        clock: tells seconds, by which train.max_minutes is measured: `time.process_time` makes it CPU time.

    Returns:
        Of several processes the first one's has the held-out error and the figure.

    Raises:
        AuxMAEError: whatever the user can mend, with a hint.
    """
    reporter = reporter or SilentReporter()
    if resume is not None and init_from is not None:
        raise UsageError("resume goes on with a run, init_from starts a new one: give one of them")
    if resume is not None and fast_dev_run:
        raise UsageError(
            "resume goes on exactly as before, and fast_dev_run would overwrite the run's results with those of a few batches",
            hint="give one of them",
        )
    if overrides and resume is None:
        raise UsageError("overrides are of a run that goes on: a new one has its settings")
    for name in override_names(overrides):
        if name not in OF_THE_MACHINE:
            raise UsageError(
                f"--resume goes on exactly as before, so --set {name} cannot be given with it",
                hint=way_to_change(name),
            )
    # Both before the processes meet: the newest run is soon the one that the first of them makes.
    run = open_run(resume) if resume is not None else None
    weights = find_model(init_from) if init_from is not None else None
    if run is not None:
        if run.is_fast_dev_run:
            raise UsageError(
                f"{run.path} is a trial of a few steps, by --fast-dev-run, and no training to go on with",
                hint="train anew without --fast-dev-run, in another --output",
            )
        # Of the environment nothing is read; what no setting is called is told nonetheless.
        settings = load_settings(run.path / SETTINGS_NAME, overrides=overrides, environ_tables=()).settings
    team = find_team()
    device = configure(settings, team.local_rank if team.size > 1 else None)
    team.share(settings.train.batch_size)
    if not team.first:
        reporter, progress = SilentReporter(), None
    elif run is None:
        check_unused(settings.run.folder)
    with ExitStack() as locks:
        if run is not None and team.first:
            locks.enter_context(run.lock())
        with joined(team, device):
            trained = _fit(settings, run, weights, fast_dev_run, reporter, progress, clock, team, device, locks)
        if not team.first:
            return TrainingResult(trained.run.path, trained.outcome, math.nan, {})
        limit = _few(settings, fast_dev_run) or settings.eval.max_images
        return conclude(trained.data, trained.run, trained.outcome, device, reporter, settings.eval, limit)


@dataclass(frozen=True)
class _Trained:
    """What the steps leave."""

    data: Data
    run: RunFolder
    outcome: Outcome


def _few(settings: SettingsTree, fast: bool) -> int:
    """A few steps are to show that everything works, and so are two batches of what is held out; 0: all."""
    return FAST_DEV_BATCHES * settings.train.batch_size if fast else 0


def _fit(
    settings: SettingsTree,
    run: RunFolder | None,
    weights: Path | None,
    fast: bool,
    reporter: Reporter,
    progress: Progress | None,
    clock: Callable[[], float],
    team: Team,
    device: torch.device,
    locks: ExitStack,
) -> _Trained:
    """Data, model, run folder, which stays locked while `locks` is open, and all the steps; a given run goes on."""
    check_settings(settings, device, team.size)
    seed_everything(settings.train.seed, deterministic=settings.train.deterministic)
    tensorboard = tensorboard_writer() if settings.run.tensorboard and team.first else None

    if run is not None:
        check_present(run)
    stored = run.load_model("last") if run is not None else None
    if run is not None:
        # Before the data, which are others where they are read in another way.
        run.check_settings(settings)
    data = _data_like(stored, settings, progress) if stored is not None else new_data(settings, weights, progress, team)
    check_probe(settings, data)
    for notice in [*data.collection.notices, *overruled(settings), *([] if run is None else unread(()))]:
        reporter.message(f"note: {notice}")
    reporter.message(f"data: {data.describe()}")
    if run is not None and stored is not None:
        run.check_channels(data.collection.channel_names, stored.channel_names)
    trained_on = None if run is None else run.changed_data(data.digest, data.files_digest, data.sample_pixels())
    if run is not None and trained_on is not None:
        raise DataError(
            f"{settings.data.source}: the data have changed since {run.path} was started with {trained_on}; what is held out now "
            "may have been trained on",
            hint=f"put the data back as they were, or start a new run: --init-from {quoted(run.path)}",
        )
    for warning in data.warnings():
        reporter.warning(warning)
    if data.train.samples < settings.train.batch_size:
        reporter.message(
            f"note: batches have {data.train.samples} images in place of train.batch_size = {settings.train.batch_size}: "
            "there are no more to train on"
        )
    if settings.train.patience and data.validation is None:
        reporter.message(
            f"note: train.patience = {settings.train.patience} stops nothing: there are no images to validate on "
            "(data.validation_fraction)"
        )
    check_shares(data, team.size)
    channels = len(data.collection.channel_names)
    if stored is None and channels > MANY_CHANNELS and settings.model.channel_groups == 1:
        reporter.message(
            f"note: {channels} channels are {channels} tokens at every place: model.channel_groups = 'auto' (neighbouring "
            "channels share a token) trains faster"
        )
    model = stored if stored is not None else new_model(settings, data, weights)
    model.to(device)
    model.set_recompute(settings.train.recompute)
    if settings.train.compile:
        model.compile_blocks()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    reporter.message(
        f"model: {settings.model.preset} preset, {parameters / 1e6:.2f} M parameters, {data.image_size} px, on {device}"
        + (f", {team.size} processes with {team.share(settings.train.batch_size)} images of each batch" if team.size > 1 else "")
    )

    if not can_draw():
        reporter.message("note: matplotlib is not installed, so no figures are drawn: pip install matplotlib")

    def begun() -> RunFolder:
        # Its settings name the data wherever the run folder is opened from.
        kept = settings.model_copy(update={"data": with_absolute_places(settings.data)})
        new = create_run(settings.run.folder, kept, locks=locks)
        new.note_data(data.describe(), data.digest, data.files_digest, data.sample_pixels())
        if fast:
            new.mark_fast_dev_run()
        if data.statistics is not None:
            new.write_json("statistics.json", data.statistics.to_dict())
        return new

    if team.first:
        place = Path(settings.run.folder) if run is None else run.path
        check_space(place, model, settings.train.optimizer, validated=data.validation is not None)
    folder = team.by_first(lambda: run or begun())

    def draw_figure(epoch: int) -> None:
        draw_reconstruction(model, data, folder, device, f"reconstruction-epoch-{epoch:04d}.png")

    def log_scalars(step: int, values: dict[str, float]) -> None:
        assert log is not None
        for name, value in values.items():
            log.add_scalar(name, value, step)

    validation = (
        None if data.validation is None else data.validation.limited(_few(settings, fast) or settings.train.validation_samples)
    )
    if not team.first:
        # As many numbers as another process draws, for dropout, would be the same ones.
        torch.manual_seed(team.seed(settings.train.seed))
    trainer = Trainer(
        model,
        data.train.dealt(team.rank, team.size),
        None if validation is None else validation.dealt(team.rank, team.size),
        folder,
        make_plan(settings, len(data.train), graphs=graphs_wanted(settings, device, team.size), fast=fast),
        device=device,
        reporter=reporter,
        draw_figure=draw_figure if can_draw() and team.first else None,
        probe=_probe(model, data, settings, device) if settings.train.probe_every and team.first else None,
        log_scalars=log_scalars if tensorboard else None,
        clock=clock,
        team=team,
    )
    if run is not None:
        trainer.resume()
        reporter.message(f"resuming {folder.path} at step {trainer.step} of {trainer.plan.steps}")
        if team.first:
            for change in run.note_machine(settings, trainer.step):
                reporter.message(f"note: {change} from here on")
    # What was logged after the checkpoint is logged again.
    again_from = None if run is None else trainer.step + 1
    with tensorboard(str(folder.path / "tensorboard"), purge_step=again_from) if tensorboard else nullcontext() as log:
        outcome = trainer.fit()
    if outcome.reason != "interrupted" and outcome.step < trainer.plan.steps and not fast:
        reporter.message(_why_so_early(settings, folder, outcome, trainer))
    return _Trained(data, folder, outcome)


def _why_so_early(settings: SettingsTree, run: RunFolder, outcome: Outcome, trainer: Trainer) -> str:
    """A note on what ended a training before its last step, and how to go on."""
    if outcome.reason == "stopped early":
        setting, waited = f"train.patience = {settings.train.patience}", trainer.stopping.waited
        why = (
            f" ({waited} validation{'s' * (waited > 1)} without an improvement of train.tolerance = {settings.train.tolerance:g})"
        )
        zero = "never ends early"
    else:
        # A preset's limit too: the run's own file has it as one that somebody set, which holds beside any epochs or steps.
        setting, why, zero = f"train.max_minutes = {settings.train.max_minutes:g}", "", "no limit"
    return (
        f"note: {setting} ended the training after {outcome.step} of {trainer.plan.steps} steps{why}: to train longer, raise it "
        f"in {run.path / SETTINGS_NAME} (0: {zero}), then auxmae train --resume {quoted(run.path)}"
    )


def _data_like(model: AuxMAE, settings: SettingsTree, progress: Progress | None) -> Data:
    """The data of a run that goes on: scaled and cut as before, whatever the files' statistics are today."""
    from auxmae.data.statistics import Scaling

    scaling = Scaling.from_dict(model.scaling) if model.scaling else Scaling.identity(model.channel_names)
    return build_data(settings, image_size=model.image_size, scaling=scaling, progress=progress)


def new_data(settings: SettingsTree, weights: Path | None, progress: Progress | None, team: Team | None = None) -> Data:
    """The data of a new run.

    Its pixels are read through for their statistics, which may take long: what `new_model` would refuse is told before.

    Raises:
        AuxMAEError: see `build_data` and `new_model`.
    """
    collection = open_data(settings.data, seed=settings.train.seed)
    size = crop_size(settings, collection)
    model = outline_model(settings, collection, size)
    if weights is not None:
        with warnings.catch_warnings():
            # Each of them says that it was copied to nowhere.
            warnings.simplefilter("ignore", UserWarning)
            _take_weights(model, weights)
    return build_data(settings, collection=collection, image_size=size, progress=progress, team=team)


def new_model(settings: SettingsTree, data: Data, weights: Path | None) -> AuxMAE:
    """The model of the settings, with the weights of a saved one where a folder is given.

    Raises:
        CheckpointError: that one has other channels, or is of another architecture.
        SettingsError: see `build_model`.
    """
    model = build_model(settings, data)
    if weights is not None:
        _take_weights(model, weights)
    return model


def _take_weights(model: AuxMAE, weights: Path) -> None:
    names = read_config(weights).get("channels")
    if names != list(model.channel_names):
        known = shortened([str(name) for name in names], most=16) if isinstance(names, list) else names
        raise CheckpointError(
            f"{weights} was trained on the channels {known}, the data has {shortened(model.channel_names, most=16)}",
            hint="choose and order the channels with data.channels",
        )
    check_architecture(model, weights)
    load_weights(model, weights)


def _probe(model: AuxMAE, data: Data, settings: SettingsTree, device: torch.device) -> Callable[[], dict[str, float]]:
    """The probe on held-out images; without labels or without a validation part only the rank is measured."""
    from auxmae.training.probe import Probe

    dense = data.collection.has_label_maps
    # Neither cut at random nor flipped, each once: drawn again, a neighbour's copies would be its whole vote.
    labelled = data.train.measured() if can_classify(data) else None
    if labelled is not None and dense:
        # A probe takes no more windows than an epoch.
        labelled = labelled.limited(data.train.samples)
    return Probe(model, labelled, data.validation or data.train, pool=settings.eval.pool, dense=dense, device=device)

"""The step as a graph: on a CPU with a stand-in that replays by computing on the same buffers, on a GPU with the real one."""

from __future__ import annotations

import itertools
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from auxmae.data.loading import Batch
from auxmae.errors import SettingsError
from auxmae.settings.schema import SettingsTree
from auxmae.training import feed, graph, session, trainer
from auxmae.training.graph import WARMUP_STEPS, GraphedStep, NotCapturedError, graphs_wanted
from auxmae.training.progress import SilentReporter
from auxmae.training.result import TrainingResult
from auxmae.training.run import open_run
from auxmae.training.step import TrainingStep
from tests.training.small_runs import Heard

STEPS = WARMUP_STEPS + 6


@pytest.fixture(autouse=True)
def _only_the_loop(monkeypatch):
    """No held-out error and no figures at the end."""

    def conclude(data, run, outcome, *_):
        return TrainingResult(run.path, outcome, math.nan, {})

    monkeypatch.setattr(session, "conclude", conclude)


def settings_for(folder, device="cpu", **tables):
    tree = {
        "data": {"source": "synthetic", "synthetic_images": 60},
        "model": {"patch_size": 16, "width": 16, "depth": 2, "heads": 2, "decoder_depth": 1, "dropout": 0.1},
        "train": {"batch_size": 8, "max_steps": STEPS, "figure_every": 0, "learning_rate": 3e-3},
        "run": {"folder": str(folder), "device": device},
        "eval": {"bootstrap": 100},
    }
    for table, values in tables.items():
        tree[table] = {**tree.get(table, {}), **values}
    return SettingsTree.model_validate(tree)


def stand_in(work, generators):
    """Records without doing anything, and does the work at every replay, as a CUDA graph does."""
    assert generators
    return work


@pytest.fixture
def graphed(monkeypatch):
    """Captures on a CPU; gives the graphed steps that were made."""
    made = []
    original = GraphedStep.__init__

    def init(self, *arguments, **named):
        original(self, *arguments, **named)
        made.append(self)

    monkeypatch.setattr(GraphedStep, "__init__", init)
    monkeypatch.setattr(graph, "obstacle", lambda settings, device, processes: None)
    monkeypatch.setattr(graph, "capture_cuda_graph", stand_in)
    return made


def losses(monkeypatch, settings, **how):
    """(loss, gradient norm) of every step, and the weights at the end."""
    found = []
    original = trainer.Trainer._train_step

    def step(self, batches):
        values = original(self, batches)
        found.append(tuple(float(value) for value in values))
        return values

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_train_step", step)
        result = session.train(settings, **how)
    return found, open_run(result.run).load_model("last").state_dict()


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"train": {"accumulation": 3, "clip_norm": 0.0, "optimizer": "adam"}},
        {"model": {"channel_groups": 4, "dropout": 0.0}, "train": {"recompute": True}},
        {"masking": {"strategy": "channel"}},
        {"train": {"optimizer": "muon"}},
    ],
    ids=["plain", "accumulation", "recompute", "channels", "muon"],
)
def test_a_graph_trains_exactly_as_the_eager_loop_does(tmp_path, monkeypatch, graphed, tables):
    off = {**tables, "train": {**tables.get("train", {}), "cuda_graphs": "off"}}
    eager, weights = losses(monkeypatch, settings_for(tmp_path / "eager", **off))
    assert not graphed
    on = {**tables, "train": {**tables.get("train", {}), "cuda_graphs": "on"}}
    replayed, others = losses(monkeypatch, settings_for(tmp_path / "graph", **on))
    assert graphed[0].replays == STEPS - WARMUP_STEPS
    assert not graphed[0]._inputs  # their memory was given back
    assert replayed == eager
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_resuming_under_a_graph_goes_on_exactly(tmp_path, monkeypatch, graphed):
    """Stopped while the graph replays; the rest of the run captures anew, and with a batch held ready."""
    whole, weights = losses(monkeypatch, settings_for(tmp_path / "whole", train={"cuda_graphs": "off"}))
    monkeypatch.setattr(feed.Feed.__init__, "__kwdefaults__", {"ahead": True})
    original = trainer.Trainer._done
    with monkeypatch.context() as patch:
        stop, asked = WARMUP_STEPS + 2, []

        def done(self):
            if self.step == stop and not asked:
                asked.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self)

        patch.setattr(trainer.Trainer, "_done", done)
        first, _ = losses(monkeypatch, settings_for(tmp_path / "parts"))
    assert len(first) == stop
    rest, others = losses(monkeypatch, SettingsTree(), resume=tmp_path / "parts")
    assert first + rest == whole
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert [each.replays for each in graphed] == [2, STEPS - stop - WARMUP_STEPS]


def test_a_batch_of_another_size_is_computed_eagerly(tmp_path, monkeypatch, graphed):
    sizes = []
    original = GraphedStep.__call__

    def call(self, batches, learning_rate):
        if len(sizes) == WARMUP_STEPS + 2:
            batches = [each._replace(image=each.image[:3], valid=each.valid[:3]) for each in batches]
        before = self.replays
        values = original(self, batches, learning_rate)
        sizes.append((len(batches[0].image), self.replays - before))
        return values

    monkeypatch.setattr(GraphedStep, "__call__", call)
    session.train(settings_for(tmp_path / "run"))
    assert sizes == [(8, 0)] * WARMUP_STEPS + [(8, 1)] * 2 + [(3, 0)] + [(8, 1)] * 3


@pytest.mark.parametrize("where", ["copying", "comparing"])
def test_a_step_whose_graph_memory_does_not_suffice_for_goes_on_without(tmp_path, monkeypatch, graphed, where):
    eager, weights = losses(monkeypatch, settings_for(tmp_path / "eager", train={"cuda_graphs": "off"}))
    failed = []

    def full(*arguments):
        failed.append(where)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    tensors, step = TrainingStep.tensors, SimpleNamespace(detach=lambda: SimpleNamespace(clone=full))
    if where == "copying":
        monkeypatch.setattr(TrainingStep, "tensors", lambda self: [*tensors(self)[:3], *([] if failed else [step])])
    else:
        # The first steps are taken there too.
        beside, calls = graph.beside, itertools.count(1)
        monkeypatch.setattr(
            graph, "beside", lambda work, device: (beside(work, device), next(calls) > WARMUP_STEPS and full())[0]
        )
    told = Heard()
    replayed, others = losses(monkeypatch, settings_for(tmp_path / "graph"), reporter=told)
    assert failed == [where]
    assert replayed == eager
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert any(
        "memory does not suffice to compare the step with its CUDA graph: CUDA out of memory." in text for text in told.messages
    )
    assert graphed[0].replays == 0


def frozen_masks(work, generators):
    """A graph that draws the same masks at every replay, since their generator was not registered."""
    for generator in generators:
        generator.manual_seed(99)
    states = [generator.get_state() for generator in generators]

    def replay():
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        work()

    return replay


def stale(work, generators):
    """A graph whose results are never written."""
    return lambda: None


def refusing(work, generators):
    work()
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(
    ("capture", "why"), [(frozen_masks, "other masks"), (stale, "is not the step"), (refusing, "operation not permitted")]
)
def test_a_graph_that_does_not_work_is_given_up(tmp_path, monkeypatch, graphed, capture, why):
    eager, weights = losses(monkeypatch, settings_for(tmp_path / "eager", train={"cuda_graphs": "off"}))
    monkeypatch.setattr(graph, "capture_cuda_graph", capture)
    said = []
    monkeypatch.setattr(SilentReporter, "message", lambda self, text: said.append(text))
    found, others = losses(monkeypatch, settings_for(tmp_path / "graph"))
    assert len([text for text in said if why in text and "goes on without" in text]) == 1
    assert found == eager
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    with pytest.raises(NotCapturedError, match=why) as failed:
        session.train(settings_for(tmp_path / "required", train={"cuda_graphs": "on"}))
    assert "more" not in failed.value.message


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ((1.0, 2.0), (1.0005, 2.01), True),
        ((1.0, 2.0), (1.002, 2.0), False),
        ((1.0, 2.0), (1.0, 2.05), False),
        # Diverging is the loop's own watch's business, and an overflow the scaler's.
        ((math.nan, math.nan), (math.nan, math.nan), True),
        ((1.0, math.inf), (1.0, math.inf), True),
        ((1.0, math.nan), (1.0, 2.0), False),
        ((1.0, 2.0), (math.nan, 2.0), False),
        ((1.0, math.inf), (1.0, math.nan), False),
    ],
)
def test_a_graph_is_the_step_up_to_rounding_and_where_both_are_nan(found, expected, same):
    assert graph.alike(found, expected) is same


def test_where_it_cannot_be(tmp_path):
    for tables, device, why in [
        ({}, "cpu", "the device is cpu"),
        ({"data": {"channel_sampling": 0.5}}, "cuda", "channel_sampling"),
        ({"masking": {"strategy": "mixed"}}, "cuda", "mixed"),
        ({"train": {"recompute": True}}, "cuda", "recompute"),
    ]:
        for asked in ("auto", "off"):
            more = {**tables, "train": {**tables.get("train", {}), "cuda_graphs": asked}}
            assert not graphs_wanted(settings_for(tmp_path, **more), torch.device(device))
        more = {**tables, "train": {**tables.get("train", {}), "cuda_graphs": "on"}}
        with pytest.raises(SettingsError, match=why) as failed:
            graphs_wanted(settings_for(tmp_path, **more), torch.device(device))
        assert failed.value.hint == "set train.cuda_graphs = 'auto'"
    assert graphs_wanted(settings_for(tmp_path), torch.device("cuda"))
    with pytest.raises(SettingsError, match="need a CUDA GPU"):
        session.train(settings_for(tmp_path / "run", train={"cuda_graphs": "on"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("patch_size", "optimizer", "accumulation", "kernels"),
    [
        (16, "adamw", 1, "torch"),
        (8, "adamw", 2, "torch"),
        (8, "muon", 1, "torch"),
        # One after another, so that what the first has compiled is there for the others.
        pytest.param(8, "adamw", 1, "triton", marks=pytest.mark.xdist_group("kernels of a small model")),
    ],
)
def test_the_real_graph(tmp_path, monkeypatch, precision, accumulation, patch_size, optimizer, kernels):
    """Masks and dropout go on changing, the rate is followed, and the losses are the eager loop's up to rounding."""
    monkeypatch.setenv("AUXMAE_KERNELS", kernels)
    tables = {
        "train": {"precision": precision, "accumulation": accumulation, "optimizer": optimizer},
        "model": {"patch_size": patch_size},
    }
    off = {**tables, "train": {**tables["train"], "cuda_graphs": "off"}}
    on = {**tables, "train": {**tables["train"], "cuda_graphs": "on"}}
    eager, _ = losses(monkeypatch, settings_for(tmp_path / "eager", "cuda", **off))
    replayed, _ = losses(monkeypatch, settings_for(tmp_path / "graph", "cuda", **on))
    # Sums in another order, which the optimiser's first steps make larger; other masks would be off by more.
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    for (loss, norm), (other, another) in zip(eager, replayed, strict=True):
        assert math.isclose(loss, other, rel_tol=tolerance)
        assert math.isclose(norm, another, rel_tol=10 * tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("asked", ["auto", "on"])
def test_a_step_that_reads_from_the_gpu_is_no_graph(tmp_path, monkeypatch, asked):
    """What cannot be captured is said, and where eager steps will do training goes on, random numbers included."""
    compute = graph.TrainingStep.compute

    def reading(self, batches):
        loss, norm = compute(self, batches)
        assert float(loss) > 0
        return loss, norm

    monkeypatch.setattr(graph.TrainingStep, "compute", reading)
    settings = settings_for(tmp_path / "run", "cuda", train={"cuda_graphs": asked})
    if asked == "on":
        with pytest.raises(NotCapturedError, match="cannot be captured"):
            session.train(settings)
        assert torch.rand(3, device="cuda").max() > 0
        return
    found, _ = losses(monkeypatch, settings)
    assert len(found) == STEPS
    assert all(math.isfinite(loss) for loss, _ in found)


class Numbers:
    """A loader of ten batches in two epochs, whose images are their number."""

    def __init__(self):
        self.epoch, self.position, self.given = 0, 0, 0

    def __iter__(self):
        for position in range(self.position, 5):
            number = 5 * self.epoch + position
            if number == 7:
                raise OSError("a broken file")
            self.epoch, self.position = (self.epoch + 1, 0) if position == 4 else (self.epoch, position + 1)
            self.given += 1
            image = torch.full((1, 1, 2, 2), float(number))
            yield Batch(image, image > 0, torch.zeros(1), None, None)

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


@pytest.mark.parametrize("ahead", [False, True])
def test_prefetching_keeps_order_content_and_place(ahead):
    loader = Numbers()
    batches = feed.Feed(loader, torch.device("cpu"), ahead=ahead)
    seen = []
    for number in range(7):
        assert batches.state_dict() == {"epoch": number // 5, "position": number % 5}
        assert batches.epoch == number // 5
        inputs = next(batches)
        seen.append(int(inputs.image.unique()))
        assert bool(inputs.valid.all()) == (number > 0)
        batches.prefetch()
        batches.prefetch()  # one ahead, not more
        assert loader.given == min(number + 1 + ahead, 7)
    assert seen == list(range(7))
    # What is wrong with the eighth is said when it is wanted.
    state = batches.state_dict()
    with pytest.raises(OSError, match="broken"):
        next(batches)
    again = feed.Feed(Numbers(), torch.device("cpu"), ahead=ahead)
    next(again)
    again.prefetch()
    again.load_state_dict({"epoch": 0, "position": 3})
    assert int(next(again).image.unique()) == 3
    assert state == {"epoch": 1, "position": 2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_prefetched_batches_arrive_whole_on_the_gpu():
    loader = Numbers()
    batches = feed.Feed(loader, torch.device("cuda"))
    assert batches.ahead
    for number in range(7):
        assert int(next(batches).image.unique()) == number
        batches.prefetch()

"""Fine-tuning beside training from scratch: same labels, same steps, and a difference where there is one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from auxmae.data.loading import Batch
from auxmae.evaluation.finetuning import FINE_TUNED, FROM_SCRATCH, run_finetuning
from auxmae.model.mae import AuxMAE


class Memory:
    """Batches in a fixed order from arrays, as a `Loader` gives them."""

    def __init__(self, image: torch.Tensor, label: torch.Tensor, maps: torch.Tensor | None = None) -> None:
        self.image, self.label, self.maps = image, label, maps
        self.number: torch.Tensor | None = None
        self.valid = torch.ones_like(image, dtype=torch.bool)
        self.batch_size, self.channels = 8, None
        self.dataset = SimpleNamespace(fetch=self.fetch)
        self.asked: set[int] = set()

    def fetch(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        self.asked.update(rows)
        return self.image[rows], self.valid[rows], None, None

    def __iter__(self):
        for i in range(0, len(self.image), 8):
            part = slice(i, i + 8)
            maps = None if self.maps is None else self.maps[part]
            number = None if self.number is None else self.number[part]
            yield Batch(self.image[part], self.valid[part], self.label[part], maps, None, number)


def stripes(count: int, seed: int, maps: bool = False) -> Memory:
    """Classes 2 and 5 differ in the direction of stripes of random phase, which no mean over the image tells."""
    random = torch.Generator().manual_seed(seed)
    label = torch.tensor([2, 5])[torch.arange(count) % 2]
    phase = torch.rand(count, 1, 1, generator=random) * 8
    ramp = torch.arange(16.0)
    wave = torch.sin((ramp + phase) * torch.pi / 2).expand(count, 16, 16)
    wave = torch.where((label == 5)[:, None, None], wave.transpose(1, 2), wave)
    image = wave[:, None].expand(-1, 2, -1, -1) + 0.05 * torch.randn(count, 2, 16, 16, generator=random)
    label_map = label[:, None, None].expand(-1, 16, 16).clone() if maps else None
    if label_map is not None:
        label_map[:, :5] = -1
    return Memory(image.contiguous(), torch.full_like(label, -1) if maps else label, label_map)


def model_of() -> AuxMAE:
    torch.manual_seed(0)
    return AuxMAE(2, image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)


def run(model: AuxMAE, train: Memory, test: Memory, **changes):
    arguments = {
        "dense": False,
        "pool": "moments",
        "labels_per_class": (0,),
        "steps": 60,
        "seeds": 2,
        "learning_rate": 3e-3,
        "bootstrap": 50,
        "seed": 0,
        "device": "cpu",
    }
    return run_finetuning(model, train, test, **{**arguments, **changes})


@pytest.mark.parametrize("dense", [False, True])
def test_both_ways_learn_what_is_there_and_the_model_stays_as_it_was(dense: bool) -> None:
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    said: list[str] = []
    report = run(model, stripes(40, 1, dense), stripes(30, 2, dense), dense=dense, progress=said.append)
    assert {r.features: r.accuracy > 0.9 for r in report.results} == {FINE_TUNED: True, FROM_SCRATCH: True}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any("step 51/60" in text for text in said)
    repeated = run(model, stripes(40, 1, dense), stripes(30, 2, dense), dense=dense)
    assert [r.to_dict() for r in repeated.results] == [r.to_dict() for r in report.results]


def test_shuffled_labels_give_chance_and_one_class_gives_the_reason() -> None:
    train, test = stripes(40, 1), stripes(60, 2)
    train.label = train.label[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    report = run(model_of(), train, test, steps=20)
    for result in report.results:
        assert abs(result.accuracy - 0.5) < 0.25
    train.label = torch.full_like(train.label, 2)
    assert "two classes" in run(model_of(), train, test).reason


def in_windows(whole: Memory) -> Memory:
    """Every image as three windows, of which the last one shows nothing of the class."""
    image = whole.image.repeat_interleave(3, 0)
    shown = torch.arange(len(image)) % 3 < 2
    image[~shown] = 0.05 * torch.randn(image[~shown].shape, generator=torch.Generator().manual_seed(9))
    parts = Memory(image, whole.label.repeat_interleave(3))
    parts.number = torch.arange(len(whole.image)).repeat_interleave(3) + 5
    return parts


def test_the_windows_of_an_image_are_labelled_and_judged_together() -> None:
    train, test = in_windows(stripes(40, 1)), in_windows(stripes(30, 2))
    report = run(model_of(), train, test, steps=90)
    assert {r.features: r.accuracy > 0.9 for r in report.results} == {FINE_TUNED: True, FROM_SCRATCH: True}
    train.asked.clear()
    run(model_of(), train, test, labels_per_class=(2,), seeds=1, steps=6)
    assert len({row // 3 for row in train.asked}) == 4
    assert len(train.asked) == 12


def test_a_window_of_few_valid_pixels_has_little_say() -> None:
    whole = stripes(30, 2)
    other = stripes(31, 2).image[1:]  # of each class the other one
    test = Memory(torch.stack([whole.image, other, other], 1).flatten(0, 1), whole.label.repeat_interleave(3))
    test.number = torch.arange(30).repeat_interleave(3)
    # The other two windows of an image show two patches of sixteen.
    test.valid[torch.arange(90) % 3 > 0, :, 4:] = False
    test.valid[torch.arange(90) % 3 > 0, :, :, 8:] = False
    test.image = test.image.masked_fill(~test.valid, 0.0)
    report = run(model_of(), stripes(40, 1), test, steps=90, seeds=1)
    assert {r.features: r.accuracy > 0.9 for r in report.results} == {FINE_TUNED: True, FROM_SCRATCH: True}


def test_a_budget_shows_no_other_labels_and_untrained_weights_give_no_difference() -> None:
    from auxmae.evaluation.probes import untrained

    train = stripes(40, 1)
    report = run(untrained(model_of(), seed=0), train, stripes(20, 2), labels_per_class=(3,), seeds=1, steps=5)
    assert len(train.asked) == 6
    ours, theirs = report.results
    assert ours.accuracy == theirs.accuracy
    assert report.comparisons[0].difference.difference == 0
    assert "from scratch" in report.comparisons[0].describe()
    assert np.isfinite(ours.interval).all()


def test_labels_that_no_step_shows_are_told() -> None:
    train = stripes(40, 1)
    (notice,) = run(model_of(), train, stripes(20, 2), seeds=1, steps=3).notices
    assert notice.startswith("With all labels, 3 steps of 8 show 24 of 40")
    assert not run(model_of(), train, stripes(20, 2), seeds=1, steps=5).notices


@pytest.mark.parametrize("steps", [1, 2, 9, 10])
def test_any_number_of_steps_trains(steps: int) -> None:
    said: list[str] = []
    report = run(model_of(), stripes(16, 1), stripes(8, 2), steps=steps, seeds=1, progress=said.append)
    assert len(report.results) == 2
    assert any(f"step 1/{steps}" in text for text in said)


def test_where_nothing_is_said_of_steps_every_label_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from auxmae.evaluation import finetuning

    monkeypatch.setattr(finetuning, "_STEPS", 2)
    train = in_windows(stripes(15, 1))
    report = run(model_of(), train, stripes(20, 2), seeds=1, steps=None, labels_per_class=(2, 0))
    assert train.asked == set(range(45))
    # Batches of 8: 4 images of 3 windows, and 15 such.
    assert report.steps == {2: 2, 0: 6}
    assert not report.notices

"""Pixels across scenes: what is tested on is never trained on, whole groups stay together, each scene gives its share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auxmae.evaluation import across_scenes
from auxmae.evaluation.across_scenes import _first_half, _quota, evaluate_across
from auxmae.evaluation.pixel_windows import LabelledScene
from auxmae.evaluation.probes import ENCODER, RANDOM
from auxmae.model.mae import AuxMAE
from tests.evaluation.small_scene import PROBES as SMALL
from tests.evaluation.small_scene import two_channels

PROBES = replace(SMALL, pool="moments", max_samples=200)


@pytest.fixture(scope="module")
def model() -> AuxMAE:
    return two_channels()


def scene(number: int, *, flipped: bool = False) -> LabelledScene:
    """Stripes of two classes, of which one is bright; an unlabelled row, a corner without data."""
    height, width = 20 + number % 3, 24
    labels = np.repeat(np.arange(5) % 2, 5)[:height, None].repeat(width, axis=1).astype(np.int64)
    image = torch.randn(2, height, width, generator=torch.Generator().manual_seed(number)) * 0.05
    image[0] += torch.from_numpy(1 - labels if flipped else labels)
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[:, :4, :5] = False
    labels[7] = -1
    return LabelledScene(image, valid, labels)


@given(scenes=st.integers(2, 40), most=st.integers(1, 50), seed=st.integers(0, 99))
def test_a_half_gives_no_more_pixels_than_are_asked_for(scenes: int, most: int, seed: int) -> None:
    first = np.random.default_rng(seed).random(scenes) < 0.5
    quota = _quota(first, most, seed)
    for half in (first, ~first):
        assert quota[half].sum() <= most
        assert len(set(quota[half].tolist()) - {0}) <= 1
        # As many scenes as there are pixels for.
        assert (quota[half] > 0).sum() == min(half.sum(), most)


def test_scenes_that_give_no_pixel_are_not_read(model: AuxMAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(across_scenes, "_FIT_SCENES", 2)
    seen: list[int] = []

    def read(number: int) -> LabelledScene:
        seen.append(number)
        return scene(number)

    names = [str(number) for number in range(30)]
    found = evaluate_across(model, read, names, np.arange(30), replace(PROBES, max_samples=5, labels_per_class=()))
    assert found.used <= 10
    assert len(seen) == 12


def test_the_tested_scene_is_not_trained_on(model: AuxMAE) -> None:
    """Where the bright class of one scene is the dark one of the other, what was learned there is wrong here."""
    names, groups = ["one", "two"], np.arange(2)
    alike = evaluate_across(model, scene, names, groups, PROBES)
    flipped = evaluate_across(model, lambda number: scene(number, flipped=number == 1), names, groups, PROBES)
    assert set(alike.reports) == {"one → two", "two → one"}
    for split in alike.reports:
        same, other = (
            {result.accuracy for result in found.reports[split].results if result.features == "raw spectrum"}
            for found in (alike, flipped)
        )
        assert min(same) > 0.95
        assert max(other) < 0.05
        kinds = {result.features for result in alike.reports[split].results}
        assert {ENCODER, RANDOM, "raw spectrum", "raw patch", "random convolutions", "channel statistics"} <= kinds
    assert alike.resampled == "windows"
    assert alike.halves in ((["one"], ["two"]), (["two"], ["one"]))
    assert alike.digests == flipped.digests
    assert len(set(alike.digests.values())) == 2
    usable = sum(int((scene(n).valid[0].numpy() & (scene(n).labels >= 0)).sum()) for n in range(2))
    assert (alike.labelled, alike.used) == (usable, 400)


def test_every_scene_gives_its_share_and_many_are_resampled_whole(model: AuxMAE) -> None:
    names = [f"scene {number}" for number in range(44)]
    groups = np.arange(44) // 2
    result = evaluate_across(model, scene, names, groups, replace(PROBES, max_samples=100))
    assert result.resampled == "scenes"
    assert [len(half) for half in result.halves] == [22, 22]
    for report in result.reports.values():
        # 100 pixels of 22 scenes: four of each.
        assert (report.train_samples, report.test_samples) == (88, 88)
        assert not report.notices
    first = set(result.halves[0])
    assert all((names[n] in first) == (names[n + 1] in first) for n in range(0, 44, 2))
    assert set(result.reports) == {"22 scenes → 22 scenes", "22 scenes → 22 scenes, back"}


@pytest.mark.parametrize(("scenes", "folded"), [(12, "scenes"), (10, "windows")])
def test_the_penalty_is_chosen_on_whole_scenes_and_intervals_of_windows_are_told(
    model: AuxMAE, monkeypatch: pytest.MonkeyPatch, scenes: int, folded: str
) -> None:
    from auxmae.evaluation import classifiers

    parts: list[int] = []

    def noted(y: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        parts.append(len(np.unique(groups)))
        return validation_folds(y, groups)

    validation_folds = classifiers.validation_folds
    monkeypatch.setattr(classifiers, "validation_folds", noted)
    names = [f"scene {number}" for number in range(scenes)]
    result = evaluate_across(model, scene, names, np.arange(scenes), PROBES)
    assert (result.resampled, result.folded) == ("windows", folded)
    assert parts
    # Several windows a scene.
    assert all((count == scenes // 2) == (folded == "scenes") for count in parts)
    for report in result.reports.values():
        (notice,) = report.notices
        assert notice.startswith(f"A half has {scenes // 2} scenes")
        assert "tell nothing of other scenes" in notice


def test_a_scene_without_valid_pixels_costs_nothing(model: AuxMAE) -> None:
    def read(number: int) -> LabelledScene:
        found = scene(number)
        return found._replace(valid=torch.zeros_like(found.valid)) if number == 2 else found

    result = evaluate_across(model, read, ["a", "b", "empty"], np.arange(3), PROBES)
    assert all(report.results for report in result.reports.values())
    nothing = evaluate_across(model, lambda _: read(2), ["a", "b"], np.arange(2), PROBES)
    assert nothing.used == 0
    assert all(report.reason for report in nothing.reports.values())


def test_untrained_weights_give_the_random_row(model: AuxMAE) -> None:
    from auxmae.evaluation.probes import untrained

    result = evaluate_across(untrained(model, seed=0), scene, ["one", "two"], np.arange(2), PROBES)
    for report in result.reports.values():
        rows = {name: [r.to_dict() for r in report.results if r.features == name] for name in (ENCODER, RANDOM)}
        for ours, floor in zip(rows[ENCODER], rows[RANDOM], strict=True):
            assert {**ours, "features": ""} == {**floor, "features": ""}


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40).filter(lambda groups: len(set(groups)) > 1), st.integers(0, 99))
def test_halves_hold_whole_groups_and_neither_is_empty(groups: list[int], seed: int) -> None:
    array = np.array(groups)
    first = _first_half(array, seed)
    assert 0 < first.sum() < len(first)
    assert all(len(set(first[array == group].tolist())) == 1 for group in groups)
    # As even as whole groups, largest first, allow: no half is larger than the other by more than a group.
    largest = max(groups.count(group) for group in groups)
    assert abs(int(first.sum()) - int((~first).sum())) <= largest


def test_scenes_of_one_group_cannot_be_halved(model: AuxMAE) -> None:
    with pytest.raises(ValueError, match="one group"):
        evaluate_across(model, scene, ["one", "two"], np.zeros(2, dtype=np.int64), PROBES)

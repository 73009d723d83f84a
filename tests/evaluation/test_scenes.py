"""Pixels of scenes: windows stand where they should, halves do not mix, maps keep their place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from auxmae.evaluation.pixel_windows import LabelledScene, PixelWindows, _centres, centre_of, find_positions
from auxmae.evaluation.probes import ENCODER, RANDOM
from auxmae.evaluation.scenes import AT_RANDOM, GIVEN, LEFT_RIGHT, RIGHT_LEFT, SceneResult, evaluate_scene
from auxmae.model.mae import AuxMAE
from auxmae.visuals.maps import map_figure, write_map
from tests.evaluation.small_scene import PROBES, two_channels


@pytest.fixture(scope="module")
def model() -> AuxMAE:
    return two_channels()


def scene() -> LabelledScene:
    """Stripes of two classes that differ in one channel; a corner without data, an unlabelled row, odd sizes."""
    labels = np.repeat(np.arange(4) % 2, 5)[:19, None].repeat(24, axis=1).astype(np.int64)
    image = torch.randn(2, 19, 24, generator=torch.Generator().manual_seed(1)) * 0.1
    image[0] += torch.from_numpy(labels)
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[:, :4, :5] = False
    image[:, :4, :5] = float("nan")
    labels[7] = -1
    return LabelledScene(image, valid, labels)


@pytest.fixture(scope="module")
def result(model: AuxMAE) -> SceneResult:
    return evaluate_scene(model, scene(), PROBES)


def test_both_directions_and_the_random_split_are_measured_beside_every_floor(result: SceneResult) -> None:
    assert list(result.reports) == [LEFT_RIGHT, RIGHT_LEFT, AT_RANDOM]
    assert len(set(result.digests.values())) == 3
    for name, report in result.reports.items():
        kinds = {r.features for r in report.results}
        assert {ENCODER, RANDOM, "raw spectrum", "raw patch", "random convolutions", "channel statistics"} <= kinds
        spectrum = max(r.accuracy for r in report.results if r.features == "raw spectrum")
        assert spectrum > 0.95, name
    _, valid, labels = scene()
    usable = valid[0].numpy() & (labels >= 0)
    # The window is 9 px, and half of a half 6.
    assert result.gap == 6
    assert result.reports[LEFT_RIGHT].train_samples == usable[:, :6].sum()
    assert result.reports[LEFT_RIGHT].test_samples == usable[:, 12:].sum()
    assert result.reports[RIGHT_LEFT].train_samples == usable[:, 18:].sum()


def test_windows_on_both_sides_of_the_border_share_no_pixel(model: AuxMAE) -> None:
    random = torch.Generator().manual_seed(2)
    image = torch.randn(2, 12, 60, generator=random)
    labels = np.arange(60)[None].repeat(12, axis=0) % 2
    everything = LabelledScene(image, torch.ones_like(image, dtype=torch.bool), labels)
    whole = evaluate_scene(model, everything, replace(PROBES, max_samples=5000))
    assert (whole.window, whole.gap) == (9, 8)
    # A window reaches 4 px to either side, and 8 columns lie between the last training and the first test column.
    assert whole.reports[LEFT_RIGHT].train_samples == 12 * 22
    assert whole.reports[RIGHT_LEFT].train_samples == 12 * 22
    assert whole.reports[AT_RANDOM].train_samples == 12 * 30


def test_a_scene_too_narrow_for_its_windows_is_told(model: AuxMAE, result: SceneResult) -> None:
    assert any("share up to 2 columns" in notice for notice in result.notices)
    image, valid, labels = (np.tile(part, 3) if isinstance(part, np.ndarray) else part.repeat(1, 1, 3) for part in scene())
    assert not any("narrow" in notice for notice in evaluate_scene(model, LabelledScene(image, valid, labels), PROBES).notices)


def test_the_map_is_of_every_valid_pixel(result: SceneResult) -> None:
    _, valid, labels = scene()
    assert ((result.prediction >= 0) == valid[0].numpy()).all()
    known = valid[0].numpy() & (labels >= 0)
    assert (result.prediction == labels)[known].mean() > 0.8


@pytest.mark.parametrize(("side", "stride"), [(300, 3), (256, 3), (301, 3), (220, 9), (4, 9), (1, 1), (7, 2), (8, 3)])
def test_positions_reach_the_last_pixels(side: int, stride: int) -> None:
    """Every square of the grid has one position, so that no row or column of the map is left without a class."""
    places = _centres(side, stride)
    assert (places // stride).tolist() == list(range(-(-side // stride)))
    assert (places < side).all()


def test_every_square_with_a_valid_pixel_has_a_position() -> None:
    random = np.random.default_rng(0)
    for height, width, stride in ((50, 41, 3), (30, 30, 7), (9, 200, 4), (40, 40, 1)):
        valid = random.random((height, width)) < 0.3
        valid[:7, :7] = False
        grid = find_positions(valid, np.zeros((height, width), np.int64), stride=stride, labels_per_class=(1,)).grid
        squares = {(row // stride, column // stride) for row, column in np.argwhere(valid).tolist()}
        assert [(row // stride, column // stride) for row, column in grid.tolist()] == sorted(squares)
        assert valid[grid[:, 0], grid[:, 1]].all()
        middles = np.stack(np.meshgrid(_centres(height, stride), _centres(width, stride), indexing="ij"), -1)
        for row, column in grid.tolist():
            top, left = row // stride * stride, column // stride * stride
            own = np.argwhere(valid[top : top + stride, left : left + stride]) + np.array([top, left])
            middle = middles[row // stride, column // stride]
            assert np.square((row, column) - middle).sum() == np.square(own - middle).sum(axis=1).min()


@pytest.mark.parametrize("size", [(281, 284), (1, 90_000), (5, 100_000), (141, 141), (10, 10)])
def test_the_stride_leaves_so_many_positions_at_most(size: tuple[int, int]) -> None:
    found = find_positions(np.ones(size, bool), np.zeros(size, np.int64), stride=0, labels_per_class=(1,))
    assert len(found.grid) <= 20_000
    finer = found.stride - 1
    assert finer == 0 or -(-size[0] // finer) * -(-size[1] // finer) > 20_000


def test_given_test_pixels_are_tested_on_and_all_others_trained_on(model: AuxMAE) -> None:
    """The two kinds of label lie crosswise, so that every half holds both; some pixels have either."""
    image, valid, labels = scene()
    test_labels = np.where(np.arange(24) % 3 == 0, labels, -1)
    train_labels = np.where(np.arange(24) % 3 == 1, labels, -1)
    train_labels[10] = labels[10]
    found = evaluate_scene(model, LabelledScene(image, valid, train_labels), PROBES, test_labels=test_labels)
    usable = valid[0].numpy() & (labels >= 0)
    tested, trained = usable & (test_labels >= 0), usable & (train_labels >= 0) & (test_labels < 0)
    assert list(found.reports) == [GIVEN]
    assert (found.reports[GIVEN].test_samples, found.reports[GIVEN].train_samples) == (tested.sum(), trained.sum())
    assert found.gap == 0
    assert "warning" not in found.to_dict()
    assert f"{int((test_labels[10] >= 0).sum())} pixels have a label to train on and one to test on" in " ".join(found.notices)
    assert f"The windows of {tested.sum()} of {tested.sum()} test pixels share pixels" in " ".join(found.notices)
    assert np.array_equal(found.prediction >= 0, valid[0].numpy())
    other = evaluate_scene(
        model, LabelledScene(image, valid, train_labels), PROBES, test_labels=np.where(labels == 0, test_labels, -1)
    )
    assert other.digests != found.digests


def test_no_given_pixel_is_left_out_for_the_grid(model: AuxMAE) -> None:
    """A benchmark's few training pixels would hardly be met by the grid that suffices for the map."""
    image, valid, labels = scene()
    test_labels = np.where(np.arange(24) % 5 > 0, labels, -1)
    probes = replace(PROBES, stride=3)
    found = evaluate_scene(model, LabelledScene(image, valid, labels), probes, test_labels=test_labels)
    usable = valid[0].numpy() & (labels >= 0)
    tested = usable & (test_labels >= 0)
    report = found.reports[GIVEN]
    assert (report.train_samples, report.test_samples) == ((usable & ~tested).sum(), tested.sum())
    assert found.used == found.labelled == usable.sum()
    assert "all are drawn from" in " ".join(found.notices)


def test_far_test_pixels_flatter_nobody(model: AuxMAE) -> None:
    image, valid, labels = torch.rand(2, 9, 60), torch.ones(2, 9, 60, dtype=torch.bool), np.zeros((9, 60), dtype=np.int64)
    labels[::2] = 1
    columns = np.arange(60)
    for first, said in ((29, False), (28, True)):
        found = evaluate_scene(
            model,
            LabelledScene(image, valid, np.where(columns <= 20, labels, -1)),
            PROBES,
            test_labels=np.where(columns >= first, labels, -1),
        )
        assert any("share pixels" in notice for notice in found.notices) is said
        if said:
            assert "The windows of 9 of 288 test pixels" in " ".join(found.notices)


def test_a_window_has_its_pixel_in_the_centre_patch() -> None:
    image, valid, _ = scene()
    windows = PixelWindows(image, valid, two_channels(9, 3))
    batch = windows.batch(np.array([[10, 11], [18, 23], [0, 0]]))
    assert torch.equal(batch.image[0], image[:, 6:15, 7:16])
    assert torch.equal(centre_of(batch, 3).image[0], image[:, 9:12, 10:13])
    assert not batch.valid[1, :, 5:].any()
    assert batch.valid[1, :, :5, :5].all()
    assert batch.image.isfinite().all()


@pytest.mark.parametrize(
    ("patch_size", "window", "side"), [(1, 9, 3), (1, 3, 3), (1, 1, 1), (2, 6, 3), (2, 2, 2), (3, 9, 3), (4, 12, 4)]
)
def test_the_raw_patch_is_of_three_pixels_at_least(patch_size: int, window: int, side: int) -> None:
    image, valid, _ = scene()
    windows = PixelWindows(image, valid, two_channels(window, patch_size))
    found = centre_of(windows.batch(np.array([[12, 13]])), patch_size, least=3)
    top, left = 12 - side // 2, 13 - side // 2
    assert torch.equal(found.image[0], image[:, top : top + side, left : left + side])
    assert torch.equal(found.valid[0], valid[:, top : top + side, left : left + side])


def test_few_windows_at_a_time_give_the_same(model: AuxMAE, result: SceneResult, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    dense_features = AuxMAE.dense_features

    def spy(self, image, **options):
        seen.append(len(image))
        return dense_features(self, image, **options)

    monkeypatch.setattr(AuxMAE, "dense_features", spy)
    # Nine places of two channels each: five windows together, and one where already one has more.
    for tokens, most in ((5 * 2 * 9, 5), (1, 1)):
        seen.clear()
        monkeypatch.setattr("auxmae.evaluation.pixel_windows._TOKENS", tokens)
        fewer = evaluate_scene(model, scene(), PROBES)
        assert max(seen) == most
        # Other batches may round otherwise, no more.
        assert (fewer.prediction == result.prediction).mean() > 0.98


def sparse_scene() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """60 × 80 px, 48 of them labelled, none of these on the default's grid of every fourth pixel."""
    labels = np.full((60, 80), -1, dtype=np.int64)
    image = torch.randn(2, 60, 80, generator=torch.Generator().manual_seed(1)) * 0.1
    places = np.random.default_rng(0).permutation(np.argwhere(np.ones((15, 20))))[:48]
    for number, (row, column) in enumerate(places):
        labels[4 * row, 4 * column] = number % 2
        image[0, 4 * row, 4 * column] += number % 2
    return image, torch.ones_like(image, dtype=torch.bool), labels


def test_few_labels_that_the_grid_misses_are_all_used(model: AuxMAE) -> None:
    image, valid, labels = sparse_scene()
    found = evaluate_scene(model, LabelledScene(image, valid, labels), replace(PROBES, stride=4))
    assert (found.labelled, found.used) == (48, 48)
    assert found.reports[AT_RANDOM].train_samples + found.reports[AT_RANDOM].test_samples == 48
    assert found.reports[LEFT_RIGHT].test_samples == (labels[:, 40:] >= 0).sum()
    assert found.notices == ["The grid (eval.stride = 4) meets 0 of 48 labelled pixels: all are drawn from."]
    for report in (found.reports[LEFT_RIGHT], found.reports[AT_RANDOM]):
        assert max(r.accuracy for r in report.results if r.features == "raw spectrum") == 1.0
        assert any(r.features == ENCODER for r in report.results)
    # With every pixel on the grid the same pixels and features are used, and nothing is to be said.
    whole = evaluate_scene(model, LabelledScene(image, valid, labels), replace(PROBES, stride=1))
    assert (whole.digests, whole.notices) == (found.digests, [])
    rows = [{(r.features, r.probe): r.accuracy for r in each.reports[AT_RANDOM].results} for each in (whole, found)]
    assert rows[0][ENCODER, "k-NN"] == pytest.approx(rows[1][ENCODER, "k-NN"])
    assert rows[0]["raw patch", "k-NN"] == pytest.approx(rows[1]["raw patch", "k-NN"])
    fewer = evaluate_scene(model, LabelledScene(image, valid, labels), replace(PROBES, stride=4, max_samples=10))
    assert fewer.used == 20
    assert "The probes use 20 of 48 labelled pixels (eval.max_samples = 10)." in fewer.notices


def test_a_densely_labelled_scene_stays_on_its_grid(model: AuxMAE) -> None:
    image, valid, _ = sparse_scene()
    labels = np.arange(80)[None].repeat(60, axis=0) // 8 % 2
    found = evaluate_scene(model, LabelledScene(image, valid, labels), replace(PROBES, stride=8))
    assert found.used == 8 * 10
    assert found.notices == ["The probes use 80 of 4800 labelled pixels (eval.stride = 8)."]
    assert found.to_dict()["used_pixels"] == 80


def test_untrained_weights_give_the_random_row(model: AuxMAE) -> None:
    from auxmae.evaluation.probes import untrained

    report = evaluate_scene(untrained(model, seed=0), scene(), replace(PROBES, stride=2)).reports[LEFT_RIGHT]
    for probe in ("k-NN", "logistic regression"):
        rows = {r.features: r.accuracy for r in report.results if r.probe == probe}
        assert rows[ENCODER] == rows[RANDOM]


def test_maps_keep_the_place_and_the_original_values(tmp_path: Path) -> None:
    classes = np.array([[0, 1, -1], [1, 1, 0]])
    place = {"crs": "EPSG:32760", "transform": [10.0, 0.0, 500000.0, 0.0, -10.0, 4800000.0]}
    path = write_map(classes, ("3", "8"), place, tmp_path / "maps" / "a.tif")
    with rasterio.open(path) as source:
        assert source.crs.to_epsg() == 32760
        assert list(source.transform)[:6] == place["transform"]
        np.testing.assert_array_equal(source.read(1), [[3, 8, source.nodata], [8, 8, 3]])
    with rasterio.open(write_map(classes, ("tree", "road"), None, tmp_path / "b.tif")) as source:
        assert source.tags()["class_1"] == "road"
        assert source.read(1).max() == source.nodata
    assert map_figure(classes, classes, ("3", "8"), tmp_path / "a.png", title="a").stat().st_size > 1000

"""Changes of images do what they say, and figures under them are those of the changed images."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from auxmae.cli.console import print_table
from auxmae.cli.eval_tables import robustness_table
from auxmae.data.loading import Batch
from auxmae.data.statistics import Scaling
from auxmae.evaluation.feature_floors import (
    RAW_PIXELS,
    RELATIONS,
    STATISTICS,
    raw_extractor,
    relation_channels,
    relations_extractor,
)
from auxmae.evaluation.features import encoder_extractor, extract_all, statistics_extractor
from auxmae.evaluation.linear_floor import LinearFloor
from auxmae.evaluation.probes import ENCODER
from auxmae.evaluation.robustness import (
    COUNT,
    GAIN,
    LEFT_OUT,
    NOISE,
    SIZE,
    UNCHANGED,
    Change,
    RobustnessResult,
    _adapt,
    _changed,
    evaluate_robustness,
    plan_changes,
)
from auxmae.model.mae import AuxMAE

NAMES = ("red", "green", "blue")
SCALING = Scaling("percentile", "none", 1.0, False, NAMES, (0.0, 10.0, 0.0), (100.0, 50.0, 1.0))


@pytest.fixture(scope="module")
def model() -> AuxMAE:
    torch.manual_seed(0)
    return AuxMAE(NAMES, image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)


def images(count: int, seed: int, side: int = 16) -> list[Batch]:
    """Two classes that the red channel alone tells apart."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 2
    image = torch.randn(count, 3, side, side, generator=generator) * 0.1 + 0.5
    image[:, 0] += 0.5 * label[:, None, None]
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[:, :, 0, 0] = False
    image = image.masked_fill(~valid, 0.0)
    return [Batch(image[i : i + 7], valid[i : i + 7], label[i : i + 7], None, None) for i in range(0, count, 7)]


def measure(
    model: AuxMAE, pool: str, changes: list[Change], scaling: Scaling = SCALING
) -> dict[tuple[str, float], RobustnessResult]:
    extractors = {
        ENCODER: encoder_extractor(model, pool=pool, device="cpu", dense=False),
        STATISTICS: statistics_extractor(),
        RELATIONS: relations_extractor(),
        RAW_PIXELS: raw_extractor(),
    }
    results = evaluate_robustness(
        model,
        images(42, 1),
        lambda side: images(42, 2, side or 16),
        extractors,
        extract_all(extractors, images(42, 1)),
        changes=changes,
        scaling=scaling,
        pool=pool,
        patch_size=None,
        limit=100,
        seed=0,
        mask_seed=0,
        device="cpu",
    )
    return {(result.kind, result.value): result for result in results}


def test_the_plan_leaves_out_every_group_and_takes_ever_fewer() -> None:
    changes = plan_changes([[0, 1], [2, 3], [4]], list("abcde"), [8, 24], seed=0)
    assert [c.dropped for c in changes if c.kind == LEFT_OUT] == [(0, 1), (2, 3), (4,)]
    counts = [c for c in changes if c.kind == COUNT]
    assert {c.value for c in counts} == {2, 1}
    assert all(
        len({0: (0, 1), 1: (2, 3), 2: (4,)}) - c.value == sum(set(g) <= set(c.dropped) for g in ((0, 1), (2, 3), (4,)))
        for c in counts
    )
    assert [c.value for c in changes if c.kind == SIZE] == [8, 24]
    assert changes[0].kind == UNCHANGED
    assert not [c for c in plan_changes([[0]], ["a"], [], seed=0) if c.kind in (LEFT_OUT, COUNT)]


@pytest.mark.parametrize("pool", ["mean", "moments", "moments+embedding"])
def test_what_the_classes_hang_on_is_missed_when_it_goes(model: AuxMAE, pool: str) -> None:
    changes = plan_changes([[0], [1], [2]], NAMES, [12], seed=0)
    found = measure(model, pool, changes)
    before = found[(UNCHANGED, 0.0)]
    assert before.accuracy[STATISTICS] == before.accuracy[RELATIONS] == before.accuracy[RAW_PIXELS] == 1.0
    assert before.accuracy[ENCODER] > 0.9
    assert before.masked_l1 == before.unchanged_l1
    for name in (STATISTICS, RELATIONS, RAW_PIXELS, *([ENCODER] if pool != "mean" else [])):
        # Classes are even: without the red channel nothing is left but chance; without blue all is as before.
        assert found[(LEFT_OUT, 0)].accuracy[name] == pytest.approx(0.5, abs=0.2), name
        assert found[(LEFT_OUT, 2)].accuracy[name] > 0.9, name
    assert RAW_PIXELS not in found[(SIZE, 12)].accuracy
    assert {STATISTICS, ENCODER} <= set(found[(SIZE, 12)].accuracy)
    assert found[(COUNT, 2)].draws == 3
    assert found[(NOISE, 1.0)].floor_l1 > found[(NOISE, 0.1)].floor_l1


@pytest.mark.parametrize("channels", [1, 5, 32, 33])
def test_every_relation_is_of_the_channels_that_change_it(channels: int) -> None:
    image = torch.randn(1, channels, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    extract, of = relations_extractor(), relation_channels(channels)
    before = extract(Batch(image, torch.ones_like(image, dtype=torch.bool), torch.zeros(1), None))[0]
    assert of.shape == (len(before), channels)
    for channel in range(channels):
        changed = image.clone()
        changed[:, channel] = changed[:, channel].square() + 1
        after = extract(Batch(changed, torch.ones_like(image, dtype=torch.bool), torch.zeros(1), None))[0]
        assert torch.equal((after - before).abs() > 1e-6, of[:, channel])


@pytest.mark.parametrize("strategy", ["channel", "mixed"])
def test_masks_of_whole_channels_are_drawn_of_those_that_are_left(strategy: str) -> None:
    torch.manual_seed(1)
    names = list("abcdefghijklm")
    mixture = {"channel": 3.0, "independent": 1.0}
    model = AuxMAE(names, image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1, mask_strategy=strategy,
                   mask_mixture=mixture)  # fmt: skip
    image = torch.randn(4, 13, 16, 16)
    batch = Batch(image, torch.ones_like(image, dtype=torch.bool), torch.tensor([0, 1, 0, 1]), None, None)
    few = [Change(COUNT, f"{13 - len(gone)} of 13", 13 - len(gone), tuple(gone)) for gone in (range(12), range(11), [3])]
    changes = [Change(UNCHANGED, "unchanged", 0.0), *few]
    scaling = Scaling("none", "none", 1.0, False, tuple(names), (0.0,) * 13, (1.0,) * 13)
    found = {
        result.value: result
        for result in evaluate_robustness(
            model, [batch], lambda _: [batch] * 6, {}, {}, changes=changes, scaling=scaling, pool="mean", patch_size=None,
            limit=9, seed=0, mask_seed=0, device="cpu",
        )
    }  # fmt: skip
    # Of one channel alone nothing can be hidden by whole channels.
    assert (found[1].masked_l1 is None) == (strategy == "channel")
    assert found[2].masked_l1 is not None
    assert found[12].masked_l1 is not None


def test_errors_of_the_simple_floors_are_proportional_to_the_gain(model: AuxMAE) -> None:
    without_offset = replace(SCALING, shift=(0.0, 0.0, 0.0))
    changes = [Change(UNCHANGED, "", 0.0), Change(GAIN, "", 0.7), Change(GAIN, "", 1.4)]
    before, less, more = measure(model, "mean", changes, without_offset).values()
    assert less.floor_l1 == pytest.approx(0.7 * before.floor_l1, rel=1e-4)
    assert more.floor_l1 == pytest.approx(1.4 * before.floor_l1, rel=1e-4)


def test_the_linear_floor_is_one_of_the_floors_under_every_change(model: AuxMAE) -> None:
    # Red and green are alike: where one of them is hidden the other one tells it, unless it is left out.
    train, test = ([b._replace(image=b.image[:, [0, 0, 2]]) for b in images(42, seed)] for seed in (1, 2))
    linear = LinearFloor.fit(model, train, seed=1, device="cpu")
    settings = {"scaling": SCALING, "pool": "mean", "patch_size": None, "limit": 100, "seed": 0, "mask_seed": 0, "device": "cpu"}
    changes = [Change(UNCHANGED, "", 0.0), Change(LEFT_OUT, "", 2.0, (2,)), Change(LEFT_OUT, "", 0.0, (0,))]
    simple, beside = (
        [r.floor_l1 for r in evaluate_robustness(model, train, lambda _: test, {}, {}, changes=changes, **settings, linear=floor)]
        for floor in (None, linear)
    )
    assert [b < 0.9 * a for a, b in zip(simple, beside, strict=True)] == [True, True, False]


def test_changes_of_pixels_are_those_of_the_label() -> None:
    batches = images(14, 3)
    fill, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 0.0])
    arguments = (SCALING, fill, deviation, 0)
    gained = next(iter(_changed(batches, Change(GAIN, "", 1.4), *arguments)))
    raw = SCALING.invert(batches[0].image)
    expected = SCALING.apply(1.4 * raw).masked_fill(~batches[0].valid, 0.0)
    torch.testing.assert_close(gained.image, expected)
    noisy = torch.cat([b.image for b in _changed(batches, Change(NOISE, "", 0.5), *arguments)])
    clean, valid = torch.cat([b.image for b in batches]), torch.cat([b.valid for b in batches])
    added = [float((noisy - clean)[:, c][valid[:, c]].std()) for c in range(3)]
    np.testing.assert_allclose(added, [0.5, 1.0, 0.0], rtol=0.05)
    # The same noise whatever the batches.
    whole = [Batch(clean, valid, torch.zeros(14, dtype=torch.int64), None, None)]
    torch.testing.assert_close(next(iter(_changed(whole, Change(NOISE, "", 0.5), *arguments))).image, noisy)
    dropped = next(iter(_changed(batches, Change(LEFT_OUT, "", 1, (1,)), *arguments)))
    assert dropped.image[:, 1][dropped.valid[:, 1]].eq(0.2).all()


def test_features_of_missing_channels_are_replaced_where_they_belong(model: AuxMAE) -> None:
    batch = images(4, 5)[0]
    for pool, repeats, width in (("concat", 1, 16), ("moments", 2, 16), ("moments+embedding", 2, 32)):
        extract = encoder_extractor(model, pool=pool, device="cpu", dense=False)
        mean = np.arange(repeats * 3 * width, dtype=np.float64)
        adapted = _adapt(ENCODER, extract, Change(LEFT_OUT, "", 1, (1,)), mean, pool, model)
        # The image's channels in another order than the model's: blue, green, red.
        order = torch.tensor([2, 1, 0])
        turned = batch._replace(image=batch.image[:, order], valid=batch.valid[:, order], channels=order)
        with torch.inference_mode():
            found = adapted(turned).view(4, repeats, 3, width)
            kept = torch.tensor([0, 2])
            alone = model.eval().forward_features(batch.image[:, kept], valid=batch.valid[:, kept], channels=kept, pool=pool)
        torch.testing.assert_close(found[:, :, kept].flatten(1), alone, rtol=1e-4, atol=1e-5)
        assert (found[:, :, 1] == torch.from_numpy(mean).float().view(repeats, 3, width)[:, 1]).all()


def test_the_figure_and_the_document_hold_every_change(model: AuxMAE, tmp_path: Path) -> None:
    from auxmae.visuals.robustness import robustness_figure

    changes = plan_changes([[0], [1], [2]], NAMES, [12], seed=0)
    found = list(
        measure(model, "moments", [change for number, change in enumerate(changes) if change.dropped or not number % 3]).values()
    )
    assert robustness_figure(found, tmp_path / "a.png").stat().st_size > 5000
    content = json.loads(json.dumps([result.to_dict() for result in found]))
    assert content[0]["best_floor"] in (STATISTICS, RAW_PIXELS)
    # Beside the error on some channels stands that of unchanged images on the same ones.
    figures: list[Figure] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("auxmae.visuals.robustness.save_figure", lambda figure, path: figures.append(figure) or path)
        robustness_figure(found, tmp_path / "c.png")
    left_out = [result for result in found if result.kind == LEFT_OUT]
    below = next(axis for axis in figures[0].axes if axis.get_xlabel() == "channel left out")
    dotted = next(line for line in below.lines if line.get_linestyle() == ":")
    assert list(dotted.get_ydata()) == [result.unchanged_l1 for result in left_out]
    assert len(set(dotted.get_ydata())) == len(left_out) > 1
    unlabelled = [RobustnessResult(r.kind, r.label, r.value, {}, r.masked_l1, r.floor_l1, r.unchanged_l1) for r in found]
    assert robustness_figure(unlabelled, tmp_path / "b.png").is_file()


@pytest.mark.parametrize("width", [70, 80, 200])
def test_a_narrow_terminal_breaks_names_and_no_figures(width: int) -> None:
    accuracy = {ENCODER: 0.9123, "random initialisation": 0.8456}
    results = [RobustnessResult(COUNT, "12 of 13 channels", 12, accuracy, 0.0512, 0.0634, 0.0423)]
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    print_table(console, robustness_table(results))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(figure in printed for figure in ("0.912", "0.846", "0.0512", "0.0634", "0.0423", "12 of 13 channels"))
    assert ("random initialisation" in printed) == (width >= 80)

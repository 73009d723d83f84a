"""`auxmae eval` on a small untrained run: the document, the written file, the errors."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from rich.console import Console

from auxmae.errors import DataError, SettingsError, UsageError
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import RunFolder, open_run
from auxmae.training.session import train
from auxmae.visuals.report import write_report
from tests.evaluation.small_run import invoke, make_run


def test_the_document_is_the_agreed_one(run_folder: Path) -> None:
    result = invoke(str(run_folder), "--json", "--batch-size", "16")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document) == {"split", "reconstruction", "probes", "comparisons", "verdict", "details"}
    measures = {"psnr", "spectral_angle", "ssim"}
    agreed = {"masked_l1", "per_channel", "floors", *measures, *(f"floors_{name}" for name in measures)}
    assert set(document["reconstruction"]) == agreed | {"ratios", "sources"}
    assert list(document["reconstruction"]["ratios"]) == ["0.5", "0.75", "0.9"]
    floors = {"mean", "interpolation", "linear in all channels"}
    parts = [*document["reconstruction"]["ratios"].values(), *document["reconstruction"]["sources"].values()]
    assert all(set(part["floors"]) == floors for part in (document["reconstruction"], *parts))
    assert set(document["details"]["floors_per_channel"]) == floors
    assert len(document["reconstruction"]["per_channel"]) == 13
    assert len(document["probes"]) == 2 * 2 * 7
    assert len(document["comparisons"]) == 2 * 2
    assert {probe["features"] for probe in document["probes"]} == {
        "encoder",
        "channel statistics",
        "channel relations",
        "raw pixels",
        "PCA of patches",
        "random convolutions",
        "random initialisation",
    }
    for probe in document["probes"]:
        documented = {"features", "probe", "labels_per_class", "accuracy", "average_accuracy", "interval"}
        assert set(probe) == documented | {"macro_f1", "kappa", "spread", "draws"}
        assert 0 <= probe["interval"][0] <= probe["interval"][1] <= 1
    written = json.loads((run_folder / "eval.json").read_text())
    assert written == document
    assert written["verdict"]
    details = document["details"]
    # Without validation there is no best checkpoint.
    assert (details["source"], details["labels"], details["checkpoint"]) == ("synthetic", "auto", "last")
    assert f"{run_folder}, last checkpoint, on cpu" in result.stderr
    # Images of 64 px in 16 windows each.
    assert (details["own_images"], details["probe_reason"]) == (True, "")
    assert (details["images"], details["windows"]) == (48, 48 * 16)
    assert "768 windows of 48 held-out images" in result.stderr
    assert details["probe_samples"]["test"] == 48
    assert 0 < details["majority"] < 1
    assert "channel statistics" in result.stderr


@pytest.mark.slow
def test_figures_repeat_and_do_not_depend_on_the_batch_size(run_folder: Path) -> None:
    quick = ("--set", "eval.labels_per_class=[3]", "--set", "eval.mask_ratios=[]")
    first, second = (json.loads(invoke(str(run_folder), "--json", "--batch-size", size, *quick).stdout) for size in ("8", "48"))
    assert first["split"] == second["split"]
    assert first["reconstruction"]["masked_l1"] == pytest.approx(second["reconstruction"]["masked_l1"], rel=1e-5)
    assert first["reconstruction"]["floors"] == pytest.approx(second["reconstruction"]["floors"], rel=1e-5)
    changed = invoke(str(run_folder), "--json", "--set", "eval.mask_seed=9", "--set", "eval.labels_per_class=[0]")
    document = json.loads(changed.stdout)
    assert document["reconstruction"]["masked_l1"] != first["reconstruction"]["masked_l1"]
    assert {probe["labels_per_class"] for probe in document["probes"]} == {0}


@pytest.mark.slow
def test_tables_are_printed_for_people(run_folder: Path) -> None:
    result = invoke(str(run_folder), "--set", "eval.labels_per_class=[3]")
    assert result.exit_code == 0, result.output
    for token in ("B8A", "interpolation", "all channels", "k-NN", "logistic", "eval.json"):
        assert token in result.stdout


def write_images(folder: Path, channels: int, count: int = 8) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 4000, (channels, 16, 16), dtype=np.uint16)
        tifffile.imwrite(folder / f"image_{i}.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack")
    return folder


def test_unlabelled_data_give_no_probes_and_the_reason(run_folder: Path, tmp_path: Path) -> None:
    result = invoke(str(run_folder), "--json", "--data", str(write_images(tmp_path / "images", 13)))
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["probes"] == []
    assert document["details"]["probe_reason"] == "The data carry no labels."
    assert (document["details"]["source"], document["details"]["own_images"]) == (str(tmp_path / "images"), False)
    assert "no labels" in result.stderr


@pytest.mark.slow
def test_sections_measured_earlier_stay_for_the_same_model_and_data(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auxmae.cli import eval_finetune, eval_robustness

    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "eval.json").unlink(missing_ok=True)
    monkeypatch.setattr(eval_finetune, "measure", lambda *_: {"steps": 1})
    monkeypatch.setattr(eval_robustness, "measure", lambda *_: {"results": []})
    quick = ("--set", "eval.labels_per_class=[]", "--set", "eval.max_images=8", "--set", "eval.mask_ratios=[]", "--json")

    def sections(*arguments: str) -> set[str]:
        result = invoke(str(run), *quick, *arguments)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert document == json.loads((run / "eval.json").read_text())
        return set(document) & {"finetuning", "robustness", "dense"}

    assert sections("--finetune") == {"finetuning"}
    assert sections("--robustness") == {"finetuning", "robustness"}
    assert sections() == {"finetuning", "robustness"}
    # Another split, other labels, other images, other features, other weights: nothing of before holds.
    data = ("--data", str(write_images(tmp_path / "i", 13)))
    for change in (("--set", "data.test_fraction=0.3"), ("--labels", "none"), data, ("--set", "eval.pool=mean")):
        assert sections("--finetune") >= {"finetuning"}
        assert sections(*change) == set()
    assert sections("--finetune") == {"finetuning"}
    model = open_run(run).load_model("last")
    with torch.no_grad():
        model.mask_token.add_(1)
    model.save_pretrained(run / "checkpoints" / "last")
    assert sections() == set()
    (run / "eval.json").write_text("{")
    assert sections("--robustness") == {"robustness"}


def test_nothing_that_was_measured_is_lost_by_the_name_of_a_folder(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copytree(run_folder, "run")
    write_report(Path("run"))
    result = invoke("run", "--json", "--set", "eval.labels_per_class=[]", "--set", "eval.mask_ratios=[]")
    assert result.exit_code == 0, result.output
    written = json.loads(Path("run/eval.json").read_text(encoding="utf-8"))
    assert written == json.loads(result.stdout)
    assert written["details"]["run"] == str(folder / "run")
    # Here it is in the page's title.
    assert "caf" in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(("code", "exit_code"), [(errno.ENOSPC, 1), (errno.EROFS, 0)])
def test_figures_are_shown_where_they_cannot_be_kept(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int
) -> None:
    def full(*_: object) -> Path:
        raise OSError(code, os.strerror(code))

    shutil.copytree(run_folder, tmp_path / "run")
    monkeypatch.setattr(RunFolder, "write_json", full)
    result = invoke(
        str(tmp_path / "run"),
        "--json",
        "--set",
        "eval.labels_per_class=[]",
        "--set",
        "eval.mask_ratios=[]",
        "--set",
        "eval.max_images=3",
    )
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["reconstruction"]
    assert f"eval.json: {os.strerror(code)}" in result.stderr


def test_data_without_the_models_channels_are_refused(run_folder: Path, tmp_path: Path) -> None:
    result = invoke(str(run_folder), "-d", str(write_images(tmp_path / "images", 5)))
    assert isinstance(result.exception, DataError)
    assert "channels" in str(result.exception)


def test_a_missing_run_and_a_run_without_checkpoint_are_said(run_folder: Path, tmp_path: Path) -> None:
    assert isinstance(invoke(str(tmp_path / "nowhere")).exception, UsageError)
    bare = tmp_path / "bare"
    shutil.copytree(run_folder, bare, ignore=shutil.ignore_patterns("checkpoints"))
    result = invoke(str(bare))
    assert "no checkpoint" in str(result.exception)


def test_missing_channels_are_an_error_by_name_or_dropped_on_purpose(run_folder: Path, tmp_path: Path) -> None:
    import rasterio

    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    names = [name for name in open_run(run).load_model("last").channel_names if name not in ("B03", "B8A")]
    generator = np.random.default_rng(0)
    for kind in range(2):
        for i in range(12):
            path = tmp_path / "images" / f"class{kind}" / f"{i}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(path, "w", driver="GTiff", height=16, width=16, count=len(names), dtype="uint16") as target:
                target.write(generator.integers(0, 4000 + 1000 * kind, (len(names), 16, 16), dtype=np.uint16))
                target.descriptions = names[::-1]
    arguments = (str(run), "--data", str(tmp_path / "images"), "--set", "eval.labels_per_class=[0]", "--json")
    refused = invoke(*arguments)
    assert isinstance(refused.exception, DataError)
    assert "B03" in str(refused.exception)
    assert "--allow-missing" in str(refused.exception)
    result = invoke(*arguments, "--allow-missing")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document["reconstruction"]["per_channel"]) == set(names)
    assert document["missing_channels"] == ["B03", "B8A"]
    assert "B03, B8A" in result.stderr
    assert len(document["probes"]) == 2 * 7
    assert "missing_channels" not in json.loads(invoke(str(run), "--set", "eval.labels_per_class=[]", "--json").stdout)


def test_of_many_images_those_are_read_that_the_probes_draw(run_folder: Path) -> None:
    from auxmae.build import build_data
    from auxmae.cli.eval_probes import draw_labelled
    from auxmae.evaluation.features import extract_all, statistics_extractor
    from auxmae.training.run import open_run

    data = build_data(open_run(str(run_folder)).settings, augment=False)
    labels = data.collection.labels
    assert labels is not None
    data.collection.labels = np.where(np.arange(len(labels)) % 3 == 0, -1, labels)
    for limit in (10, 25, 10_000):
        part = draw_labelled(data.train, limit, 7)
        extractors = {"": statistics_extractor()}
        expected, found = (extract_all(extractors, each, limit=limit, seed=7)[""] for each in (data.train, part))
        assert np.array_equal(found.x, expected.x)
        assert np.array_equal(found.y, expected.y)
        assert part.count_images() == min(limit, int((data.collection.labels[data.splits.train.items] >= 0).sum()))


def test_what_was_measured_is_kept_where_a_later_stage_fails_or_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auxmae.cli import eval_finetune, eval_robustness

    run_folder = make_run(tmp_path / "run")
    quick = ("--set", "eval.labels_per_class=[]", "--set", "eval.mask_ratios=[]", "--set", "eval.max_images=3")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(eval_finetune, "measure", lambda *arguments: {"results": [], "told": 1})
    monkeypatch.setattr(eval_robustness, "measure", interrupted)
    assert invoke(str(run_folder), "--finetune", "--robustness", *quick).exit_code != 0
    written = json.loads((run_folder / "eval.json").read_text())
    assert written["finetuning"] == {"results": [], "told": 1}
    assert "robustness" not in written

    # While one measures, another one writes.
    def slow(*arguments: object) -> dict[str, object]:
        there = json.loads((run_folder / "eval.json").read_text())
        (run_folder / "eval.json").write_text(json.dumps({**there, "finetuning": {"results": [], "told": 2}}))
        return {"results": [], "figure": None}

    monkeypatch.setattr(eval_robustness, "measure", slow)
    assert invoke(str(run_folder), "--robustness", *quick).exit_code == 0
    written = json.loads((run_folder / "eval.json").read_text())
    assert (written["finetuning"]["told"], written["robustness"]) == (2, {"results": [], "figure": None})


def test_what_another_call_measured_on_other_data_meanwhile_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from auxmae.cli import eval_robustness

    run_folder = make_run(tmp_path / "run")
    figures = run_folder / "figures"
    quick = ("--set", "eval.labels_per_class=[]", "--set", "eval.mask_ratios=[]", "--set", "eval.max_images=3")
    assert invoke(str(run_folder), *quick).exit_code == 0
    others = json.loads((run_folder / "eval.json").read_text())
    others["details"]["digests"]["files"] = "other"
    others["robustness"] = {"told": "theirs", "figure": str(figures / "robustness.png")}
    others["dense"] = {"one": {"map": None, "figure": str(figures / "map-one.png")}}

    def slow(*arguments: object) -> dict[str, object]:
        (run_folder / "eval.json").write_text(json.dumps(others))
        (figures / "map-one.png").write_text("theirs")
        (figures / "robustness.png").write_text("ours")
        return {"told": "ours", "figure": str(figures / "robustness.png")}

    monkeypatch.setattr(eval_robustness, "measure", slow)
    result = invoke(str(run_folder), "--robustness", *quick)
    assert result.exit_code == 0, result.output
    written = json.loads((run_folder / "eval.json").read_text())
    assert (written["robustness"]["told"], "dense" in written) == ("ours", False)
    assert (figures / "robustness.png").read_text() == "ours"
    (aside,) = run_folder.glob("eval-*.json")
    assert f"is kept as {aside}" in result.output
    kept = json.loads(aside.read_text())
    # Its own picture of the same name has been written over.
    assert kept["robustness"] == {"told": "theirs", "figure": None}
    assert Path(kept["dense"]["one"]["figure"]).read_text() == "theirs"


def test_a_pooling_that_the_model_lacks_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run"))
    config = {**run.load_model("last").config, "cls_tokens": False}
    AuxMAE(**config).save_pretrained(run.checkpoint("last"))
    result = invoke(str(run.path), "--set", "eval.pool=cls")
    assert isinstance(result.exception, SettingsError)
    assert "needs a model with CLS tokens" in str(result.exception)
    assert result.stdout == ""


@pytest.mark.parametrize("most", [5, 2000])
def test_robustness_sees_all_windows_of_the_same_images_at_every_size(run_folder: Path, most: int) -> None:
    from auxmae.build import build_data
    from auxmae.cli.eval_robustness import _batches
    from auxmae.training.run import open_run

    settings = open_run(str(run_folder)).settings
    settings = settings.model_copy(update={"eval": settings.eval.model_copy(update={"max_images": most})})
    data = build_data(settings)
    assert data.test is not None
    measured = {}
    for side in (None, 8, 64):
        loader = _batches(data, side, settings)
        assert loader is not None
        items, windows = np.unique(loader.dataset.items(list(range(loader.samples))), return_counts=True)
        assert loader.samples == len(loader.dataset)
        # Images of 64 px, crops of 16 px; four windows a side at most.
        assert set(windows.tolist()) == {1 if side == 64 else 16}
        measured[side] = items.tolist()
    assert measured[None] == measured[8] == measured[64]
    assert len(measured[None]) == min(most, len(data.splits.test.items))
    assert _batches(data, 65, settings) is None


def test_robustness_and_finetuning_test_on_labelled_images_where_most_have_none(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auxmae.build import build_data, build_model
    from auxmae.cli import eval_finetune
    from auxmae.cli.eval_robustness import _batches
    from auxmae.training.run import open_run

    settings = open_run(str(run_folder)).settings
    changes = {"max_images": 12, "max_samples": 10, "finetune_steps": 1, "finetune_seeds": 1, "finetune_labels": (2,)}
    settings = settings.model_copy(update={"eval": settings.eval.model_copy(update=changes)})
    data = build_data(settings, augment=False)
    labels, test = data.collection.labels, data.splits.test.items
    assert labels is not None
    # The last eleven test images have labels.
    monkeypatch.setattr(data.collection, "labels", np.where(np.isin(np.arange(len(labels)), test[:-11]), -1, labels))
    loader = _batches(data, None, settings)
    assert loader is not None
    seen = np.unique(loader.dataset.items(range(loader.samples)))
    assert len(seen) == 12
    assert set(test[-11:]) <= set(seen)
    stream = io.StringIO()
    document = eval_finetune.measure(build_model(settings, data), data, settings, "cpu", Console(file=stream, width=120))
    assert document["samples"] == {"train": len(data.splits.train.items), "test": 10}
    assert f"{len(data.splits.train.items)} training, 10 test samples" in stream.getvalue()


@pytest.mark.slow
def test_finetuning_and_robustness_are_measured_on_request(tmp_path: Path) -> None:
    run_folder = make_run(tmp_path / "run")
    (run_folder / "report.html").write_text("old")
    quick = ("--set", "eval.finetune_steps=3", "--set", "eval.finetune_labels=[2]", "--set", "eval.labels_per_class=[]")
    result = invoke(str(run_folder), "--finetune", "--robustness", "--json", *quick)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [r["features"] for r in document["finetuning"]["results"]] == ["fine-tuned", "from scratch"]
    assert document["finetuning"]["steps"] == {"2": 3}
    changes = {r["kind"] for r in document["robustness"]["results"]}
    assert {r["samples"] for r in document["robustness"]["results"]} == {document["robustness"]["results"][0]["windows"] // 16}
    assert "labelled test samples" in result.stderr
    assert changes == {"unchanged", "left out", "channels", "size", "noise", "gain"}
    assert (run_folder / "figures" / "robustness.png").is_file()
    assert "robustness" in (run_folder / "report.html").read_text()
    assert "from scratch" in result.stderr
    assert "without B8A" in result.stderr


def test_other_images_than_in_training_are_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()

    def add(*numbers: int) -> None:
        for number in numbers:
            np.save(data / f"{number}.npy", np.random.default_rng(number).uniform(size=(3, 32, 32)))

    add(*range(60))
    settings = {
        "data": {"source": str(data)},
        "model": {"patch_size": 8, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
        "train": {"max_steps": 1, "batch_size": 4},
        "run": {"folder": str(tmp_path / "run"), "device": "cpu"},
        "eval": {"bootstrap": 100},
    }
    run = train(SettingsTree.model_validate(settings)).run
    table = tmp_path / "t.csv"
    table.write_text("file,label\n" + "\n".join(f"{number}.npy,{'abc'[number % 3]}" for number in range(60)))
    words = "Files, labels or the split are others than in training (60 images, 3 channels"

    def told(*arguments: str) -> tuple[bool, object]:
        result = invoke(str(run), "--json", *arguments)
        assert result.exit_code == 0, result.output
        details = json.loads(result.stdout)["details"]
        assert details["own_images"] == (details["held_out_as_in_training"] is True)
        return words in result.stderr, details["held_out_as_in_training"]

    assert told() == (False, True)
    assert told("--data", str(data)) == (False, True)
    assert told("--labels", str(table)) == (True, False)
    assert told("--data", str(shutil.copytree(data, tmp_path / "other"))) == (False, None)
    # A part of the run's own files, and a folder above them, are told too.
    for source, shared in ((data / "1*.npy", "11 of the 11"), (tmp_path / "*" / "?.npy", "10 of the 20")):
        result = invoke(str(run), "--json", "--data", str(source), "--set", "eval.mask_ratios=[]")
        assert result.exit_code == 0, result.output
        assert f"{shared} files here are of the run's own data set ({data})" in result.stderr
        assert json.loads(result.stdout)["details"]["held_out_as_in_training"] is False
    add(60)
    assert told() == (True, False)
    # What was measured on other data is there still.
    assert json.loads(next(run.glob("eval-*.json")).read_text())["split"]


def test_windows_of_a_scene_and_whole_images_are_called_what_they_are(run_folder: Path, tmp_path: Path) -> None:
    quick = ("--set", "eval.mask_ratios=[]", "--set", "eval.max_images=3", "--json")
    images = write_images(tmp_path / "images", 13, count=20)
    scene = tmp_path / "scene.tif"
    pixels = np.random.default_rng(0).integers(0, 4000, (13, 80, 80), dtype=np.uint16)
    tifffile.imwrite(scene, pixels, metadata={"axes": "CYX"}, photometric="minisblack")
    for data, count, words in (
        (("--data", str(images)), 3, "3 held-out images"),
        (("--data", str(scene), "--set", "data.layout=scenes"), 1, "3 held-out windows of 1 scene"),
    ):
        result = invoke(str(run_folder), *quick, *data)
        assert result.exit_code == 0, result.output
        assert words in result.stderr
        details = json.loads(result.stdout)["details"]
        assert (details["images"], details["windows"]) == (count, 3)

"""`auxmae eval` on a small untrained run: the document, the written file, the errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from auxmae.errors import DataError, UsageError
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import open_run
from auxmae.training.session import train
from tests.evaluation.small_run import invoke, make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


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
    assert (details["source"], details["labels"], details["checkpoint"]) == ("synthetic", "auto", "best")
    # Images of 64 px in 16 windows each.
    assert (details["own_images"], details["probe_reason"]) == (True, "")
    assert (details["images"], details["windows"]) == (48, 48 * 16)
    assert "768 windows of 48 held-out images" in result.stderr
    assert details["probe_samples"]["test"] == 48
    assert 0 < details["majority"] < 1
    assert "channel statistics" in result.stderr


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


def test_dense_writes_maps_and_needs_a_label_raster(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4) % 2 * 3 + 1, 12)[:, None].repeat(48, axis=1).astype(np.uint8)
    labels[20] = 0  # a third class, of one row
    pixels = generator.integers(0, 200, (13, 48, 48)) + 1000 * labels.astype(np.int64)
    tifffile.imwrite(tmp_path / "scene.tif", pixels.astype(np.uint16), metadata={"axes": "CYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    quick = ("--set", "eval.labels_per_class=[0]", "--set", "eval.stride=4", "--dense", "--json")
    scene = ("--data", str(tmp_path / "scene.tif"), "--labels", str(tmp_path / "labels.tif"))
    result = invoke(str(run), *scene, *quick)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert list(document["dense"]["scene"]["splits"]) == ["left → right", "right → left", "random pixels"]
    assert (run / "maps" / "scene.tif").is_file()
    assert (run / "figures" / "map-scene.png").is_file()
    assert "leaks" in result.stderr
    assert isinstance(invoke(str(run), *quick).exception, DataError)
    tifffile.imwrite(tmp_path / "labels.tif", labels[:40])
    other_size = invoke(str(run), *scene, *quick)
    assert "40×48" in str(other_size.exception)


def write_scenes(folder: Path, names: tuple[str, ...], side: int = 48) -> tuple[str, ...]:
    """Scenes of 13 channels with rasters of two classes in stripes, and the arguments that name them."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4) % 2 + 1, side // 4)[:, None].repeat(side, axis=1).astype(np.uint8)
    for name in names:
        pixels = generator.integers(0, 200, (13, side, side)) + 1000 * labels.astype(np.int64)
        for path in (folder / "scenes" / name, folder / "labels" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "scenes" / name, pixels.astype(np.uint16), metadata={"axes": "CYX"}, photometric="minisblack")
        tifffile.imwrite(folder / "labels" / name, labels)
    return ("--data", str(folder / "scenes"), "--labels", str(folder / "labels"))


@pytest.mark.parametrize("layout", [pytest.param("array", marks=pytest.mark.slow), "images"])
def test_images_with_a_label_a_pixel_are_probed_patch_by_patch(run_folder: Path, tmp_path: Path, layout: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    generator = np.random.default_rng(0)
    labels = generator.integers(1, 3, (20, 2, 2)).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    pixels = (generator.integers(0, 200, (20, 13, 16, 16)) + 1000 * labels[:, None].astype(np.int64)).astype(np.uint16)
    images, masks = tmp_path / "images.npy", tmp_path / "masks.npy"
    if layout == "array":
        np.save(images, pixels)
        np.save(masks, labels)
    else:
        images, masks = images.with_suffix(""), masks.with_suffix("")
        images.mkdir()
        masks.mkdir()
        for i in range(20):
            tifffile.imwrite(images / f"{i}.tif", pixels[i], metadata={"axes": "CYX"}, photometric="minisblack")
            tifffile.imwrite(masks / f"{i}.tif", labels[i])
    quick = (
        "labels_per_class=[0]",
        "finetune_labels=[0]",
        "finetune_steps=40",
        "finetune_seeds=1",
        "bootstrap=10",
        "mask_ratios=[]",
    )
    named = ("--data", str(images), "--labels", str(masks), "--set", f"data.layout={layout}")
    settings = (part for each in quick for part in ("--set", f"eval.{each}"))
    result = invoke(str(run), *named, *settings, "--finetune", *(["--robustness"] if layout == "array" else []), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    # Two of the images are validated on; each has four patches of 8 px.
    assert document["details"]["probe_samples"] == {"train": 4 * 10, "test": 4 * 8}
    assert all(probe["accuracy"] > 0.9 for probe in document["probes"] if probe["features"] == "channel statistics")
    assert document["finetuning"]["results"][0]["accuracy"] > 0.9
    if layout == "array":
        unchanged = document["robustness"]["results"][0]
        assert unchanged["kind"] == "unchanged"
        assert unchanged["accuracy"]["channel statistics"] > 0.9
    assert "Pixel by pixel, across images: --dense" in result.stderr
    if layout == "images":
        result = invoke(str(run), *named, "--set", "eval.labels_per_class=[0]", "--set", "eval.bootstrap=10", "--dense", "--json")
        document = json.loads(result.stdout)
        assert document["dense"] == {}
        assert [len(half) for half in document["across_scenes"]["halves"]] == [10, 10]
        assert not (run / "maps").exists()


QUICK_DENSE = ("--set", "eval.labels_per_class=[0]", "--set", "eval.stride=8", "--dense", "--json")


def test_scenes_of_one_name_in_two_folders_stay_apart(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    scenes = write_scenes(tmp_path, ("a/scene.tif", "b/scene.tif", "b/other.tif"))
    result = invoke(str(run), *scenes, *QUICK_DENSE)
    assert result.exit_code == 0, result.output
    dense = json.loads(result.stdout)["dense"]
    assert set(dense) == {"a-scene", "b-scene", "other"}
    for name, found in dense.items():
        assert (found["map"], found["figure"]) == (str(run / "maps" / f"{name}.tif"), str(run / "figures" / f"map-{name}.png"))
        assert Path(found["map"]).is_file()
        assert Path(found["figure"]).is_file()


def test_scenes_are_measured_across_and_the_first_by_themselves(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    monkeypatch.setattr("auxmae.cli.eval_dense._MOST", 1)
    scenes = write_scenes(tmp_path, ("one.tif", "two.tif", "three.tif"))
    (tmp_path / "labels" / "two.tif").unlink()
    result = invoke(str(run), *scenes, *QUICK_DENSE)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert list(document["dense"]) == ["one"]
    assert "2 scenes have labels for their pixels: 1 are measured" in result.stderr
    across = document["across_scenes"]
    assert set(across["splits"]) == {"one → three", "three → one"}
    assert "Across scenes, one → three" in result.stderr
    # The later call keeps it, as it does "dense".
    again = invoke(str(run), *scenes, "--set", "eval.labels_per_class=[0]", "--set", "eval.stride=8", "--json")
    assert json.loads(again.stdout)["across_scenes"] == across
    grouped = invoke(str(run), *scenes, *QUICK_DENSE, "--set", r"data.group_pattern='(\w)'", "--set", "data.split=block")
    assert set(json.loads(grouped.stdout)["across_scenes"]["splits"]) == {"one → three", "three → one"}
    alone = invoke(str(run), *scenes, *QUICK_DENSE, "--set", "data.group_pattern='(tif)'", "--set", "data.split=block")
    assert "of one group: nothing is measured across scenes" in alone.stderr
    assert "across_scenes" not in json.loads(alone.stdout)


def test_a_benchmarks_own_test_pixels(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    scenes = write_scenes(tmp_path, ("one.tif", "two.tif"))
    full = tifffile.imread(tmp_path / "labels" / "one.tif")
    near = np.arange(48) < 16
    tifffile.imwrite(tmp_path / "labels" / "one.tif", np.where(near, full, 0))
    # Class 7 is not trained on.
    tested = np.where(near, 0, full)
    tested[:4, 30:] = 7
    (tmp_path / "tested").mkdir()
    tifffile.imwrite(tmp_path / "tested" / "one.tif", tested)
    given = ("--test-labels", str(tmp_path / "tested"), "--set", "data.ignored_labels=[0]", "--set", "eval.stride=1")
    result = invoke(str(run), *scenes, *QUICK_DENSE, *given)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["details"]["test_labels"] == str(tmp_path / "tested")
    assert "two: no labels to test on" in result.stderr
    assert list(document["dense"]) == ["one"]
    (split,) = document["dense"]["one"]["splits"].items()
    assert split[0] == "given pixels"
    assert (split[1]["train"], split[1]["test"]) == (int(near.sum() * 48), int((~near).sum() * 48))
    without_dense = [each for each in QUICK_DENSE if each != "--dense"]
    # What is kept of it later still says which pixels it is of.
    later = json.loads(invoke(str(run), *scenes, *without_dense, *given[2:]).stdout)
    assert list(later["dense"]["one"]["splits"]) == ["given pixels"]
    assert later["details"]["test_labels"] == str(tmp_path / "tested")
    assert "--dense" in str(invoke(str(run), *scenes, *without_dense, *given).exception)
    none = invoke(str(run), *scenes, *QUICK_DENSE, "--test-labels", "none")
    assert "no label for each pixel" in str(none.exception)


def test_a_map_that_cannot_be_written_costs_no_figure(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "maps").write_text("in the way")
    (run / "figures" / "map-two.png").mkdir(parents=True)
    result = invoke(str(run), *write_scenes(tmp_path, ("one.tif", "two.tif")), *QUICK_DENSE)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    document = json.loads(result.stdout)
    assert set(document["dense"]) == {"one", "two"}
    assert all(found["map"] is None and found["splits"] for found in document["dense"].values())
    assert (document["dense"]["two"]["figure"], document["dense"]["one"]["figure"]) == (
        None,
        str(run / "figures" / "map-one.png"),
    )
    assert json.loads((run / "eval.json").read_text())["dense"] == document["dense"]
    said = [line for line in result.stderr.splitlines() if line.startswith("Not written")]
    assert [str(run / "maps" / "one.tif") in said[0], "the map cannot be written" in said[0], len(said)] == [True, True, 3]


def test_no_two_scenes_have_one_name() -> None:
    from types import SimpleNamespace

    from auxmae.cli.eval_dense import scene_names

    paths = ["a/s.tif", "b/s.tif", "a-s.tif", "c/t.tif", "c/t.npy", "stack.npy", "a/b.c.tif", "b/b.c.tif"]
    counts = [1, 1, 1, 1, 1, 2, 1, 1]
    items = np.array([(number, index) for number, count in enumerate(counts) for index in range(count)])
    files = [SimpleNamespace(count=count) for count in counts]

    class Fake(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.items)

    names = scene_names(Fake(items=items, files=files, relative_paths=paths))
    expected = ["a-s-tif", "b-s", "a-s", "c-t-tif", "c-t-npy", "stack-0", "stack-1", "a-b.c", "b-b.c"]
    assert names == expected


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
        "eval": {"bootstrap": 10},
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

"""`auxmae eval` where every pixel has a label: patch by patch, and with --dense pixel by pixel, with maps and across scenes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile

from auxmae.cli.eval_dense import check_measurable
from auxmae.data.opening import open_collection
from auxmae.errors import DataError
from tests.evaluation.small_run import invoke
from tests.evaluation.small_scene import write_scenes


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
        "bootstrap=100",
        "mask_ratios=[]",
    )
    named = ("--data", str(images), "--labels", str(masks), "--set", f"data.layout={layout}")
    settings = (part for each in quick for part in ("--set", f"eval.{each}"))
    result = invoke(str(run), *named, *settings, "--finetune", *(["--robustness"] if layout == "array" else []), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    # Two of the images are validated on; each has four patches of 8 px.
    assert document["details"]["probe_samples"] == {"train": 4 * 10, "test": 4 * 8}
    # What the encoder has and the floors lack here is told.
    assert any("see a patch alone" in notice for notice in document["details"]["probe_notices"])
    assert "see a patch alone" in result.stderr
    assert all(probe["accuracy"] > 0.9 for probe in document["probes"] if probe["features"] == "channel statistics")
    assert document["finetuning"]["results"][0]["accuracy"] > 0.9
    if layout == "array":
        unchanged = document["robustness"]["results"][0]
        assert unchanged["kind"] == "unchanged"
        assert unchanged["accuracy"]["channel statistics"] > 0.9
    assert "Pixel by pixel, across images: --dense" in result.stderr
    if layout == "images":
        result = invoke(
            str(run), *named, "--set", "eval.labels_per_class=[0]", "--set", "eval.bootstrap=100", "--dense", "--json"
        )
        document = json.loads(result.stdout)
        assert document["dense"] == {}
        assert [len(half) for half in document["across_scenes"]["halves"]] == [10, 10]
        assert not (run / "maps").exists()


QUICK_DENSE = ("--set", "eval.labels_per_class=[0]", "--set", "eval.stride=8", "--dense", "--json")


@pytest.mark.slow
def test_what_was_measured_on_labels_that_were_corrected_since_is_not_kept(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    scenes = write_scenes(tmp_path, ("one.tif",))
    rest = (*scenes, *(each for each in QUICK_DENSE if each != "--dense"))
    assert invoke(str(run), *scenes, *QUICK_DENSE).exit_code == 0
    assert set(json.loads(invoke(str(run), *rest).stdout)) >= {"dense"}
    before = [(run / name).read_bytes() for name in ("maps/one.tif", "figures/map-one.png")]
    raster = tmp_path / "labels" / "one.tif"
    labels = tifffile.imread(raster)
    labels = 3 - labels  # no class more, no byte more, and the split is the same
    tifffile.imwrite(raster, labels)
    later = invoke(str(run), *rest)
    assert later.exit_code == 0, later.output
    assert "dense" not in json.loads(later.stdout)
    assert "is kept as" in later.stderr
    # With the map and the figure that it names, whatever is measured next.
    assert invoke(str(run), *scenes, *QUICK_DENSE).exit_code == 0
    (document,) = [each for path in run.glob("eval-*.json") if "dense" in (each := json.loads(path.read_text()))]
    kept = document["dense"]["one"]
    new = json.loads((run / "eval.json").read_text())["dense"]["one"]
    assert (new["map"], new["figure"]) == (str(run / "maps" / "one.tif"), str(run / "figures" / "map-one.png"))
    assert [Path(kept[key]).read_bytes() for key in ("map", "figure")] == before
    for key in ("map", "figure"):
        assert Path(new[key]).read_bytes() != Path(kept[key]).read_bytes()


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


def test_a_scene_of_nodata_is_left_out_and_no_budget_is_none(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    scenes = write_scenes(tmp_path, ("one.tif", "two.tif"))
    pixels = tifffile.imread(tmp_path / "scenes" / "two.tif")
    # Wherever the grid's pixels are, there is nothing: the scene is opened, for one pixel.
    pixels[:], pixels[:, 0, 0] = 7, 1
    tifffile.imwrite(tmp_path / "scenes" / "two.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack")
    result = invoke(str(run), *scenes, *QUICK_DENSE, "--set", "data.nodata=7", "--set", "eval.labels_per_class=[]")
    assert result.exit_code == 0, result.output
    dense = json.loads(result.stdout)["dense"]
    # No map is written where nothing could be predicted.
    assert "two: no map" in result.stderr
    assert "map" not in dense["two"]
    assert not (run / "maps" / "two.tif").exists()
    assert dense["one"]["splits"]["left → right"]["probes"] == []
    assert dense["two"]["splits"]["left → right"]["reason"]


def test_a_benchmarks_own_test_pixels(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []
    monkeypatch.setattr("auxmae.visuals.maps.map_figure", lambda *_, title: titles.append(title) or Path("map.png"))
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
    assert titles == ["one: predicted from the pixels to train on"]
    (split,) = document["dense"]["one"]["splits"].items()
    assert split[0] == "given pixels"
    assert (split[1]["train"], split[1]["test"]) == (int(near.sum() * 48), int((~near).sum() * 48))
    without_dense = [each for each in QUICK_DENSE if each != "--dense"]
    # What is kept of it later still says which pixels it is of.
    later = json.loads(invoke(str(run), *scenes, *without_dense, *given[2:]).stdout)
    assert list(later["dense"]["one"]["splits"]) == ["given pixels"]
    assert later["details"]["test_labels"] == str(tmp_path / "tested")
    assert "--dense" in str(invoke(str(run), *scenes, *without_dense, *given).exception)
    # Nothing is left to train on: said before anything is measured.
    all_of_them = invoke(str(run), *scenes, *QUICK_DENSE, "--test-labels", str(tmp_path / "labels"))
    assert isinstance(all_of_them.exception, DataError)
    assert "every pixel with a label to train on has one to test on" in str(all_of_them.exception)
    # What cannot be read is of the option that named it.
    (tmp_path / "small").mkdir()
    tifffile.imwrite(tmp_path / "small" / "one.tif", full[:40])
    for name in ("small", "not_there"):
        wrong = invoke(str(run), *scenes, *QUICK_DENSE, "--test-labels", str(tmp_path / name)).exception
        assert isinstance(wrong, DataError)
        assert wrong.message.startswith("--test-labels: ")
        assert wrong.hint is not None
        assert "--test-labels" in wrong.hint
        assert "data.labels" not in wrong.hint
    none = invoke(str(run), *scenes, *QUICK_DENSE, "--test-labels", "none")
    assert "no label for each pixel" in str(none.exception)


def test_what_is_inferred_of_test_labels_is_told(run_folder: Path, tmp_path: Path) -> None:
    """0 means "no label" in a MATLAB file of labels, and is a class in a TIFF."""
    write_scenes(tmp_path, ("one.tif",))
    full = tifffile.imread(tmp_path / "labels" / "one.tif")
    near = np.arange(48) < 16
    scipy.io.savemat(tmp_path / "train.mat", {"gt": np.where(near, full, 0)})
    tifffile.imwrite(tmp_path / "tested.tif", np.where(near, 0, full))
    scene = ("--data", str(tmp_path / "scenes" / "one.tif"), "--labels", str(tmp_path / "train.mat"))
    result = invoke(str(run_folder), *scene, *QUICK_DENSE, "--test-labels", str(tmp_path / "tested.tif"))
    assert isinstance(result.exception, DataError)
    assert "note: --test-labels: labels: 0 counts as a class (set data.ignored_labels = [0]" in result.stderr
    assert "data.ignored_labels=[0]" in result.exception.hint


@pytest.mark.parametrize("empty", [False, True])
def test_test_labels_of_other_scenes_are_refused_before_anything_is_measured(
    run_folder: Path, tmp_path: Path, empty: bool
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run, ignore=shutil.ignore_patterns("eval*"))
    scenes = write_scenes(tmp_path, ("one.tif", "two.tif"))
    (tmp_path / "tested").mkdir()
    shutil.move(tmp_path / "labels" / "two.tif", tmp_path / "tested" / "two.tif")
    if empty:
        # There is a raster of the scene that is trained on, without a label.
        tifffile.imwrite(tmp_path / "tested" / "one.tif", np.zeros((48, 48), dtype=np.uint8))
    given = ("--test-labels", str(tmp_path / "tested"), "--set", "data.ignored_labels=[0]")
    error = invoke(str(run), *scenes, *QUICK_DENSE, *given).exception
    assert isinstance(error, DataError)
    assert "no scene with labels to train on (--labels) has any to test on" in error.message
    assert error.hint is not None
    assert "with --labels alone" in error.hint
    assert not (run / "eval.json").exists()


@pytest.mark.slow
def test_pixels_measured_on_other_test_labels_are_set_aside_with_their_maps(run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Other tests may have measured that run.
    shutil.copytree(run_folder, run, ignore=shutil.ignore_patterns("eval*"))
    scenes = write_scenes(tmp_path, ("one.tif", "two.tif"))
    tested = tmp_path / "tested.tif"
    full = tifffile.imread(tmp_path / "labels" / "one.tif").astype(np.int16)
    full[:, :16] = -1  # trained on
    tifffile.imwrite(tested, full)
    plain = (*scenes, *(each for each in QUICK_DENSE if each != "--dense"))

    def measured(*arguments: str) -> dict[str, object]:
        for path in run.glob("eval*.json"):  # as if time had passed
            os.utime(path, (path.stat().st_mtime - 60,) * 2)
        result = invoke(str(run), *arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    halves = measured(*scenes, *QUICK_DENSE)
    given = measured(*scenes, *QUICK_DENSE, "--test-labels", str(tested))
    assert "across_scenes" not in given
    (aside,) = (json.loads(path.read_text()) for path in run.glob("eval-*.json"))
    assert aside["across_scenes"] == halves["across_scenes"]
    for name in ("one", "two"):
        assert aside["dense"][name]["splits"] == halves["dense"][name]["splits"]
        assert all(Path(aside["dense"][name][key]).is_file() for key in ("map", "figure"))
    assert Path(given["dense"]["one"]["map"]).name == "one.tif"
    assert measured(*plain)["dense"] == given["dense"]
    # Corrected, with no class more and no byte more.
    tifffile.imwrite(tested, np.where(full < 0, full, 3 - full))
    assert "dense" not in measured(*plain)
    assert len(list(run.glob("eval-*.json"))) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_that_is_alone_and_no_scene_has_nothing_to_be_measured_against(count: int, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path, ("one.tif", "two.tif", "three.tif"), side=16)
    for name in ("two.tif", "three.tif")[count - 1 :]:
        (tmp_path / "labels" / name).unlink()
    for layout in ("images", "scenes"):
        collection = open_collection(scenes[1], labels=scenes[3], layout=layout)
        if (count, layout) == (1, "images"):
            with pytest.raises(DataError, match=r"3 images, 13 channels .* no two have a label for each pixel") as caught:
                check_measurable(collection)
            assert "data.layout=scenes" in caught.value.hint
        else:
            check_measurable(collection)


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


def test_scenes_that_were_measured_are_kept_where_a_later_one_fails(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auxmae.cli import eval_dense

    run = tmp_path / "run"
    shutil.copytree(run_folder, run, ignore=shutil.ignore_patterns("eval*"))
    arguments = (str(run), *write_scenes(tmp_path, ("one.tif", "two.tif", "three.tif")), *QUICK_DENSE)
    read_scene = eval_dense.read_scene

    def measured(*broken: int) -> dict[str, object]:
        def read(data: object, item: int) -> object:
            if item in broken:
                raise DataError("broken")
            return read_scene(data, item)

        monkeypatch.setattr(eval_dense, "read_scene", read)
        assert invoke(*arguments).exit_code == (1 if broken else 0)
        found: dict[str, object] = json.loads((run / "eval.json").read_text())["dense"]
        return found

    # By name, "three" is the second.
    assert list(measured(1)) == ["one"]
    before = measured()
    # A call that does not come to a scene leaves what an earlier one has measured of it.
    assert measured(1) == before
    assert set(before) == {"one", "two", "three"}


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

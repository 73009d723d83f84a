"""What becomes of an eval.json that is there when `auxmae eval` measures anew."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import tifffile
from rich.console import Console

from auxmae.cli.eval_dense import find_digest
from auxmae.cli.eval_files import take_earlier, with_earlier_sections
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import RunFolder
from auxmae.visuals.report import write_report
from tests.evaluation.small_scene import write_scenes

PIXELS = {"dense": {"one": {"splits": {}, "map": "maps/one.tif", "figure": "map-one.png"}}, "across_scenes": {"halves": []}}


def document(test_labels: tuple[str | None, str | None] = (None, None), **sections: object) -> dict[str, Any]:
    """An eval.json; its pixels were tested on labels of this name and digest."""
    name, digest = test_labels
    digests = {"files": "f", "labels": "l", **({} if digest is None else {"test_labels": digest})}
    details = {"model": "m", "settings": {}, "digests": digests, "channels": ["red"], "eval": {"stride": 1}}
    return {"split": "s", "details": {**details, **({} if name is None else {"test_labels": name})}, **sections}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    for name in ("maps/one.tif", "figures/map-one.png", "figures/robustness.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return RunFolder(tmp_path)


def take(run: RunFolder, now: dict[str, Any], *, dense: bool = False, digest: str | None = None) -> tuple[dict[str, Any], str]:
    """What is kept of the run's eval.json, and what is said."""
    out = Console(record=True, width=1000, file=io.StringIO())
    earlier = take_earlier(run, now, out, dense=dense, digest_test_labels=lambda _: digest)
    return with_earlier_sections(now, earlier, out), out.export_text()


@pytest.mark.parametrize(
    ("then", "now", "found", "kept"),
    [
        # The next call measures pixels.
        ((None, None), (None, None), None, True),
        ((None, None), ("t", "d"), None, False),
        (("t", "d"), ("t", "d"), None, True),
        (("t", "d"), ("t", "e"), None, False),
        (("t", "d"), ("u", "d"), None, False),
        (("t", "d"), (None, None), None, False),
        # It does not: the labels are looked at again.
        ((None, None), None, None, True),
        (("t", "d"), None, "d", True),
        (("t", "d"), None, "e", False),
        (("t", "d"), None, None, False),
        (("t", None), None, "d", False),
        (("t", None), None, None, False),
    ],
)
def test_pixels_stay_with_the_test_labels_that_they_were_measured_on(
    run: RunFolder,
    then: tuple[str | None, str | None],
    now: tuple[str | None, str | None] | None,
    found: str | None,
    kept: bool,
) -> None:
    run.write_json("eval.json", document(then, finetuning={"steps": 1}, **PIXELS))
    result, said = take(run, document(now or (None, None)), dense=now is not None, digest=found)
    # What has nothing to do with them stays.
    assert result["finetuning"] == {"steps": 1}
    assert "finetuning" in said
    asides = [json.loads(path.read_text()) for path in run.path.glob("eval-*.json")]
    if kept:
        assert asides == []
        assert {name: result[name] for name in PIXELS} == PIXELS
        assert result["details"] == document(then)["details"]
        return
    assert not set(result) & set(PIXELS)
    assert result["details"] == document(now or (None, None))["details"]
    assert not set(json.loads((run.path / "eval.json").read_text())) & set(PIXELS)
    (aside,) = asides
    assert (aside["details"], aside["across_scenes"]) == (document(then)["details"], PIXELS["across_scenes"])
    for key, name in (("map", "maps/one.tif"), ("figure", "figures/map-one.png")):
        assert not (run.path / name).exists()
        assert Path(aside["dense"]["one"][key]).read_text() == name
    assert "What --dense measured with other test labels is kept in" in said


def test_why_an_earlier_document_is_not_gone_on_with_is_said_as_it_is(run: RunFolder) -> None:
    figure = str(run.figures / "robustness.png")
    for number, (change, words) in enumerate(
        [
            ({"model": "other"}, "The eval.json of another model, other data or other settings is kept as"),
            ({"digests": None}, "The eval.json of an earlier version, which does not say all that it is of, is kept as"),
            (None, "The eval.json that cannot be read is kept as"),
        ]
    ):
        earlier = document(robustness={"figure": figure})
        earlier["details"].update(change or {})
        if earlier["details"]["digests"] is None:
            del earlier["details"]["digests"]
        (run.figures / "robustness.png").write_text(f"robustness {number}")
        run.write_json("eval.json", earlier if change else [])
        result, said = take(run, document())
        assert words in said
        assert result == document()
        for path in run.path.glob("eval-*.json"):
            path.unlink()
    # Curves that were set aside are not the run's own.
    (run.figures / "robustness.png").unlink()
    run.write_json("eval.json", document())
    page = write_report(run.path).read_text(encoding="utf-8")
    assert list(run.figures.glob("robustness-*.png"))
    assert base64.b64encode(b"robustness ").decode()[:12] not in page


def test_test_labels_that_were_corrected_are_others_and_those_that_are_gone_are_none(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path, ("one.tif",))
    settings = SettingsTree.model_validate({"data": {"source": scenes[1], "labels": scenes[3]}})
    path = tmp_path / "tested.tif"
    labels = tifffile.imread(tmp_path / "labels" / "one.tif")
    tifffile.imwrite(path, labels)
    first = find_digest(settings, str(path))
    assert first is not None
    assert find_digest(settings, str(path)) == first
    tifffile.imwrite(path, 3 - labels)
    assert find_digest(settings, str(path)) not in (None, first)
    path.unlink()
    assert find_digest(settings, str(path)) is None

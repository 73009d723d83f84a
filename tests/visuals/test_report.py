"""The report of a run."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from auxmae.visuals.report import write_report

RESULT = {
    "run": "runs/a",
    "steps": 12,
    "seconds": 3.5,
    "images_per_second": 100.0,
    "masked_l1": 0.05,
    "floors": {"mean": 0.2, "interpolation": 0.1},
    "per_channel": {"B<01": 0.04, "B02": 0.06},
    "reason": "steps",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run & <b>"
    (folder / "figures").mkdir(parents=True)
    (folder / "settings.toml").write_text('[data]\nsource = "<script>"\n')
    for name in ("curves", "other", "reconstruction", "reconstruction-epoch-0010"):
        (folder / "figures" / f"{name}.png").write_bytes(name.encode())
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def _embedded(name: str) -> str:
    return "data:image/png;base64," + base64.b64encode(name.encode()).decode()


def test_everything_is_on_the_page(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text()
    assert "12 steps" in page
    assert "0.50 of the best floor" in page
    for number in ("0.0500", "0.2000", "0.1000", "0.0400", "0.0600"):
        assert number in page
    places = [page.index(_embedded(name) + '"') for name in ("reconstruction", "curves", "other")]
    assert places == sorted(places)
    assert _embedded("reconstruction-epoch-0010") + '"' not in page
    assert 'src="http' not in page
    assert "href" not in page


def test_names_are_text_and_no_markup(run: Path) -> None:
    page = write_report(run).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "run &amp; &lt;b&gt;" in page
    assert "B&lt;01" in page


def test_eval_adds_the_floor_per_channel(run: Path) -> None:
    details = {"own_images": True, "source": "/own", "floors_per_channel": {"interpolation": {"B02": 0.1234}}}
    content = {"details": details, "reconstruction": {"masked_l1": 0.5}}
    (run / "eval.json").write_text(json.dumps(content))
    page = write_report(run).read_text()
    assert "0.1234" in page
    # The run's own error is that of result.json.
    assert "0.5000" not in page


def test_eval_adds_the_floor_that_training_has_not(run: Path) -> None:
    linear = "linear in all channels"
    details = {"own_images": True, "source": "/own", "floors_per_channel": {linear: {"B02": 0.0222}}}
    content = {"details": details, "reconstruction": {"masked_l1": 0.5, "floors": {linear: 0.04, "mean": 0.3}}}
    (run / "eval.json").write_text(json.dumps(content))
    page = write_report(run).read_text()
    assert "1.25 of the best floor's: the model does not beat it" in page
    assert all(number in page for number in ("0.0400", "0.2000", "0.0222"))
    assert "0.3000" not in page
    details["own_images"] = False
    (run / "eval.json").write_text(json.dumps(content))
    own, _, other = write_report(run).read_text().partition("<h2>auxmae eval on /own")
    assert "0.50 of the best floor" in own
    assert "0.0400" in other


def test_eval_on_other_data_has_tables_of_its_own(run: Path) -> None:
    evaluation = {
        "reconstruction": {"masked_l1": 0.31, "floors": {"mean": 0.62, "interpolation": 0.71}, "per_channel": {"B02": 0.33}},
        "robustness": {"figure": "runs/a/figures/robustness.png"},
        "details": {
            "own_images": False,
            "source": "/other <data>",
            "checkpoint": "last",
            "floors_per_channel": {"interpolation": {"B02": 0.1234}},
        },
    }
    (run / "eval.json").write_text(json.dumps(evaluation))
    for name in ("robustness", "robustness-2026-11-28-101500", "map-old"):
        (run / "figures" / f"{name}.png").write_bytes(name.encode())
    own, _, other = write_report(run).read_text().partition("<h2>auxmae eval on /other &lt;data&gt;, last checkpoint</h2>")
    assert "0.50 of the best floor" in own
    assert "0.0600" in own
    assert not any(number in own for number in ("0.1234", "0.3100", "interpolation (auxmae eval)"))
    assert "0.50 of the best floor" in other
    assert all(number in other for number in ("0.3100", "0.6200", "0.7100", "0.3300", "0.1234"))
    assert "<h2>robustness, /other &lt;data&gt;</h2>" in other
    # What eval.json does not name is of other data, or of some that nobody knows any more.
    assert _embedded("robustness") in other
    assert not any(_embedded(name) in other for name in ("map-old", "robustness-2026-11-28-101500"))


def probe(features: str, accuracy: float, labels: int = 5) -> dict[str, object]:
    interval = [accuracy - 0.1, accuracy + 0.1]
    return {"features": features, "probe": "k-NN", "labels_per_class": labels, "accuracy": accuracy, "interval": interval}


def test_eval_says_what_its_probes_found(run: Path) -> None:
    split = {"train": 30, "test": 40, "probes": [probe("encoder", 0.7), probe("raw <spectrum>", 0.8)], "verdict": "It loses."}
    evaluation = {
        "probes": [probe("encoder", 0.61), probe("channel statistics", 0.51), probe("encoder", 0.71, 0)],
        "verdict": "It wins.\nclosest: by little",
        "finetuning": {"results": [{**probe("pre-trained", 0.9), "probe": ""}], "samples": {"train": 5, "test": 6}},
        "dense": {"scene & co": {"splits": {"left → right": split, "random pixels": split}, "warning": "It leaks."}},
        "across_scenes": {"splits": {"one half → the other": {**split, "reason": "Too few labels."}}},
        "details": {"own_images": True, "source": "/own", "checkpoint": "best", "probe_samples": {"train": 10, "test": 20}},
    }
    (run / "eval.json").write_text(json.dumps(evaluation))
    page = write_report(run).read_text()
    own = page.partition("<h2>Accuracy, auxmae eval, best checkpoint</h2>")[2]
    assert "<h3>Probes on frozen features: 10 training, 20 test samples</h3>" in own
    assert "<p>It wins.</p>" in own
    assert "<th>k-NN, 5 a class</th><th>k-NN, all labels</th>" in own
    assert '<td>encoder</td><td class="number">0.610 (0.51–0.71)</td><td class="number">0.710 (0.61–0.81)</td>' in own
    assert '<td>channel statistics</td><td class="number">0.510</td><td class="number">–</td>' in own
    assert "<h3>The whole network trained on labels: 5 training, 6 test samples</h3>" in own
    assert "<td>raw &lt;spectrum&gt;</td>" in own
    halves, _, random = own.partition("<h3>Pixels of scene &amp; co, random pixels: 30 training, 40 test samples</h3>")
    assert "<h3>Pixels of scene &amp; co, left → right: 30" in halves
    assert "It leaks." not in halves
    assert "It leaks." in random
    assert "Too few labels." in random
    assert "earlier weights" not in page
    assert "earlier weights" in write_report(run, trained_on=True).read_text()


@pytest.mark.parametrize("broken", [None, 3, "x", [], [3], {"a": 3}, {"splits": 3}, [{"accuracy": 0.5, "interval": ["a", None]}]])
def test_an_evaluation_of_another_form_is_left_out(run: Path, broken: object) -> None:
    for key in ("probes", "verdict", "finetuning", "dense", "across_scenes"):
        content = {key: broken, "details": {"own_images": True, "probe_samples": broken, "probe_notices": broken}}
        (run / "eval.json").write_text(json.dumps(content))
        assert "AuxMAE run" in write_report(run).read_text()


def test_an_evaluation_that_does_not_say_of_what_is_left_out(run: Path) -> None:
    (run / "eval.json").write_text(json.dumps({"details": {"floors_per_channel": {"interpolation": {"B02": 0.1234}}}}))
    assert "0.1234" not in write_report(run).read_text()


def test_a_model_that_does_not_beat_the_floor_is_told(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({**RESULT, "masked_l1": 0.3}))
    assert "does not beat it" in write_report(run).read_text()


@pytest.mark.parametrize(
    "result", ["", "{", "[]", "{}", '{"masked_l1": null, "floors": null}', '{"masked_l1": 0.1}', '{"steps": 3}']
)
def test_missing_and_broken_pieces(tmp_path: Path, result: str) -> None:
    (tmp_path / "result.json").write_text(result)
    assert "AuxMAE run" in write_report(tmp_path).read_text()

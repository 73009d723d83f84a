"""`--compare`: what counts as a regression, the exit code, and files that are no benchmark's."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from auxmae.benchmark.compare import compare, read_document, regressions
from auxmae.benchmark.suites import OURS, PLAIN
from auxmae.cli.app import app
from auxmae.errors import DataError, UsageError

RECORDED = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def document(samples, status="ok", reason="", provider="auxmae"):
    row = {
        "suite": "model", "case": "quick", "provider": provider, "pass": "step", "samples_ms": samples,
        "median_ms": statistics.median(samples) if samples else None,
        "status": status, "reason": reason,
    }  # fmt: skip
    return {"device": {"name": "x"}, "rows": [row]}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([10.0, 10.1, 10.2], [12.0, 12.1, 12.2], "slower"),
        ([12.0, 12.1, 12.2], [10.0, 10.1, 10.2], "faster"),
        ([10.0, 10.1, 10.2], [10.5, 10.6, 10.7], "the same"),
        # Beyond the threshold, and within the scatter of the samples.
        ([8.0, 10.0, 14.0], [9.0, 12.0, 15.0], "the same"),
        # One slow moment of the machine hides no regression.
        ([10.0, 10.1, 10.2, 10.3, 30.0], [12.0, 12.1, 12.2, 12.3, 12.4], "slower"),
        ([10.0], [], "lost"),
        ([], [10.0], "not measured before"),
        ([], [], "not measured"),
    ],
)
def test_verdicts(before, after, verdict):
    (change,) = compare(document(before), document(after, status="ok" if after else "wrong"), 0.1)
    assert change.verdict == verdict
    assert bool(regressions([change])) == (verdict in ("slower", "lost"))


def sized(document, **told):
    return document | {"rows": [row | told for row in document["rows"]]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"sizes": {"channels": 13}}, {"sizes": {"channels": 5}}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"batch": 4}, {"batch": 8}),
        ({"key": {"width": 32}}, {"key": {"width": 64}}),
        ({"key": {"width": 32}, "shapes": {"x": [8, 32]}}, {"key": {"width": 32}, "shapes": {"x": [128, 32]}}),
    ],
)
def test_what_has_another_size_is_not_compared(run, one, other):
    both = {
        "rows": [
            document(samples, provider=name)["rows"][0] for name, samples in ((OURS, [1.0, 1.1, 1.2]), (PLAIN, [2.0, 2.1, 2.2]))
        ]
    }
    slow = {
        "rows": [
            document(samples, provider=name)["rows"][0] for name, samples in ((OURS, [9.0, 9.1, 9.2]), (PLAIN, [2.0, 2.1, 2.2]))
        ]
    }
    done = run(sized(both, **one), sized(slow, **other))
    assert isinstance(done.exception, DataError)
    assert "nothing was compared" in done.exception.message
    assert "all that is in both was measured at other sizes or types" in done.exception.message
    assert "2 of another size or type, and not compared." in done.stdout
    assert "0 compared, 0 regressions" in " ".join(done.stdout.split())
    # The same size, or a document of before, which does not tell.
    for again in (sized(slow, **one), slow):
        done = run(sized(both, **one), again)
        assert "2 compared, 1 regressions" in " ".join(done.stdout.split())


def test_what_was_not_measured_again_is_no_regression():
    changes = compare(document([1.0], provider=PLAIN), document([1.0], provider="other"), 0.1)
    assert [change.verdict for change in changes] == ["not measured after", "not measured before"]
    assert regressions(changes) == []


def test_a_case_that_was_to_be_measured_and_was_not_is_lost(run):
    before = document([1.0, 1.1, 1.2])
    other = document([3.0, 3.1, 3.2])["rows"][0] | {"case": "other"}
    before["rows"].append(other)
    after = document([1.0, 1.1, 1.2])
    done = run(before, after)
    assert done.exit_code == 1
    assert "Lost: model · other: 1 figures: not measured" in done.stdout
    assert "1 compared, 0 regressions beyond 10% and beyond the spread, 1 lost." in " ".join(done.stdout.split())
    # With --case, or in another suite, it was not to be measured.
    other["suite"] = "scaling"
    for given, asked in ((before, {}), (before, {"suites": ["model"]}), (before, {"suites": ["scaling"], "cases": ["qu*"]})):
        done = run(given, after | asked)
        assert done.exit_code == 0
        assert "not measured after" in done.stdout
        assert "1 not measured after, and not compared." in done.stdout
    assert run(before, after | {"suites": ["model", "scaling"], "cases": ["qu*", "other"]}).exit_code == 1


def test_what_a_shorter_benchmark_leaves_out_is_not_lost(run):
    before = document([1.0, 1.1, 1.2])
    before["rows"].append(document([3.0, 3.1, 3.2])["rows"][0] | {"case": "other"})
    asked = {"suites": ["model"], "cases": []}
    quick = document([1.0, 1.1, 1.2]) | asked | {"intended": {"model": ["quick"]}}
    done = run(before, quick)
    assert done.exit_code == 0
    assert "1 not measured after, and not compared." in done.stdout
    assert run(before, quick | {"intended": {"model": ["quick", "other"]}}).exit_code == 1


def test_ours_is_lost_where_its_case_was_measured_without_it(run):
    plain = document([10.0, 10.1, 10.2], provider=PLAIN)
    before, variant = ({"rows": document([1.0, 1.1, 1.2], provider=name)["rows"] + plain["rows"]} for name in (OURS, "other"))
    done = run(before, plain | {"device": None})
    assert done.exit_code == 1
    assert "Lost: model · quick: 1 figures: not measured" in done.stdout
    # Options leave others out.
    assert run(variant, plain | {"device": None}).exit_code == 0


@pytest.mark.parametrize(
    "edited",
    [
        {"median_ms": 1.0}, {"median_ms": None}, {"samples_ms": []}, {"samples_ms": [2.0, 2.1, 2.2, 2.3]}, {"median_ms": "2.1"},
        {"samples_ms": "2.1"}, {"median_ms": float("nan")},
    ],
)  # fmt: skip
def test_a_median_that_is_not_its_samples_is_told(run, tmp_path, edited):
    before = document([2.0, 2.1, 2.2])
    after = {"rows": [before["rows"][0] | edited]}
    done = run(before, after)
    assert isinstance(done.exception, DataError)
    assert "b.json: damaged: the median_ms of model · quick · auxmae · step" in done.exception.message
    done = CliRunner().invoke(app, ["benchmark", "--from", str(tmp_path / "b.json")])
    assert isinstance(done.exception, DataError)
    assert run(before, {**before, "rows": [before["rows"][0] | {"median_ms": 2.1000001}]}).exit_code == 0


@pytest.mark.parametrize(
    ("edited", "told"),
    [
        ({"samples_ms": [0.0, 0.0], "median_ms": 0.0}, "samples_ms"),
        ({"samples_ms": [-1.0], "median_ms": -1.0}, "samples_ms"),
        ({"samples_a_visit": 0}, "samples_a_visit"),
        ({"samples_a_visit": "2"}, "samples_a_visit"),
        ({"suite": "speed"}, "suite"),
        ({"provider": None}, "provider"),
        ({"case": ["quick"]}, "case"),
        ({"peak_bytes": "8"}, "peak_bytes"),
    ],
)
def test_what_no_measurement_writes_is_told(run, tmp_path, edited, told):
    before = document([2.0, 2.1, 2.2])
    done = run(before, {"rows": [before["rows"][0] | edited]})
    assert isinstance(done.exception, DataError)
    assert f"b.json: damaged: the {told} of " in done.exception.message


@pytest.mark.parametrize("key", ["images_per_second", "peak_bytes", "parameters", "status"])
def test_a_document_that_lacks_what_is_shown_is_told(tmp_path, key):
    # Of what was counted nothing else is shown; and why there is no time, where there is none.
    row = document([2.0])["rows"][0] | {"images_per_second": 1.0, "peak_bytes": None, "parameters": 1, "flops": 1}
    row |= {"median_ms": None, "samples_ms": []} if key == "status" else {}
    (tmp_path / "a.json").write_text(json.dumps({"rows": [{name: value for name, value in row.items() if name != key}]}))
    done = CliRunner().invoke(app, ["benchmark", "--from", str(tmp_path / "a.json")])
    assert isinstance(done.exception, DataError)
    assert f"the {key} of model · quick · auxmae · step is missing" in done.exception.message


def test_a_threshold_without_end_is_refused(run):
    done = run(document([1.0]), document([1.0]), "--threshold", "inf", "--json")
    assert isinstance(done.exception, UsageError)


@pytest.mark.parametrize(
    ("providers", "told"),
    [((OURS, PLAIN), r"fewer than three samples have no spread .*--visits 3"), ((OURS,), "no provider was measured beside the")],
)
def test_few_samples_of_another_machine_are_the_reason_why_nothing_is_compared(run, providers, told):
    one, other = (
        {"device": {"name": name}, "rows": [document([1.0, 2.0], provider=provider)["rows"][0] for provider in providers]}
        for name in ("x", "y")
    )
    done = run(one, other)
    assert isinstance(done.exception, DataError)
    assert re.search(told, str(done.exception))


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_where_nothing_is_compared_the_comparison_fails(run, arguments):
    done = run(document([1.0], provider=PLAIN), document([1.0], provider="other"), *arguments)
    assert isinstance(done.exception, DataError)
    assert "nothing was compared" in done.exception.message
    assert done.exception.exit_code == 1
    if arguments:
        assert json.loads(done.stdout)["compared"] == 0
    else:
        assert "the same" not in done.stdout
        assert {"not measured after", "not measured before"} <= {" ".join(line.split()[-3:]) for line in done.stdout.splitlines()}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(before, after, *arguments):
        for name, content in (("a.json", before), ("b.json", after)):
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return CliRunner().invoke(
            app, ["benchmark", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *arguments]
        )  # fmt: skip

    return call


def test_the_exit_code_and_the_threshold(run):
    slow = document([10.0, 10.1, 10.2]), document([12.0, 12.1, 12.2])
    done = run(*slow)
    assert done.exit_code == 1
    assert "1.20" in done.stdout
    assert "slower" in done.stdout
    assert "1 regressions beyond 10%" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert run(*slow, "--threshold", "0.3").exit_code == 0
    assert run(*reversed(slow)).exit_code == 0


def test_json(run):
    done = run(document([10.0]), document([], status="wrong", reason="output 0"), "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found["regressions"] == 1
    assert found["changes"][0]["verdict"] == "lost"
    assert "output 0" in found["changes"][0]["reason"]


def test_ratios_are_compared_whatever_the_machine(run):
    def both(ours, plain):
        return {"rows": document(ours)["rows"] + document(plain, provider=PLAIN)["rows"]}

    before = both([8.0, 9.0, 10.0], [10.0, 10.0, 10.0])
    done = run(before, both([80.0, 170.0, 100.0], [100.0, 200.0, 100.0]), "--threshold", "100")
    assert done.exit_code == 0
    assert "1 of 1 agree within their spread" in " ".join(done.stdout.split())
    done = run(before, both([13.0, 12.0, 11.0], [10.0, 10.0, 10.0]), "--threshold", "100")
    said = " ".join(done.stdout.split())
    assert "0 of 1 agree within their spread. model · quick · auxmae · step: 0.90 (0.80–1.00), then 1.20 (1.10–1.30)" in said
    found = json.loads(run(before, before, "--json").stdout)["ratios"]
    assert found == [
        {"key": ["model", "quick", "auxmae", "step"], "agree": True}
        | {key: {"value": 0.9, "low": 0.8, "high": 1.0, "count": 3, "visits": 1} for key in ("before", "after")}
    ]


def test_on_another_machine_ratios_decide_and_times_do_not(run):
    def both(ours, plain, name):
        return {"device": {"name": name}, "rows": document(ours)["rows"] + document(plain, provider=PLAIN)["rows"]}

    before = both([8.0, 8.1, 8.2], [10.0] * 3, "a")
    done = run(before, both([80.0, 81.0, 82.0], [100.0] * 3, "b"))
    said = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert "another machine" in said
    assert "1 compared, 0 regressions" in said
    # Twice as fast, and yet slower than what it is compared with.
    done = run(before, both([4.0, 4.1, 4.2], [3.0] * 3, "b"))
    assert done.exit_code == 1
    assert "1 compared, 1 regressions" in " ".join(done.stdout.split())
    assert isinstance(run(before, document([1.0])).exception, DataError)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"processor": {"cpu family": "25"}}, {"processor": {"cpu family": "26"}}, False),
        ({"products": "oneDNN"}, {"products": "PyTorch's default"}, False),
        ({"products": "oneDNN", "processor": {}}, {"products": "oneDNN", "processor": {}}, True),
        # Recorded before there were these.
        ({}, {"products": "oneDNN", "processor": {"cpu family": "25"}}, True),
    ],
)
def test_processors_of_one_name_and_libraries_of_products_are_told_apart(before, after, same):
    one, two = document([10.0, 10.1, 10.2]), document([20.0, 20.1, 20.2])
    for each, facts in ((one, before), (two, after)):
        each["device"] = {"type": "cpu", "name": "AMD EPYC", "threads": 1} | facts
    (change,) = compare(one, two, 0.1)
    assert change.verdict == ("slower" if same else "another machine")


@pytest.mark.parametrize("count", [1, 2])
def test_without_a_spread_there_is_no_agreement_and_the_threshold_decides_alone(run, count):
    def both(ours):
        return {"rows": document([ours] * count)["rows"] + document([10.0] * count, provider=PLAIN)["rows"]}

    done = run(both(8.0), both(12.4))
    said = " ".join(done.stdout.split())
    assert done.exit_code == 1
    assert "slower, no spread" in said
    assert "1 of the verdicts rest on the threshold alone" in said
    assert "agree within their spread" not in said
    assert "model · quick · auxmae · step: 0.80, then 1.24" in said
    (found,) = json.loads(run(both(8.0), both(12.4), "--json").stdout)["ratios"]
    assert found["agree"] is None
    assert found["after"] == {"value": 1.24, "low": None, "high": None, "count": count, "visits": 1}


def test_rounds_of_a_single_visit_are_told(run):
    def both(visits):
        rows = document([8.0, 9.0, 10.0] * visits)["rows"] + document([10.0] * 3 * visits, provider=PLAIN)["rows"]
        return {"rows": [row | {"samples_a_visit": 3} for row in rows]}

    for visits, told in ((1, True), (3, False)):
        said = " ".join(run(both(3), both(visits)).stdout.split())
        assert "1 of 1 agree within their spread" in said
        assert ("Spreads of a single visit" in said) == told


def beside(ours, plain, **more):
    rows = document(ours)["rows"] + document(plain, provider=PLAIN)["rows"]
    return {"device": {"name": "x"}, "rows": [row | more for row in rows]}


@pytest.mark.parametrize(
    ("ours", "plain", "verdict", "of_plain"),
    [
        # Load that slowed both down, and a fault that slowed ours.
        ([13.0, 13.1, 13.2], [26.0, 26.1, 26.2], "the same", "undecided"),
        ([13.0, 13.1, 13.2], [20.0, 20.1, 20.2], "slower", "the same"),
        ([16.0, 16.1, 16.2], [26.0, 26.1, 26.2], "slower", "undecided"),
        ([7.0, 7.1, 7.2], [14.0, 14.1, 14.2], "the same", "undecided"),
        ([7.0, 7.1, 7.2], [20.0, 20.1, 20.2], "faster", "the same"),
        # A peer that became faster makes ours no slower.
        ([10.0, 10.1, 10.2], [15.0, 15.1, 15.2], "the same", "undecided"),
    ],
)
def test_load_that_slowed_down_both_is_no_regression(run, ours, plain, verdict, of_plain):
    documents = beside([10.0, 10.1, 10.2], [20.0, 20.1, 20.2]), beside(ours, plain)
    changes = compare(*documents, 0.1)
    assert {change.key[2]: change.verdict for change in changes} == {OURS: verdict, PLAIN: of_plain}
    done = run(*documents)
    assert done.exit_code == (verdict == "slower")
    assert ("1 undecided: of what the others are compared with" in " ".join(done.stdout.split())) == (of_plain == "undecided")


def test_what_others_are_compared_with_decides_by_its_time_where_no_ratio_does():
    fast, slow = [10.0, 10.1, 10.2], [20.0, 20.1, 20.2]
    # Ours has no figure in one of them, so there is no ratio in this pass; that of another pass decides nothing here.
    for before, after in ((beside([], fast), beside(fast, slow)), (beside(fast, fast), document(slow, provider=PLAIN))):
        for each in (before, after):
            each["rows"] += [row | {"pass": "forward"} for row in beside(fast, fast)["rows"]]
        found = {change.key[2:]: change.verdict for change in compare(before, after, 0.1)}
        assert (found[PLAIN, "step"], found[PLAIN, "forward"]) == ("slower", "the same")


@pytest.mark.parametrize(
    "path",
    # The others are of other scripts.
    [path for path in sorted(RECORDED.glob("*.json")) if {"rows", "device"} <= json.loads(path.read_text()).keys()],
    ids=lambda path: path.stem,
)
def test_recordings_of_any_time_can_be_shown(path):
    assert read_document(path, shown=True)["rows"]


@pytest.mark.parametrize("first", sorted(RECORDED.glob("*-1.json")), ids=lambda path: path.stem)
def test_recordings_of_the_same_code_show_no_regression(first):
    """Some were made on a machine that others used, and their times differ by up to 1.9 ×."""
    second = first.with_name(first.name.replace("-1.json", "-2.json"))
    done = CliRunner().invoke(app, ["benchmark", "--compare", str(first), str(second)])
    assert done.exit_code == 0
    assert " 0 regressions" in " ".join(done.stdout.split())


def test_the_rounds_of_a_visit_count_as_one():
    # The last visit before and the first one after touch; the middle half of six rounds would leave them out.
    before, after = [10.0, 10.0, 10.1, 10.1, 10.1, 12.6], [10.6, 12.0, 12.6, 12.6, 12.7, 12.7]
    for length, verdict in ((2, "the same"), (6, "slower")):
        documents = [document(samples) for samples in (before, after)]
        for each in documents:
            each["rows"][0]["samples_a_visit"] = length
        (change,) = compare(*documents, 0.1)
        assert change.verdict == verdict


@pytest.mark.parametrize(
    ("content", "kind", "way"),
    [
        ({"split": {}, "probes": {}}, "an eval.json document", "auxmae eval"),
        ({"arguments": {}, "trainings": []}, "a document of representation.py", "benchmarks/representation.py"),
    ],
)
def test_another_kind_of_document_is_called_what_it_is(tmp_path, content, kind, way):
    (tmp_path / "a.json").write_text(json.dumps(content))
    done = CliRunner().invoke(app, ["benchmark", "--from", str(tmp_path / "a.json")])
    assert isinstance(done.exception, DataError)
    assert kind in done.exception.message
    assert way in done.exception.hint


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [{"suite": "model"}]}', '{"rows": 3}', '{"rows": [], "device": "cpu"}'])
def test_a_file_of_another_kind(run, content):
    done = run(document([1.0]), content)
    assert isinstance(done.exception, DataError)
    assert "b.json" in done.exception.message


def test_a_missing_file(run, tmp_path):
    done = CliRunner().invoke(app, ["benchmark", "--compare", str(tmp_path / "no.json"), str(tmp_path / "no.json")])
    assert isinstance(done.exception, DataError)
    assert "no.json" in done.exception.message

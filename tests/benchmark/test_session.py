"""A benchmark of several visits: what each of them measures, and how the rows grow."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from auxmae_kernels import reference

from auxmae.benchmark import gate, kernel_suite, session, suites
from auxmae.benchmark.measure import attempt
from auxmae.benchmark.ratios import ratios
from auxmae.benchmark.session import Request, run
from auxmae.errors import DataError, UsageError
from auxmae.settings.schema import SettingsTree

CPU = torch.device("cpu")


def row(provider, samples, status="ok", **more):
    median = sorted(samples)[len(samples) // 2] if samples else None
    return {
        "suite": "model", "case": "quick", "provider": provider, "pass": "step", "status": status, "reason": "",
        "samples_ms": samples, "median_ms": median, "images_per_second": median and 8e3 / median, "peak_bytes": 1,
        "flops": 10**9, "bytes": None, "kernel_launches": 3, **more,
    }  # fmt: skip


@pytest.fixture
def visits(monkeypatch):
    """What the model suite finds, visit for visit; and the visits that it was asked for."""
    found, asked = [], []

    def passes(case, *, visit, **_):
        asked.append(visit)
        yield found[visit.number]

    monkeypatch.setattr(suites, "model_passes", passes)
    return found, asked


def test_rows_grow_by_every_visits_samples(visits):
    found, asked = visits
    found += [
        [row("a", [1.0, 2.0, 3.0]), row("b", [], "out of memory")],
        [row("a", [8.0, 9.0, 7.0], flops=None, peak_bytes=None)],
    ]
    recorded, said = [], []
    document = run(
        Request(["model"], quick=True, visits=2, repeats=3), CPU, said.append, lambda each: recorded.append(json.dumps(each))
    )
    first, second = document["rows"]
    assert first["samples_ms"] == [1.0, 2.0, 3.0, 8.0, 9.0, 7.0]
    assert (first["samples_a_visit"], first["median_ms"], first["peak_bytes"]) == (3, 5.0, 1)
    assert first["images_per_second"] == pytest.approx(8e3 / 5)
    assert first["flops_per_second"] == pytest.approx(1e9 / 5e-3)
    assert first["flops_of_ceiling"] == pytest.approx(first["flops_per_second"] / document["ceilings"]["matmul_flops_per_second"])
    assert (second["status"], second["samples_ms"]) == ("out of memory", [])
    assert [visit.again for visit in asked] == [None, {("model", "quick", "a", "step")}]
    assert [text for text in said if text.startswith("visit")] == ["visit 1 of 2", "visit 2 of 2"]
    # After either visit the document so far, at the end the whole one.
    assert (document["suites"], document["cases"], document["intended"]) == (["model"], [], {"model": ["quick"]})
    assert [json.loads(each)["complete"] for each in recorded] == [False, False, True]
    assert [len(json.loads(each)["rows"][0]["samples_ms"]) for each in recorded] == [3, 6, 6]


def test_what_fails_in_a_later_visit_has_no_figure(visits):
    found, asked = visits
    found += [[row("a", [1.0])], [row("a", [], "failed", reason="no luck")], []]
    (only,) = run(Request(["model"], quick=True, visits=3, repeats=1), CPU)["rows"]
    assert (only["status"], only["reason"], only["samples_ms"]) == ("failed", "no luck", [])
    for key in ("median_ms", "peak_bytes", "images_per_second", "kernel_launches", "flops_per_second", "flops_of_ceiling"):
        assert only[key] is None
    assert asked[2].again == set()


def test_what_torch_compile_gave_up_is_a_failure_and_no_eager_figure(monkeypatch):
    def passes(*_, **__):
        torch.compiler.reset()
        compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
        outcomes = [attempt(lambda size=size: compiled(torch.ones(size)), CPU)[0] for size in range(2, 12)]
        yield [row("compiled", [1.0], outcomes[-1])]

    monkeypatch.setattr(suites, "model_passes", passes)
    (found,) = run(Request(["model"], quick=True, visits=1, compile_too=True), CPU)["rows"]
    assert found["status"] == "failed"


def test_a_suite_that_the_device_cannot_run_is_refused():
    with pytest.raises(UsageError, match="kernels compares with results in fp64, which MPS does not have"):
        run(Request(["kernels"], quick=True), torch.device("mps"))


def test_every_pattern_means_a_case():
    with pytest.raises(UsageError, match="no case of kernels is called feed_forwrad") as caught:
        run(Request(["kernels"], quick=True, patterns=["add_norm", "feed_forwrad"]), CPU)
    assert "feed_forward/quick" in caught.value.hint


def test_what_is_intended_is_what_the_rows_are_of():
    asked = ["kernels", "model", "scaling"]
    document = run(Request(asked, quick=True, patterns=["add_norm", "channels/C=2"], visits=1, repeats=1), CPU)
    found = {suite: [*dict.fromkeys(row["case"] for row in document["rows"] if row["suite"] == suite)] for suite in asked}
    assert found == document["intended"] == {"kernels": ["add_norm/quick"], "model": [], "scaling": ["channels/C=2"]}


def test_models_are_built_anew_and_counted_once(monkeypatch):
    built, counted = [], []
    make, count = suites.build_providers, suites._flops
    monkeypatch.setattr(suites, "build_providers", lambda case, **options: built.append(case.batch) or make(case, **options))
    monkeypatch.setattr(suites, "_flops", lambda *arguments: counted.append(arguments[1:3]) or count(*arguments))
    document = run(Request(["model"], quick=True, visits=2, repeats=1, batch_size=2, channels=3), CPU)
    # `_flops` builds models for a single image.
    assert Counter(built)[2] == 2
    assert len(counted) == len(set(counted)) == len(document["rows"])
    for found in document["rows"]:
        assert (found["status"], len(found["samples_ms"])) == ("ok", 2)
        assert found["images_per_second"] == pytest.approx(2e3 / found["median_ms"])
        assert found["peak_bytes"] > 0
        assert found["flops"] > 0
    assert {each.count for each in ratios(document).values()} == {2}


def test_kernels_are_judged_once_and_a_wrong_one_is_not_timed(monkeypatch):
    judged = []
    monkeypatch.setattr(kernel_suite, "judge", lambda *given: judged.append(given) or gate.judge(*given))
    monkeypatch.setattr(
        kernel_suite,
        "sdpa_providers",
        lambda: {"sdpa wrong": lambda *given, **named: 2 * reference.axial_attention(*given, **named)},
    )
    document = run(Request(["kernels"], quick=True, patterns=["*axial*"], visits=2, repeats=1), CPU)
    # The specification itself is judged in another unit of rounding.
    judged = [given for given in judged if given[-1] != gate.EXACT]
    assert len(judged) == len({(found["case"], found["provider"]) for found in document["rows"]})
    for found in document["rows"]:
        expected = ("wrong", 0) if found["provider"] == "sdpa wrong" else ("ok", 2)
        assert (found["status"], len(found["samples_ms"])) == expected
    assert {found["status"] for found in document["rows"]} == {"wrong", "ok"}


def test_data_is_opened_once(monkeypatch):
    opened = []
    build = session.build_data
    monkeypatch.setattr(session, "build_data", lambda settings: opened.append(settings) or build(settings))
    small = {
        "data": {"synthetic_images": 40},
        "model": {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
        "train": {"batch_size": 4},
    }
    document = run(Request(["data"], quick=True, visits=2, repeats=1, settings=SettingsTree.model_validate(small)), CPU)
    assert len(opened) == 1
    assert [len(found["samples_ms"]) for found in document["rows"]] == [2, 2, 2]


def test_data_that_cannot_be_read_is_told_before_other_suites_are_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(session, "ceilings", lambda *arguments, **options: pytest.fail("measured first"))
    settings = SettingsTree.model_validate({"data": {"source": str(tmp_path / "no")}})
    with pytest.raises(DataError, match="no such file or folder"):
        run(Request(["scaling", "data"], quick=True, settings=settings), CPU)

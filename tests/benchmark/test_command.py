"""`auxmae benchmark`: JSON, the table at 80 columns, the result in words, and faults before the measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from auxmae.benchmark import environment, suites
from auxmae.benchmark.suites import FUSED, JOINT, OURS, PLAIN
from auxmae.cli import benchmark_tables
from auxmae.cli.app import app
from auxmae.errors import AuxMAEError, SettingsError, UsageError

KEYS = {"suite", "case", "provider", "pass", "median_ms", "samples_ms", "peak_bytes", "images_per_second"}


def row(provider, name, samples, mib):
    median = sorted(samples)[len(samples) // 2]
    return {
        "suite": "model", "case": "quick", "provider": provider, "pass": name, "median_ms": median, "samples_ms": samples,
        "peak_bytes": mib * 2**20, "images_per_second": 8e3 / median, "parameters": 1, "status": "ok", "reason": "",
    }  # fmt: skip


ROWS = [
    row(OURS, "forward", [40.0, 41.0, 42.0], 300),
    row(PLAIN, "forward", [29.0, 30.0, 31.0], 250),
    row(OURS, "step", [80.0, 85.0, 90.0], 267),
    row(PLAIN, "step", [99.0, 100.0, 101.0], 300),
    row(f"{OURS} (compiled)", "step", [90.0, 97.0, 120.0], 300),
    row(f"{OURS} (recompute)", "step", [133.0, 134.0, 135.0], 100),
]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("AUXMAE_KERNELS", raising=False)
    rows = list(ROWS)
    calls = []

    def suite(case, **arguments):
        calls.append((case, arguments))
        yield rows

    monkeypatch.setattr(suites, "model_passes", suite)

    def call(*arguments):
        return CliRunner().invoke(app, ["benchmark", "--quick", "--device", "cpu", "--visits", "1", *arguments])

    call.rows = rows
    call.calls = calls
    return call


def table_line(output, provider, number=0):
    return [line for line in output.splitlines() if line.strip().startswith(f"{provider}  ")][number]


def test_the_table_fits_80_columns_and_cuts_nothing(run):
    done = run()
    assert done.exit_code == 0, done.exception
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert table_line(done.stdout, OURS, 0).split()[1:] == ["41.0", "2%", "195.1", "300", "1.37", "1.35–1.38", "1.20"]
    assert table_line(done.stdout, OURS, 1).split()[1:] == ["85.0", "6%", "94.1", "267", "0.85", "0.81–0.89", "0.89"]
    assert table_line(done.stdout, PLAIN, 1).split()[-3:] == ["1.00", "–", "1.00"]
    for provider in (f"{OURS} (compiled)", f"{OURS} (recompute)"):
        table_line(done.stdout, provider)


@pytest.mark.parametrize("columns", ["60", "80"])
def test_large_figures_are_not_cut(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    samples = [123456.0, 234567.0, 345678.0]
    run.rows[:] = [row(name, "step", samples, 143360) for name in (PLAIN, f"{OURS} (recompute)")]
    done = run()
    figures = table_line(done.stdout, f"{OURS} (recompute)").split()
    assert figures[-7:] == ["234567", "47%", "0.034", "143360", "1.00", "1.00–1.00", "1.00"]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_long_names_cut_no_figure(run):
    run.rows[:] = [row(name, "step", [123456.0, 234567.0, 345678.0], 143360) for name in (PLAIN, f"{JOINT} (CUDA graph)")]
    done = run()
    figures = table_line(done.stdout, f"{JOINT} (CUDA graph)").split()
    assert figures[-7:] == ["234567", "47%", "0.034", "143360", "1.00", "1.00–1.00", "1.00"]
    assert "…" not in done.stdout


def words(output):
    return " ".join(output.split())


def test_the_result_in_words_says_losses_like_wins(run):
    said = words(run().stdout)
    assert (
        f"{OURS}: a training step takes 0.85 × the time (faster) and 0.89 × the memory (less) of the plain published design; "
        "a forward pass takes 1.37 × the time (slower) and 1.20 × the memory (more)."
    ) in said
    assert f"{OURS} (recompute): a training step takes 1.34 × the time (slower) and 0.33 × the memory (less)" in said


def test_ours_is_told_beside_every_peer_with_memory_where_it_is_more(run):
    run.rows[:] = [
        row(OURS, "step", [14.0, 14.1, 14.2], 126),
        row(OURS, "forward", [5.0, 5.1, 5.2], 90),
        row(JOINT, "step", [10.0, 10.1, 10.2], 100),
        row(JOINT, "forward", [10.0, 10.1, 10.2], 100),
        row(FUSED, "step", [1.0, 1.1, 1.2], 20),
    ]
    said = words(run().stdout)
    assert (
        f"{OURS} beside {JOINT}: a training step takes 1.40 × the time (slower) and uses 1.26 × the memory; "
        "a forward pass takes 0.50 × the time (faster)."
    ) in said
    assert f"{OURS} beside {FUSED}: a training step takes 12.82 × the time (slower) and uses 6.30 × the memory." in said


def test_what_the_dispatch_costs_is_told_as_measured():
    rows = [
        row(provider, "forward", samples, 1) | {"suite": "kernels", "case": case, "backend": "torch"}
        for case, ours in (("a", 1.47), ("b", 1.06), ("c", 1.1))
        for provider, samples in ((OURS, [ours] * 3), ("eager", [1.0] * 3))
    ]
    (said,) = benchmark_tables._kernel_words(rows)
    assert "it takes 1.06 to 1.47 × its time, 1.10 × in the median of 3 measurements" in said


def test_the_scaling_suite_tells_memory():
    rows = [
        row(provider, "step", [1.0], mib) | {"suite": "scaling", "case": case, "axis": "channels", "sizes": {"channels": size}}
        for case, size, ours in (("a", 2, 120), ("b", 8, 90))
        for provider, mib in ((OURS, ours), (JOINT, 100))
    ]
    said = benchmark_tables._scaling_words(rows)[-1]
    assert said == "Factorised attention uses 0.90 to 1.20 × the memory of joint attention: more of it in 1 of 2 cases."


def test_what_was_not_measured_is_told():
    rows = [row(OURS, "step", [1.0, 1.0, 1.0], 1)]
    versions = {"transformers": None}
    said = benchmark_tables.sentences({"rows": rows, "versions": versions, "complete": False})
    assert any(line.startswith(f"{FUSED}: not measured, for transformers was not installed") for line in said)
    assert any("stopped before its end" in line for line in said)
    rows.append(row(FUSED, "step", [1.0, 1.0, 1.0], 1))
    said = benchmark_tables.sentences({"rows": rows, "versions": versions, "complete": True})
    assert not any("not measured" in line or "stopped" in line for line in said)


def test_a_difference_within_the_spread_is_called_so(run):
    said = words(run().stdout)
    assert (
        f"{OURS} (compiled): a training step takes 0.97 × the time (within the spread) and 1.00 × the memory (the same)" in said
    )


def test_one_sample_is_no_verdict(run):
    run.rows[:] = [row(PLAIN, "step", [10.0], 10), row(OURS, "step", [9.0], 10)]
    said = run().stdout
    assert "0.90 × the time (a single sample)" in words(said)
    # No spread is not a spread of nothing.
    assert table_line(said, OURS).split()[1:] == ["9.00", "–", "888.9", "10", "0.90", "–", "1.00"]


def test_two_samples_are_no_verdict(run):
    run.rows[:] = [row(PLAIN, "step", [10.0, 11.0], 10), row(OURS, "step", [4.0, 5.0], 10)]
    assert "× the time (two samples)" in words(run().stdout)


def test_a_provider_without_a_figure_is_told_with_its_reason(run):
    lost = row(JOINT, "step", [1.0], 1) | {"status": "out of memory", "reason": "too large", "median_ms": None, "samples_ms": []}
    run.rows[:] = [row(PLAIN, "step", [9.0, 9.1, 9.2], 10), row(OURS, "step", [4.0, 4.1, 4.2], 10), lost]
    done = run()
    assert table_line(done.stdout, JOINT).split()[-3:] == ["out", "of", "memory"]
    assert f"quick, {JOINT}: out of memory: too large" in words(done.stdout)


@pytest.mark.parametrize(
    ("provider", "status", "code"),
    [
        (OURS, "wrong", 1),
        (f"{OURS} (compiled)", "wrong", 1),
        ("triton", "wrong", 1),
        (OURS, "unchecked", 1),
        (OURS, "out of memory", 0),
        (JOINT, "wrong", 0),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_ours_that_is_wrong_fails_the_run_after_all_is_told(run, tmp_path, provider, status, code, arguments):
    bad = [row(provider, name, [1.0], 1) | {"status": status, "reason": "loss"} for name in ("forward", "step")]
    run.rows[:] = [row(PLAIN, "step", [9.0], 10), *(each | {"median_ms": None, "samples_ms": []} for each in bad)]
    done = run("--output", str(tmp_path / "out.json"), *arguments)
    assert done.exit_code == code
    assert json.loads((tmp_path / "out.json").read_text())["complete"]
    line = f"Wrong, and without figures: model · quick · {provider}."
    assert (line in (done.stderr if arguments else done.stdout).splitlines()) == bool(code)
    assert json.loads(done.stdout)["complete"] if arguments else f"quick, {provider}: {status}: loss" in words(done.stdout)


@pytest.mark.parametrize(
    ("joint", "said"),
    [
        ([5.0, 30.0], "As channels grow, factorised attention is faster than joint attention from 3 on."),
        ([20.0, 15.0], "factorised attention stays ahead: joint attention takes at 2 2.00 ×, at 8 1.50 × our time."),
        ([5.0, 9.0], "joint attention stays ahead: joint attention takes at 2 0.50 ×, at 8 0.90 × our time."),
        ([20.0, 9.0], "joint attention gets ahead: joint attention takes at 2 2.00 ×, at 8 0.90 × our time."),
        (
            [5.0, 20.0, 9.0],
            "neither attention stays ahead: joint attention takes at 2 0.50 ×, at 8 2.00 ×, at 32 0.90 × our time.",
        ),
        ([None, None], None),
    ],
)
def test_the_scaling_suite_in_words(joint, said):
    rows = [
        {"suite": "scaling", "axis": "channels", "provider": provider, "median_ms": value, "sizes": {"channels": size}}
        for provider, values in ((OURS, [10.0] * len(joint)), (JOINT, joint))
        for size, value in zip((2, 8, 32), values, strict=False)
    ]
    found = benchmark_tables._scaling_words(rows)
    assert len(found) == (said is not None)
    assert said is None or found[0].endswith(said)


@pytest.mark.parametrize(("load", "said"), [(3.0, True), (0.4, False), (None, False)])
def test_a_busy_machine_is_told(run, monkeypatch, load, said):
    monkeypatch.setattr(environment, "_load", lambda: load)
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 2)
    assert ("Other work was running on this machine" in words(run().stdout)) == said


def test_an_unknown_suite_or_case(run):
    done = run("--suite", "speed")
    assert isinstance(done.exception, UsageError)
    assert "kernels" in done.exception.hint
    done = run("--case", "nothing-like-it")
    assert isinstance(done.exception, UsageError)
    assert "nothing-like-it" in done.exception.message
    assert done.exception.hint == "there is quick"
    done = run("--suite", "all", "--case", "axil")
    assert done.exception.hint.startswith("there are ")
    assert "axial" in done.exception.hint
    assert done.exception.hint.endswith(" more")
    assert len(str(done.exception)) < 300
    assert "\n" not in str(done.exception)
    # Told at once, before anything is measured.
    assert not done.stderr
    assert not run.calls


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--from", "a.json", "--output", "new.json"), "--output"),
        (("--from", "a.json", "--suite", "kernels"), "--suite"),
        (("--from", "a.json", "--case", "quick"), "--case"),
        (("--from", "a.json", "--threshold", "0.1"), "--threshold"),
        (("--compare", "a.json", "a.json", "--figures", "drawn"), "--figures"),
        (("--compare", "a.json", "a.json", "--from", "a.json"), "--from"),
        (("--compare", "a.json", "a.json", "--repeats", "2"), "--repeats"),
        (("--suite", "kernels", "--batch-size", "4"), "--batch-size"),
        (("--suite", "kernels", "--suite", "scaling", "--channels", "5"), "--channels"),
        (("--suite", "kernels", "--recompute"), "--recompute"),
        (("--suite", "scaling", "--compile"), "--compile"),
        (("--threshold", "0.1"), "--threshold"),
    ],
)
def test_an_option_without_effect_is_refused(run, tmp_path, monkeypatch, arguments, option):
    monkeypatch.chdir(tmp_path)
    assert run("--output", "a.json").exit_code == 0
    run.calls.clear()
    done = CliRunner().invoke(app, ["benchmark", *arguments])
    assert isinstance(done.exception, UsageError), done.output
    assert done.exception.message.startswith(f"{option} has no effect ")
    assert not done.stdout
    assert not run.calls
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_options_reach_the_suite(run):
    done = run("--batch-size", "3", "--channels", "5", "--visits", "2", "--repeats", "7", "--recompute")
    assert done.exit_code == 0
    (case, arguments), (_, later) = run.calls
    assert (arguments["visit"].first, later["visit"].first) == (True, False)
    assert (case.batch, case.channels) == (3, 5)
    assert (arguments["repeats"], arguments["recompute_too"], arguments["compile_too"]) == (7, True, False)


def test_output_is_the_json_document(run, tmp_path):
    done = run("--output", str(tmp_path / "result.json"), "--json")
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "result.json").read_text())
    assert {"device", "versions", "commit", "rows"} <= set(document)
    assert document["rows"] == [row | {"samples_a_visit": 3} for row in ROWS]


@pytest.mark.parametrize("name", ["nowhere/result.json", ".", "file/result.json"])
def test_an_output_that_cannot_be_written_is_found_before_the_measurement(run, tmp_path, name):
    (tmp_path / "file").write_text("")
    done = run("--output", str(tmp_path / name))
    assert isinstance(done.exception, AuxMAEError)
    assert str(tmp_path / name) in done.exception.message
    assert done.exception.exit_code == 1
    assert not run.calls


def test_a_failed_measurement_leaves_the_output_as_it_was(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AuxMAEError("no luck")

    monkeypatch.setattr(suites, "model_passes", fail)
    (tmp_path / "old.json").write_text("old")
    for name in ("old.json", "new.json"):
        assert isinstance(run("--output", str(tmp_path / name)).exception, AuxMAEError)
    assert [file.name for file in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_what_was_measured_before_a_failure_is_kept(run, tmp_path, monkeypatch):
    def one_pass(*_, **__):
        yield [row for row in ROWS if row["pass"] == "forward"]
        raise AuxMAEError("no luck")

    monkeypatch.setattr(suites, "model_passes", one_pass)
    assert isinstance(run("--output", str(tmp_path / "out.json")).exception, AuxMAEError)
    document = json.loads((tmp_path / "out.json").read_text())
    assert not document["complete"]
    assert {row["pass"] for row in document["rows"]} == {"forward"}


def test_a_bad_device(run):
    done = run("--device", "tpu")
    assert isinstance(done.exception, SettingsError)
    assert "tpu" in done.exception.message
    assert not run.calls


def test_a_bad_backend(run, monkeypatch):
    monkeypatch.setenv("AUXMAE_KERNELS", "fast")
    done = run()
    assert isinstance(done.exception, UsageError)
    assert "fast" in done.exception.message
    assert not run.calls


@pytest.fixture
def process(tmp_path, repository, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), str(repository / "kernels")]))

    def call(*arguments):
        command = [sys.executable, "-m", "auxmae", "benchmark", "--quick", "--device", "cpu", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return call


def test_the_real_command_prints_json_alone(process, tmp_path):
    done = process("--batch-size", "2", "--channels", "3", "--repeats", "2", "--recompute", "--json", "--output", "result.json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "result.json").read_text())
    assert {item["provider"] for item in document["rows"]} - {FUSED} == {OURS, PLAIN, JOINT, f"{OURS} (recompute)"}
    for item in document["rows"]:
        assert set(item) >= KEYS
        assert (len(item["samples_ms"]), item["samples_a_visit"]) == (6, 2)
    # Only our own progress: nothing of the profiler's.
    ours = ("measuring", "visit", "quick: ", "warming up", "round")
    assert all(line.startswith(ours) for line in done.stderr.splitlines()), done.stderr


def test_the_real_command_on_an_output_that_cannot_be_written(process):
    done = process("--output", "nowhere/result.json")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: nowhere/result.json: cannot be written")


def test_kernels_that_cannot_run_are_the_users_to_mend(process, monkeypatch):
    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    done = process("--repeats", "1")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "the tensors are on the CPU" in line
    assert "set AUXMAE_KERNELS=auto" in line
    assert "a fault of AuxMAE" not in line


@pytest.mark.parametrize("suites_", [(), ("--suite", "kernels")])
def test_images_that_no_suite_would_read_are_refused(run, suites_):
    done = run("--data", "images", *suites_)
    assert isinstance(done.exception, UsageError)
    assert "--data has no effect in the suite" in done.exception.message
    assert run.calls == []

"""The real command, as a process: exit codes, one line for a fault, JSON alone on stdout, quick help."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def auxmae(tmp_path, repository):
    path = os.pathsep.join([str(repository), str(repository / "kernels")])

    def run(*arguments, environment=None, encoding=None, stdout=subprocess.PIPE):
        return subprocess.run(
            [sys.executable, "-m", "auxmae", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            encoding=encoding,
            check=False,
        )

    return run


SMALL = [
    "--set",
    "data.synthetic_images=40",
    "--set",
    "train.batch_size=8",
    "--set",
    "eval.bootstrap=100",
    "--set",
    "train.max_steps=3",
]


def test_help_imports_no_torch(repository):
    code = "import sys\nfrom auxmae.cli import app\nassert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--set", "train.max_step=3"], 2, ["max_step", "max_steps"]),
        (["train", "--data", "nowhere"], 1, ["nowhere"]),
        (["train", "--preset", "huge"], 2, ["huge"]),
        (["train", "--resume", "last"], 2, ["no run"]),
        (["train", "--resume", "x", "--epochs", "3"], 2, ["--epochs", "into the run's settings.toml"]),
        (["train", "--resume", "x", "--batch-size", "3"], 2, ["--batch-size", "--init-from"]),
        (["train", "--resume", "x", "--set", "train.epochs=3"], 2, ["--set"]),
        (["train", "--resume", "x", "--config", "y.toml"], 2, ["--config"]),
        (["train", "--resume", "x", "--fast-dev-run"], 2, ["--fast-dev-run"]),
        (["eval", "last"], 2, ["no run"]),
        (["visualize", "elsewhere"], 2, ["elsewhere"]),
        (["train", "--config", "missing.toml"], 2, ["missing.toml"]),
        (["train", "--dry-run", "--device", "cpu", "--set", "train.precision=bf16"], 2, ["train.precision"]),
        (["train", "--dry-run", "--init-from", "nowhere"], 1, ["nowhere"]),
        (["train", "--dry-run", "--output", "/"], 2, ["/ is not empty"]),
        (["train", "--labels", ""], 2, ["--labels", "non-empty"]),
        (["data", "stats", "synthetic", "--labels", ""], 2, ["--labels", "non-empty"]),
        (["train", "--init-from", ""], 2, ["is empty"]),
        (["embed", "", "--output", "features.npy"], 2, ["is empty"]),
    ],
)
def test_a_fault_is_one_line_and_an_exit_code(auxmae, arguments, code, words):
    done = auxmae(*arguments)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


def test_every_fault_of_the_settings_is_told_wherever_it_is(auxmae, tmp_path):
    (tmp_path / "my.toml").write_text("[train]\nepoch = 3\n")
    done = auxmae("train", "--config", "my.toml", "--epochs", "-3", "--set", "model.width=x", environment={"AUXMAE_FOO": "1"})
    assert done.returncode == 2
    starts = [line.split(": ")[:2] for line in done.stderr.splitlines()]
    assert starts == [["error", where] for where in ("my.toml:2", "AUXMAE_FOO", "--set", "--epochs")]


def test_the_four_commands_on_a_small_run(auxmae, tmp_path):
    done = auxmae("train", *SMALL, "--output", "run", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"run", "steps", "seconds", "images_per_second", "masked_l1", "floors"} <= set(document)
    assert document["steps"] == 3
    assert set(document["floors"]) == {"mean", "interpolation"}
    assert auxmae("train", *SMALL, "--output", "run").returncode == 2
    document = json.loads(auxmae("eval", "run", "--json").stdout)
    assert {"split", "reconstruction", "probes"} <= set(document)
    assert {"masked_l1", "per_channel", "floors"} <= set(document["reconstruction"])
    done = auxmae("visualize", "run", "--channels", "B04", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / json.loads(done.stdout)["figures"][0]).stat().st_size > 1000
    assert auxmae("visualize", "run", "--channels", "B99").returncode == 2


def test_dry_run_writes_nothing(auxmae, tmp_path):
    done = auxmae("train", *SMALL, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["parameters"] > 1000
    assert document["batch"][:2] == [8, 13]
    assert not list(tmp_path.iterdir())


def test_benchmark_rows(auxmae):
    done = auxmae("benchmark", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"device", "versions", "commit", "rows"} <= set(document)
    keys = {"suite", "case", "provider", "pass", "median_ms", "samples_ms", "peak_bytes", "images_per_second"}
    assert all(keys <= set(row) for row in document["rows"])
    assert {row["pass"] for row in document["rows"]} == {"forward", "step"}


def test_a_fault_of_the_system_is_one_line(monkeypatch, capsys):
    from auxmae.cli import app

    def full(args):
        raise OSError(28, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr(app, "app", full)
    monkeypatch.setattr(sys, "argv", ["auxmae", "train"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: runs/x/metrics.jsonl: No space left on device (free some space)\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory ("),
        (np._core._exceptions._ArrayMemoryError((2, 3), np.dtype("u1")), "not enough memory: Unable to allocate 6"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"
            ),
            "not enough memory: you tried to allocate 8 bytes",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory ("),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory ("),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "not enough memory: CUDA error: out of memory ("),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
            "not enough memory: CUDA error: CUBLAS_STATUS_ALLOC",
        ),
    ],
)
def test_too_little_memory_is_no_fault_of_auxmae(monkeypatch, capsys, error, words):
    from auxmae.cli import app

    def short(args):
        raise error

    monkeypatch.setattr(app, "app", short)
    monkeypatch.setattr(sys, "argv", ["auxmae", "train"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words}")
    assert "train.batch_size" in line


@pytest.mark.parametrize("arguments", [["data", "stats", "synthetic", "--json"], ["config", "schema"]])
def test_json_for_a_closed_stdout_is_refused_in_a_line(repository, arguments):
    path = os.pathsep.join([str(repository), str(repository / "kernels")])
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "auxmae", *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: stdout is closed")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "?"), ("utf-8", "×")])
def test_what_stdout_cannot_encode_is_replaced_and_in_json_escaped(auxmae, tmp_path, encoding, shown):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).random((5, 64, 64), dtype=np.float32))
    # Five channels are told with an ellipsis, which ASCII lacks; the file's name is not UTF-8.
    config = os.fsdecode(b"caf\xe9.toml")
    (tmp_path / config).write_text("")
    arguments = ["train", "--config", config, "--data", ".", "--dry-run"]
    done = auxmae(*arguments, environment={"PYTHONIOENCODING": encoding}, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert "caf?.toml\n" in done.stdout
    assert f"64{shown}64 px" in done.stdout
    done = auxmae(*arguments, "--json", environment={"PYTHONIOENCODING": encoding}, encoding=encoding)
    assert "64×64 px" in json.loads(done.stdout)["data"]


@pytest.mark.parametrize("what", ["imports", "command"])
def test_ctrl_c_is_one_line_whatever_it_strikes(tmp_path, repository, what):
    # A module that takes long to import stands for all that do, and a data set that takes long to open for all work.
    (tmp_path / "typer").mkdir()
    (tmp_path / "slow.py").write_text("import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(60)\n")
    (tmp_path / "typer" / "__init__.py").write_text("try:\n    import slow\nexcept BaseException:\n    pass\n")
    program = "import auxmae.__main__ as begin\n"
    if what == "command":
        (tmp_path / "typer" / "__init__.py").unlink()
        (tmp_path / "typer").rmdir()
        program += "import time, pathlib, auxmae.cli.doctor as doctor\n"
        program += "doctor.console = lambda **_: (pathlib.Path('began').touch(), time.sleep(60))\n"
    program += "import sys; sys.argv = ['auxmae', 'doctor']; begin.main()"
    path = os.pathsep.join([str(tmp_path), str(repository), str(repository / "kernels")])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("arguments", [["config", "show"], ["config", "show", "--json"], ["--version"]])
def test_a_full_stdout_is_named(auxmae, arguments):
    with Path("/dev/full").open("w") as full:
        done = auxmae(*arguments, stdout=full)
    assert (done.returncode, done.stderr) == (1, "error: stdout: No space left on device (free some space)\n")


def test_a_used_run_folder_is_refused_before_any_work(auxmae, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep me")
    done = auxmae("train", "--output", "used", "--data", "nowhere")
    assert done.returncode == 2
    assert "used is not empty" in done.stderr
    assert (tmp_path / "used" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("how", ["--fast-dev-run", "--dry-run"])
@pytest.mark.parametrize("chosen", ["AUXMAE_KERNELS", "kernels.backend"])
def test_a_kernel_that_cannot_run_is_one_line_before_there_is_a_run_folder(auxmae, tmp_path, how, chosen):
    environment = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    given = []
    if chosen == "AUXMAE_KERNELS":
        environment[chosen] = "triton"
    else:
        given = ["--set", f"{chosen}=triton"]
    done = auxmae("train", "--output", "run", how, *given, environment=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    begin, end = {
        "AUXMAE_KERNELS": ("error: the Triton kernel of ", "set AUXMAE_KERNELS=auto or torch"),
        "kernels.backend": ("error: kernels.backend = 'triton': the Triton kernel of ", "(set kernels.backend = 'auto')"),
    }[chosen]
    assert line.startswith(begin)
    assert "cannot run" in line
    assert line.endswith(end)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_backend_that_there_is_none_of_is_told_before_there_is_a_run_folder(auxmae, tmp_path, how):
    done = auxmae("train", "--output", "run", *how, environment={"AUXMAE_KERNELS": "pytorch"})
    line = "AUXMAE_KERNELS must be one of auto, triton, torch, not 'pytorch' (unset it, or set AUXMAE_KERNELS=auto)"
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")
    assert not (tmp_path / "run").exists()


def test_names_with_brackets_and_colons_are_shown_as_they_are(auxmae, tmp_path):
    names = ["CD3[154]", "[red]", ":smile:"]
    for index in range(12):
        np.save(tmp_path / f"{index}.npy", np.random.default_rng(index).uniform(size=(3, 16, 16)))
    chosen = ["--set", f"data.channels={json.dumps(names)}"]
    shown = auxmae("data", "stats", ".", *chosen)
    assert shown.returncode == 0, shown.stderr
    assert all(shown.stdout.count(name) >= 2 for name in names)
    trained = auxmae("train", "--data", ".", *chosen, *SMALL, "--output", "run")
    assert trained.returncode == 0, trained.stderr
    assert ", ".join(names) in trained.stdout
    assert "YOUR/IMAGES" not in trained.stdout  # these are
    measured = auxmae("eval", "run")
    assert measured.returncode == 0, measured.stderr
    assert all(name in measured.stdout for name in names)


def test_a_training_outlives_the_pipe_that_it_speaks_to(tmp_path, repository):
    path = os.pathsep.join([str(repository), str(repository / "kernels")])
    command = f"{sys.executable} -m auxmae train --output run {' '.join(SMALL)} | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stderr == "note: the output is closed; the training goes on without it\n"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 3


@pytest.mark.parametrize(("command", "work"), [("eval run", "the measurement"), ("embed run --output f.npy", "the writing")])
def test_a_measurement_outlives_the_pipe_that_it_speaks_to(tmp_path, repository, auxmae, command, work):
    trained = auxmae("train", *SMALL, "--output", "run")
    assert trained.returncode == 0, trained.stderr
    assert "train --data YOUR/IMAGES" in trained.stdout  # the embedded ones are a first try
    path = os.pathsep.join([str(repository), str(repository / "kernels")])
    # A pipe that nothing reads from the start.
    line = f"{sys.executable} -m auxmae {command} --set eval.bootstrap=100 --set eval.labels_per_class=[5] | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, f"note: the output is closed; {work} goes on without it\n")
    assert (tmp_path / ("run/eval.json" if command == "eval run" else "f.npy")).stat().st_size > 0


def test_a_json_document_is_printed_where_the_rest_of_the_output_is_closed(tmp_path, repository, auxmae):
    trained = auxmae("train", *SMALL, "--output", "run")
    assert trained.returncode == 0, trained.stderr
    path = os.pathsep.join([str(repository), str(repository / "kernels")])
    line = f"{sys.executable} -m auxmae embed run --output f.npy --json 2>&1 >document.json | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0
    assert json.loads((tmp_path / "document.json").read_text())["rows"] > 0

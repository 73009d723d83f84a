"""Several processes that train one model: the same gradients as one, one voice, one end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from auxmae.build import build_data, build_model
from auxmae.cli.processes import _conclude, _free_port, _how_to_go_on, _passing_on, _start
from auxmae.errors import AuxMAEError, PeerLostError, ResourceError, SettingsError
from auxmae.settings.schema import SettingsTree
from auxmae.training.distributed import Team, find_team, joined
from auxmae.training.graph import obstacle
from auxmae.training.optimization import learning_rate_at, parameter_groups
from auxmae.training.run import open_run

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SETTINGS = {
    "data.source": "synthetic",
    "data.synthetic_images": 60,
    "model.patch_size": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.decoder_depth": 1,
    "model.dropout": 0.0,
    "train.batch_size": 8,
    "train.max_steps": 6,
    "train.figure_every": 0,
    "run.device": "cpu",
}


def options(changes):
    return [part for key, value in {**SETTINGS, **changes}.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def start(folder, *arguments, together=2, **popen):
    command = [sys.executable, "-m", "auxmae", "train", *arguments, "--processes", str(together)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def weights(run):
    return open_run(run).load_model("last").state_dict()


def test_the_environment_says_who_one_is():
    assert find_team({}) == Team() == find_team({**TORCHRUN, "WORLD_SIZE": "1"})
    assert find_team({"RANK": "0", "WORLD_SIZE": ""}) == Team()
    assert find_team(TORCHRUN) == Team(3, 4, 1)
    for wrong in ({"RANK": "4"}, {"RANK": "first"}, {"WORLD_SIZE": "many"}):
        with pytest.raises(SettingsError, match="RANK"):
            find_team({**TORCHRUN, **wrong})


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_not_many_processes_of_one_each(missing):
    with pytest.raises(SettingsError, match=rf"WORLD_SIZE = 4, but not {missing}") as told:
        find_team({name: value for name, value in TORCHRUN.items() if name != missing})
    assert "torchrun" in told.value.hint


def test_no_two_draw_the_same_and_the_first_draws_as_one_alone():
    seeds = [Team(rank, 4).seed(7) for rank in range(4)]
    assert seeds[0] == Team().seed(7) == 7
    assert len({*seeds, *(Team(rank, 4).seed(8) for rank in range(4))}) == 8


def test_a_step_of_several_is_no_graph():
    assert "several processes" in obstacle(SettingsTree(), torch.device("cuda"), 2)


@pytest.mark.parametrize("size", [2, 3])
def test_together_the_parts_are_the_batches(size):
    settings = SettingsTree.model_validate(
        {
            "data": {"source": "synthetic", "synthetic_images": 70, "channel_sampling": 0.5},
            "model": {"patch_size": 16},
            "train": {"batch_size": 6 * size},
        }
    )
    data = build_data(settings)
    whole, parts = list(data.train), [list(data.train.dealt(rank, size)) for rank in range(size)]
    for batch, *own in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part.image for part in own]), batch.image)
        assert all(torch.equal(part.channels, batch.channels) for part in own)
        assert {len(part.image) for part in own} == {6}
    held = data.validation
    assert held.samples % size
    found = [part.image for rank in range(size) for part in held.dealt(rank, size)]
    assert sum(len(image) for image in found) == held.samples
    sums = sorted(image.sum().item() for images in found for image in images)
    assert sums == pytest.approx(sorted(image.sum().item() for batch in held for image in batch.image))


def test_the_first_computes_the_statistics_for_all():
    class Second(Team):
        def by_first(self, compute):
            return given

    first, settings = (
        SettingsTree.model_validate({"data": {"synthetic_images": 40}, "train": {"seed": seed}}) for seed in range(2)
    )
    alone = build_data(first)
    given = alone.statistics
    assert build_data(settings, team=Second(1, 2)).scaling == alone.scaling != build_data(settings).scaling


def test_what_the_first_computes_is_what_all_have():
    script = (
        "import torch; from auxmae.training.distributed import find_team, joined; team = find_team()\n"
        "with joined(team, torch.device('cpu')): print(team.by_first(lambda: f'computed by {team.rank}'))"
    )
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [finish(process)[:2] for process in processes] == [(0, "computed by 0\n")] * 2


@pytest.mark.parametrize("source", ["synthetic", "data"])
def test_two_processes_train_as_one_does(tmp_path, source):
    """The second time on images of which some have few valid pixels, or none."""
    random = np.random.default_rng(0)
    for number in range(60):
        image = random.uniform(size=(2, 32, 32))
        image[random.uniform(size=image.shape) < random.choice([0.0, 0.99, 1.0])] = np.nan
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / "data" / f"{number:02d}.npy", image)
    changes = {"data.source": source, "train.accumulation": 2, "train.batch_size": 4, "train.max_steps": 4}
    changes |= {"train.optimizer": "adamw", "train.learning_rate": 1e-3, "run.folder": "run"}
    code, out, err = finish(start(tmp_path, *options(changes), "--json"))
    assert code == 0, err
    document = json.loads(out)
    assert (document["steps"], document["reason"]) == (4, "finished")
    logged = {record["step"]: record["loss"] for record in open_run(tmp_path / "run").metrics() if record["kind"] == "train"}
    assert list(logged) == [1, 4]

    # The same by hand, in one process, whose batches are what the two have together, and in fp64.
    settings = open_run(tmp_path / "run").settings
    data = build_data(settings)
    torch.manual_seed(settings.train.seed)
    model = build_model(settings, data).double()
    train = settings.train
    optimizer = torch.optim.AdamW(parameter_groups(model, train.weight_decay), betas=train.betas)
    teams = [Team(rank, 2) for rank in range(2)]
    feeds = [iter([*data.train.dealt(team.rank, 2)]) for team in teams]
    masks = [torch.Generator().manual_seed(team.seed(train.seed)) for team in teams]
    for step in range(4):
        total = 0.0
        for _ in range(2):
            parts = [next(feed) for feed in feeds]
            image, valid = (torch.cat([getattr(part, name) for part in parts]) for name in ("image", "valid"))
            keep = torch.cat([model.draw_mask(part.image.shape, mask) for part, mask in zip(parts, masks, strict=True)])
            loss = model(image.double(), keep, valid=valid).loss / 2
            loss.backward()
            total += loss.item()
        if step + 1 in logged:
            assert logged[step + 1] == pytest.approx(total, rel=1e-4)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(
                (step + 1) / 5, peak=train.learning_rate, final=train.min_learning_rate, warmup=train.warmup_fraction
            )
        optimizer.step()
        optimizer.zero_grad()
    found = weights(tmp_path / "run")
    for name, expected in model.state_dict().items():
        assert torch.allclose(found[name].double(), expected, atol=5e-5), name


def test_where_all_count_alike_or_nothing_counts_weights_are_exact(monkeypatch):
    """Three processes, whose counts a sum over all of them is made of."""
    others = torch.tensor(0.0, dtype=torch.float64)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(others))
    for count, rest, weight in ((3**30, 2 * 3**30, 1.0), (0, 0, 0.0), (0, 5, 0.0), (5, 0, 3.0)):
        others.fill_(rest)
        assert Team(0, 3).weight(torch.tensor(count)).item() == weight


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_as_never_stopped(tmp_path):
    changes = {"train.max_steps": 40, "model.dropout": 0.1}
    code, _, err = finish(start(tmp_path, *options({**changes, "run.folder": "whole"})))
    assert code == 0, err

    process = start(tmp_path, *options({**changes, "run.folder": "halves"}), start_new_session=True)
    metrics = tmp_path / "halves" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 1) and process.poll() is None:
        time.sleep(0.01)
    # As Ctrl-C does: to all of them, and to who started them, who passes it on once more.
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, "")
    assert out.count("go on with: auxmae train --resume") == 1
    stopped = open_run(tmp_path / "halves").metrics()[-1]["step"]
    assert 1 <= stopped < 40

    code, out, err = finish(start(tmp_path, "--resume", "halves"))
    assert code == 0, err
    assert "other masks" not in out
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(one[name], other[name]) for name in one)
    logged = [record["step"] for record in open_run(tmp_path / "halves").metrics() if record["kind"] == "train"]
    assert logged == sorted(set(logged))


@pytest.mark.slow
def test_more_or_fewer_processes_go_on_and_say_so(tmp_path):
    code, _, err = finish(start(tmp_path, *options({"run.folder": "run", "train.max_steps": 5})))
    assert code == 0, err
    settings = tmp_path / "run" / "settings.toml"
    settings.write_text(settings.read_text().replace("max_steps = 5", "max_steps = 9"))
    for together in (4, 1):
        code, out, err = finish(start(tmp_path, "--resume", "run", together=together))
        assert code == 0, err
        assert f"{together}: other masks are drawn" in " ".join(out.split())
        settings.write_text(settings.read_text().replace("max_steps = 9", "max_steps = 12"))


@pytest.mark.slow
def test_torchrun_starts_them_too(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "auxmae", "train"]
    done = subprocess.run(
        [*command, *options({"run.folder": "run"}), "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 6


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({"train.batch_size": 9}, 2, "train.batch_size = 9 cannot be dealt out evenly to 2 processes"),
        ({"data.source": "nowhere"}, 1, "nowhere"),
        ({"train.batch_sise": 8}, 2, "did you mean"),
    ],
    ids=["uneven", "no data", "misspelt"],
)
def test_what_is_wrong_for_all_is_said_once(tmp_path, changes, code, line):
    found, _, err = finish(start(tmp_path, *options({**changes, "run.folder": "run"})))
    assert found == code
    assert len(err.strip().splitlines()) == 1, err
    assert line in err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes under /proc")
@pytest.mark.parametrize(
    ("batches", "last", "going_on"),
    [(5000, "metrics.jsonl", "nothing was saved yet"), (2, "checkpoints/last", "go on with: auxmae train --resume run")],
)
def test_a_process_that_is_killed_ends_all_with_one_line(tmp_path, batches, last, going_on):
    changes = {"train.max_steps": 100_000, "data.samples_per_epoch": 16 * batches, "run.folder": "run"}
    process = start(tmp_path, *options(changes))
    while not (tmp_path / "run" / last).exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(_child(process.pid, 1), signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 1
    assert err.startswith("error: process 2 of 2 was killed by SIGKILL"), err
    assert err.endswith(f" {going_on})\n"), err
    assert len(err.strip().splitlines()) == 1, err


def test_nobody_is_sent_to_a_run_that_was_there_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _how_to_go_on("last", 0.0) == "nothing was saved yet"
    (tmp_path / "runs" / "a" / "checkpoints" / "last").mkdir(parents=True)
    settings = tmp_path / "runs" / "a" / "settings.toml"
    settings.touch()
    made = settings.stat().st_mtime
    assert _how_to_go_on("last", made + 1) == "nothing was saved yet"
    for since in (made - 1, 0.0):
        assert _how_to_go_on("last", since) == "go on with: auxmae train --resume runs/a"
    # Another training may have begun in the same place meanwhile.
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "settings.toml").touch()
    assert _how_to_go_on("last", made - 1) == "go on with: auxmae train --resume RUN, one of those in runs"
    assert _how_to_go_on("runs/a", made - 1) == "go on with: auxmae train --resume runs/a"


@pytest.mark.parametrize(
    ("codes", "ended_by_us", "code", "shown"),
    [
        ((0, 0, 0), (), 0, ""),
        ((130, 130, 130), (), 130, ""),
        # The first one has spoken itself; a lost peer, or one that was ended, is no reason.
        ((1, 75, -15), (2,), 1, ""),
        ((75, 75, 2), (), 2, "words of 2"),
        ((-9, 1, 75), (0,), 1, "words of 1"),
    ],
)
def test_the_words_are_those_of_who_failed(tmp_path, capsys, codes, ended_by_us, code, shown):
    said = [tmp_path / str(rank) for rank in range(len(codes))]
    for rank, path in enumerate(said[1:], 1):
        path.write_text(f"words of {rank}")
    assert _conclude(codes, set(ended_by_us), said, "run") == code
    assert capsys.readouterr().err == shown


def test_who_was_killed_while_they_met_is_told_before_who_found_no_way(tmp_path, capsys):
    (tmp_path / "1").write_text("")
    with pytest.raises(AuxMAEError, match="process 2 of 2 was killed by SIGKILL"):
        _conclude((1, -9), set(), [tmp_path / "0", tmp_path / "1"], "run")


@pytest.mark.parametrize(
    ("codes", "ended_by_us", "told"),
    [
        ((-15, -15), (), True),
        # One that was told while it was started has lost the others, or was ended then.
        ((-15, 1), (), True),
        ((-15, 75), (), True),
        ((-15, -15), (1,), True),
        ((0, -15), (), True),
        # The first one has spoken itself.
        ((130, -15), (), False),
        # Also where it is told once more, for it waits for one that is gone.
        ((130, -15), (0,), False),
    ],
)
def test_what_was_passed_on_is_an_interruption(tmp_path, capsys, codes, ended_by_us, told):
    said = [tmp_path / str(rank) for rank in range(2)]
    said[1].write_text("words of 1")
    assert _conclude(codes, set(ended_by_us), said, "nothing was saved yet", {signal.SIGTERM}) == 130
    assert capsys.readouterr().err == ("interrupted; nothing was saved yet\n" if told else "")


def test_who_was_killed_by_another_signal_than_was_passed_on_is_told(tmp_path):
    said = [tmp_path / "0", tmp_path / "1"]
    said[1].write_text("")
    with pytest.raises(AuxMAEError, match="process 2 of 2 was killed by SIGKILL"):
        _conclude((-15, -9), set(), said, "run", {signal.SIGTERM})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes under /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_they_start_is_passed_on_and_told(tmp_path, number):
    process = start(tmp_path, *options({"run.folder": "run", "train.max_steps": 100_000}))
    while not _children(process.pid) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert finish(process) == (130, "", "interrupted; nothing was saved yet\n")


def test_a_signal_that_is_ignored_is_not_passed_on():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _passing_on([]) as passed_on:
            signal.raise_signal(signal.SIGINT)
            assert passed_on == set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_they_share_the_cores_of_the_job_not_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    given = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **_: given.append(env["OMP_NUM_THREADS"]))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7, 9}, raising=False)
    _start(0, 2, 1, [], tmp_path / "0")
    # As where a process cannot be kept to some of the cores.
    monkeypatch.delattr(os, "sched_getaffinity")
    _start(0, 2, 1, [], tmp_path / "0")
    assert given == ["2", "32"]


@pytest.mark.parametrize(("codes", "ended_by_us"), [((75, 75), ()), ((75, -15), (1,)), ((0, 75), ())])
def test_where_each_leaves_the_word_to_another_one_it_is_said(tmp_path, capsys, codes, ended_by_us):
    said = [tmp_path / str(rank) for rank in range(len(codes))]
    said[1].write_text("note of 1")
    with pytest.raises(PeerLostError, match="lost the connection to each other, and none says why") as told:
        _conclude(codes, set(ended_by_us), said, "go on with: auxmae train --resume run")
    assert told.value.exit_code == 75
    assert "auxmae train --resume run" in told.value.hint
    assert capsys.readouterr().err in ("", "note of 1")


def test_a_port_that_is_taken_is_told(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {**TORCHRUN, "RANK": "0", "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ResourceError, match=r"the 4 processes cannot be connected: .*address already in use") as told:
            joined(find_team(), torch.device("cpu")).__enter__()
    assert "\n" not in str(told.value)
    assert "MASTER_PORT" in told.value.hint


@pytest.mark.slow
def test_a_network_interface_that_is_not_there_is_told(tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "nowhere0"}
    code, _, err = finish(start(tmp_path, *options({"run.folder": "run"}), env=environment))
    assert code == 1
    assert err.startswith("error: the 2 processes cannot be connected: "), err
    assert "nowhere0 (" in err
    assert "GLOO_SOCKET_IFNAME" in err
    assert ".cc:" not in err
    assert len(err.strip().splitlines()) == 1, err


def _children(parent):
    """The process ids of those that it has started."""
    return [*map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]


def _child(parent, rank):
    """The process id of the started process of that rank."""
    for child in _children(parent):
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(f"no process of rank {rank}")

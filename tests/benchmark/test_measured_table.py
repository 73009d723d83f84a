"""dispatch's table follows from recorded rows: what won everywhere, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import auxmae_kernels
import pytest
import torch
from auxmae_kernels import dispatch

from auxmae.benchmark.gate import outputs
from auxmae.benchmark.kernel_cases import Shape, kernel_cases


@pytest.fixture(scope="module")
def measured(repository):
    spec = importlib.util.spec_from_file_location("measured", repository / "benchmarks" / "measured.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(samples, *, case="axial_attention/patch/reference", key=None, name="both", function="axial_attention"):
    key = key or {"axis": "patch", "length": 17, "head_dim": 32, "slots": False}
    return [
        {
            "suite": "kernels", "case": case, "function": function, "provider": provider, "pass": name, "arch": "sm_90",
            "dtype": "bfloat16", "key": key, "backend": "triton" if provider == "triton" else "torch",
            "samples_ms": values, "median_ms": sorted(values)[len(values) // 2] if values else None,
        }
        for provider, values in samples.items()
    ]  # fmt: skip


WIN = {"triton": [1.0, 1.1, 1.2], "eager": [3.0, 3.1, 3.2], "compiled": [2.2, 2.3, 2.4], "sdpa flash": []}
LOSS = {"triton": [3.0, 3.1, 3.2], "eager": [4.0, 4.1, 4.2], "compiled": [2.2, 2.3, 2.4]}
WITHIN = {"triton": [1.0, 1.1, 2.3], "eager": [2.2, 2.3, 2.4]}


def test_a_win_is_entered_with_its_least_speed_up(measured):
    larger = rows({"triton": [1.0], "eager": [9.0]}, case="axial_attention/patch/larger")
    document = {"rows": rows(WIN) + rows({"triton": [1.0], "eager": [5.0]}, name="forward") + larger}
    assert measured.table([document]) == [
        {
            "function": "axial_attention", "arch": "sm_90", "dtype": "bfloat16",
            "key": {"axis": "patch", "length": 17, "head_dim": 32}, "speedup": round(2.3 / 1.1, 3),
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        rows(LOSS, name="forward"),
        rows(WITHIN, case="other"),
        # The same class of sizes, with a table of places, where Triton loses.
        rows(LOSS, case="other", key={"axis": "patch", "length": 30, "head_dim": 20, "slots": True}),
        rows({"triton": [], "eager": [1.0]}, case="other"),
    ],
    ids=["a pass loses", "within the spread", "another case of the class loses", "wrong in another case"],
)
def test_a_class_that_lost_anywhere_is_left_out(measured, more):
    assert measured.table([{"rows": rows(WIN)}, {"rows": more}]) == []


def test_what_was_not_compared_is_no_win(measured):
    assert measured.table([{"rows": rows({"triton": [1.0]})}]) == []
    assert measured.table([{"rows": rows({"eager": [1.0], "compiled": [2.0]})}]) == []
    # The public function ran the Triton kernel itself.
    both = rows({"triton": [1.0], "auxmae": [5.0]})
    both[1]["backend"] = "triton"
    assert measured.table([{"rows": both}]) == []


def test_another_class_is_not_touched(measured):
    lost = rows(LOSS, case="other", key={"axis": "patch", "length": 65, "head_dim": 32, "slots": False})
    (entry,) = measured.table([{"rows": rows(WIN) + lost}])
    assert entry["key"]["length"] == 17


def test_sizes_between_two_wins_count_as_won(measured):
    def of(length, samples):
        return rows(samples, case=str(length), key={"axis": "patch", "length": length, "head_dim": 32, "slots": False})

    def lengths(*cases):
        entries = measured.table([{"rows": case} for case in cases])
        return {entry["key"]["length"]: entry["speedup"] for entry in entries}

    slower = {"triton": [1.0], "eager": [1.5]}
    assert lengths(of(17, WIN), of(257, slower)) == {17: 2.091, 64: 1.5, 128: 1.5, 256: 1.5, 257: 1.5}
    assert lengths(of(17, WIN), of(60, LOSS), of(257, slower)) == {17: 2.091, 257: 1.5}
    assert lengths(of(17, LOSS), of(257, WIN)) == {257: 2.091}


def test_a_sublayer_whose_parts_won_counts_as_won(measured):
    def block(length, samples, width=256):
        key = {"axis": "channel", "length": length, "head_dim": 32, "width": width, "slots": True}
        return rows(samples, case=f"block {length} {width}", key=key, function="attention_block")

    def attention(length, samples):
        return rows(samples, case=str(length), key={"axis": "channel", "length": length, "head_dim": 32, "slots": True})

    def blocks(*cases):
        entries = measured.table([{"rows": case} for case in cases])
        return {tuple(entry["key"].values())[1:]: entry["speedup"] for entry in entries if entry["function"] == "attention_block"}

    slower = {"triton": [1.0], "eager": [1.5]}
    assert blocks(block(13, WIN), attention(200, slower)) == {(13, 32, 256): 2.091} | {
        (length, 32, 256): 1.5 for length in (32, 64, 128, 200)
    }
    assert blocks(attention(200, WIN)) == {}
    assert blocks(block(13, LOSS), attention(200, WIN)) == {}
    # What was measured itself is no matter of conclusions.
    assert blocks(block(13, WIN), attention(200, WIN), block(200, LOSS)) == {(13, 32, 256): 2.091}


def test_dispatch_reads_what_the_script_writes(measured, repository, tmp_path, monkeypatch):
    (tmp_path / "in.json").write_text(json.dumps({"rows": rows(WIN)}))
    command = [sys.executable, str(repository / "benchmarks" / "measured.py"), str(tmp_path / "in.json"), "--output"]
    done = subprocess.run([*command, str(tmp_path / "out.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 classes" in done.stdout
    monkeypatch.setenv("AUXMAE_KERNEL_TABLE", str(tmp_path / "out.json"))
    (entry,) = dispatch._entries()
    assert dispatch._same_class(entry["key"], {"axis": "patch", "length": 20, "head_dim": 32})
    assert not dispatch._same_class(entry["key"], {"axis": "channel", "length": 20, "head_dim": 32})


def test_a_call_is_asked_about_with_all_that_the_table_tells_apart(measured, monkeypatch):
    """Else it would be found in a class of other sizes, where the kernel may have lost."""
    asked = {}
    monkeypatch.setattr(dispatch, "choose", lambda function, dtype, device, key: asked.update({function: dict(key)}) or "torch")
    for build in kernel_cases([Shape("tiny", 2, 3, 16, 4, 16, 2)], torch.device("cpu"), torch.float32).values():
        case = build()
        outputs(getattr(auxmae_kernels, case.function), case.tensors, case)
        assert asked[case.function].items() >= {k: v for k, v in case.key.items() if k not in measured.NOT_ASKED}.items()
    assert asked.keys() == set(dispatch.FUNCTIONS)


@pytest.mark.parametrize("content", [None, "{", "{}", "[1]", '[{"function": "add_norm"}]', "3"])
def test_a_table_that_is_none_is_said(tmp_path, monkeypatch, content):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("AUXMAE_KERNEL_TABLE", str(path))
    with pytest.raises(dispatch.KernelUnavailableError, match=r"table\.json: no table .* unset AUXMAE_KERNEL_TABLE"):
        dispatch._entries()


def test_a_broken_document_is_one_line(repository, tmp_path):
    (tmp_path / "in.json").write_text("[]")
    command = [sys.executable, str(repository / "benchmarks" / "measured.py"), str(tmp_path / "in.json"), "--output"]
    done = subprocess.run([*command, str(tmp_path / "out.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'in.json'}")
    assert not (tmp_path / "out.json").exists()


def test_no_comparison_leaves_dispatchs_own_table_alone(measured, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.json").write_text('{"rows": []}')
    (tmp_path / "table.json").write_text("what was measured before")
    monkeypatch.setattr(measured, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(sys, "argv", ["measured.py", str(tmp_path / "in.json")])
    assert measured.main() == 1
    assert "hold no comparison" in capsys.readouterr().err
    assert (tmp_path / "table.json").read_text() == "what was measured before"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--output", str(tmp_path / "out.json")])
    assert measured.main() == 0
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_the_usage_line_makes_the_committed_table(measured, repository, tmp_path):
    (pattern,) = re.findall(r"python benchmarks/measured\.py (\S+)$", measured.__doc__, re.M)
    documents = sorted(map(str, repository.glob(pattern)))
    command = [sys.executable, str(repository / "benchmarks" / "measured.py"), *documents, "--output", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.json").read_text() == measured.TABLE.read_text()


def test_the_committed_table_has_the_form_that_dispatch_reads(measured):
    for entry in json.loads(measured.TABLE.read_text()):
        assert entry.keys() == {"function", "arch", "dtype", "key", "speedup"}
        assert entry["speedup"] > 1

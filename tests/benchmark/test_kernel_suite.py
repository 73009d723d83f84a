"""The kernel suite: its correctness gate, its rows, its arithmetic, and its peers."""

from __future__ import annotations

import os

import auxmae_kernels
import pytest
import torch
from auxmae_kernels import attention_reference, dispatch, reference
from auxmae_kernels.dispatch import FUNCTIONS

from auxmae.benchmark import kernel_suite as module
from auxmae.benchmark.gate import exact, results
from auxmae.benchmark.kernel_cases import Shape, kernel_cases
from auxmae.benchmark.kernel_suite import EAGER, OURS, PASSES, TRITON, kernel_suite, specification_fault
from auxmae.benchmark.sdpa import strided_attention
from auxmae.benchmark.session import wrong_providers

CPU = torch.device("cpu")
TINY = Shape("tiny", 2, 3, 16, 4, 16, 2)


def measure(function, extra=None, repeats=1, **arguments):
    cases = kernel_suite(
        [TINY], device=CPU, dtype=torch.float32, repeats=repeats, chosen=lambda name: name.startswith(function),
        extra=extra, **arguments,
    )  # fmt: skip
    return [row for rows in cases for row in rows]


def by_key(rows):
    return {(row["pass"], row["provider"]): row for row in rows}


def test_every_public_function_has_a_case_and_its_specification_passes():
    rows = measure("")
    assert {row["function"] for row in rows} == set(FUNCTIONS)
    for row in rows:
        assert row["pass"] in PASSES
        if row["provider"] in (OURS, EAGER):
            assert row["status"] == "ok", row
            assert 0 <= row["error"] <= 1
            assert len(row["samples_ms"]) == 1
            assert row["median_ms"] > 0
            assert row["bytes"] > 0
            assert row["key"]
            assert (row["dtype"], row["arch"]) == ("float32", "cpu")


def wrong_forward(x, *arguments, **named):
    out = reference.feed_forward(x, *arguments, **named)
    # One element of one row: no mean would show it.
    last = torch.zeros_like(out)
    last.view(-1)[-1] = 1e-3
    return out + last


def wrong_gradient(x, norm_weight, norm_bias, w1, b1, w2, b2, **named):
    weight = 0.99 * w2 + 0.01 * w2.detach()
    return reference.feed_forward(x, norm_weight, norm_bias, w1, b1, weight, b2, **named)


def wrong_without_gradients(x, *arguments, **named):
    out = reference.feed_forward(x, *arguments, **named)
    return out if torch.is_grad_enabled() else 3 * out


def nothing(x, *_, **__):
    return 0.0 * x


def not_finite(x, *arguments, **named):
    return reference.feed_forward(x, *arguments, **named) * float("nan")


def low_precision(x, *arguments, **named):
    return reference.feed_forward(x.half().float(), *arguments, **named)


def raising(x, *_, **__):
    raise RuntimeError("out of registers")


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (wrong_forward, "wrong", "output 0: max error"),
        (wrong_gradient, "wrong", "gradient of w2"),
        (wrong_without_gradients, "wrong", "output 0, no gradients: max error"),
        (nothing, "wrong", "output 0"),
        (not_finite, "wrong", "not finite"),
        (low_precision, "wrong", "error"),
        (raising, "failed", "out of registers"),
    ],
)
def test_a_broken_kernel_stops_its_own_figure_and_no_other(function, status, reason):
    found = by_key(measure("feed_forward", {"feed_forward": {"broken": function}}))
    for name in PASSES:
        row = found[name, "broken"]
        assert row["status"] == status
        assert reason in row["reason"]
        for key in ("median_ms", "peak_bytes", "graph_ms", "flops_per_second", "bytes_per_second", "kernel_launches"):
            assert row[key] is None, key
        assert row["samples_ms"] == []
        assert found[name, OURS]["median_ms"] > 0
        assert found[name, EAGER]["median_ms"] > 0


def test_the_backward_pass_holds_what_the_forward_pass_has_kept():
    class Hoard(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            ctx.save_for_backward(torch.zeros(2**20))
            return out.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad

    def hoarder(x, *arguments, **named):
        return Hoard.apply(reference.feed_forward(x, *arguments, **named))

    def plain(x, *arguments, **named):
        return reference.feed_forward(x, *arguments, **named).clone()

    found = by_key(measure("feed_forward", {"feed_forward": {"hoarder": hoarder, "plain": plain}}))
    more = found["backward", "hoarder"]["peak_bytes"] - found["backward", "plain"]["peak_bytes"]
    assert more == pytest.approx(4 * 2**20, rel=0.05)


def test_where_the_reference_has_no_memory_nobody_has_a_figure(monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(module, "exact", too_much)
    rows = measure("feed_forward")
    assert {(row["status"], row["median_ms"]) for row in rows} == {("out of memory", None)}
    assert "in fp64: no more" in rows[0]["reason"]
    # That is nobody's fault.
    assert wrong_providers({"rows": rows}) == []


def test_a_public_function_that_is_broken_gets_no_figure_either(monkeypatch):
    monkeypatch.setattr(module.auxmae_kernels, "feed_forward", wrong_forward)
    found = by_key(measure("feed_forward"))
    assert all(found[name, OURS]["median_ms"] is None for name in PASSES)
    assert all(found[name, EAGER]["median_ms"] > 0 for name in PASSES)


def test_a_right_kernel_in_the_same_type_passes():
    def other_order(x, norm_weight, norm_bias, w1, b1, w2, b2, residual_scale, eps=1e-6):
        centred = x - x.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * norm_weight + norm_bias
        y = torch.nn.functional.gelu(y @ w1.t() + b1)
        return x + residual_scale * (y @ w2.t() + b2)

    found = by_key(measure("feed_forward", {"feed_forward": {"other": other_order}}))
    assert found["both", "other"]["status"] == "ok", found["both", "other"]["reason"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_specification_is_what_its_formula_says_and_a_small_fault_is_found(monkeypatch, function):
    assert specification_fault(function, CPU) == ""
    right = getattr(reference, function)

    def slightly_wrong(*arguments, **named):
        out = right(*arguments, **named)
        return (out[0], 1.000001 * out[1]) if isinstance(out, tuple) else 1.000001 * out

    monkeypatch.setattr(reference, function, slightly_wrong)
    assert f"the reference of {function} is wrong itself" in specification_fault(function, CPU)


@pytest.mark.parametrize(
    ("way", "case"),
    [
        ("_patch_attention", "axial_attention/patch"),
        ("_dense_channel_attention", "axial_attention/channel"),
        ("_joint_channel_attention", "axial_attention/channel-slots/few"),
        ("_gathered_channel_attention", "axial_attention/channel-slots/many"),
    ],
)
def test_every_way_of_the_reference_attention_is_checked(monkeypatch, way, case):
    right = getattr(attention_reference, way)
    monkeypatch.setattr(attention_reference, way, lambda *arguments: 3 * right(*arguments))
    assert case in specification_fault("axial_attention", CPU)


def test_a_wrong_specification_judges_nobody(monkeypatch):
    right = reference.feed_forward
    monkeypatch.setattr(reference, "feed_forward", lambda *arguments, **named: 1.01 * right(*arguments, **named))
    said = []
    rows = measure("", {"feed_forward": {"right": right}}, progress=said.append)
    for row in rows:
        if row["function"] == "feed_forward":
            assert (row["status"], row["median_ms"], row["samples_ms"]) == ("unchecked", None, [])
            assert "the reference of feed_forward is wrong itself" in row["reason"]
        elif row["provider"] == OURS:
            assert row["status"] == "ok"
    assert "right" in {row["provider"] for row in rows}
    assert any("the reference of feed_forward is wrong itself" in text for text in said)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_specification_that_is_wrong_at_the_timed_size_alone_judges_nobody(monkeypatch, function):
    right = getattr(reference, function)

    def fault(*arguments, **named):
        out = right(*arguments, **named)
        tensors = [each for each in (*arguments, *named.values()) if isinstance(each, torch.Tensor)]
        if not any(tensor.ndim == 4 and tensor.shape[1] == 4 for tensor in tensors):
            return out
        return (1.01 * out[0], out[1]) if isinstance(out, tuple) else 1.01 * out

    monkeypatch.setattr(reference, function, fault)
    assert specification_fault(function, CPU) == ""
    four = Shape("four", 2, 4, 16, 4, 16, 2)
    (rows, *_) = kernel_suite([four], device=CPU, dtype=torch.float32, repeats=1, chosen=lambda name: name.startswith(function))
    for row in rows:
        assert (row["status"], row["median_ms"], row["samples_ms"]) == ("unchecked", None, [])
        assert "is wrong itself" in row["reason"]
        assert "/four" in row["reason"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_image_by_image_is_the_same_as_all_at_once(function):
    builds = kernel_cases([TINY], CPU, torch.float64)
    for build in (build for name, build in builds.items() if name.startswith(function)):
        case = build()
        plain = getattr(reference, function)
        upstream = module._upstream(case)
        whole = results(plain, case, case.tensors, upstream)
        for name, expected in exact(case, plain, case.tensors, upstream).items():
            torch.testing.assert_close(whole[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_arithmetic_and_traffic_of_the_feed_forward():
    row = by_key(measure("feed_forward", limits={"copy_bytes_per_second": 1e9, "matmul_flops_per_second": 1e9}))["forward", EAGER]
    rows, d, hidden = 2 * 3 * 17, 16, 32
    assert row["flops"] == 2 * rows * 2 * d * hidden
    weights = 2 * d + hidden * d + hidden + d * hidden + d
    assert row["bytes"] == 4 * (2 * rows * d + weights)
    seconds = 1e-3 * row["median_ms"]
    assert row["flops_per_second"] == pytest.approx(row["flops"] / seconds)
    assert row["bytes_of_ceiling"] == pytest.approx(row["bytes"] / seconds / 1e9)


@pytest.mark.parametrize("axis", ["patch", "channel"])
def test_the_strided_attention_is_the_same_attention(axis):
    qkv = torch.randn(2, 5, 7, 3 * 24, dtype=torch.float64)
    torch.testing.assert_close(strided_attention(qkv, 3, axis), reference.axial_attention(qkv, 3, axis))


@pytest.mark.parametrize("axis", ["patch", "channel"])
def test_sdpa_is_given_the_views_that_the_reference_takes(monkeypatch, axis):
    given = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *parts, **named: given.append(parts) or attend(*parts, **named),
    )
    # Beyond the lengths that the reference computes without it.
    qkv = torch.randn(2, 40, 40, 3 * 24)
    strided_attention(qkv, 3, axis)
    reference.axial_attention(qkv, 3, axis)
    own, others = given
    assert [(part.shape, part.stride()) for part in own] == [(part.shape, part.stride()) for part in others]


def test_sdpa_back_ends_that_run_get_figures_and_the_others_a_reason():
    found = by_key(measure("axial_attention/patch"))
    assert found["forward", "sdpa math"]["median_ms"] > 0
    # cuDNN's back end is a GPU's.
    assert found["forward", "sdpa cudnn"]["status"] == "failed"
    assert found["forward", "sdpa cudnn"]["reason"]


@pytest.mark.parametrize("variable", [None, "auto", ""])
def test_triton_is_measured_as_itself_where_dispatch_may_choose_it(monkeypatch, variable):
    monkeypatch.setattr(dispatch, "_obstacle", lambda *_: None)
    if variable is None:
        monkeypatch.delenv("AUXMAE_KERNELS", raising=False)
    else:
        monkeypatch.setenv("AUXMAE_KERNELS", variable)
    asked = []
    monkeypatch.setattr(
        auxmae_kernels, "add_norm", lambda *_, **named: asked.append(dispatch.backend()) or reference.add_norm(**named)
    )
    found = by_key(measure("add_norm"))
    assert found["both", TRITON]["median_ms"] > 0
    assert set(asked) == {"auto", "triton"}
    assert os.environ.get("AUXMAE_KERNELS") == variable


def test_a_case_that_is_not_chosen_is_not_built(monkeypatch):
    def fail(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(module, "_measure", fail)
    assert measure("no such case") == []

"""What only a GPU can show of every function: rounding, repetition, graphs, compilation, and sizes; and a dry run of all that."""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from tests.kernels import gpu_checks as gpu

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none")
GIB = 2**30


def of_every_function(test):
    """Marks a test of the device "cuda" that is run for every case."""
    return pytest.mark.gpu(on_gpu(pytest.mark.parametrize("name", gpu.CASES)(test)))


@pytest.fixture(autouse=True)
def _triton(triton):
    torch.manual_seed(0)


@of_every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sizes", gpu.GPU_SIZES)
def test_at_most_twice_the_error_of_pytorch(name, dtype, sizes):
    gpu.check_error(gpu.CASES[name](gpu.GPU_SIZES[sizes], dtype, "cuda"))


@of_every_function
def test_two_hundred_repetitions_give_the_same_bits(name):
    gpu.check_repetition(gpu.CASES[name](gpu.GPU_SIZES["reference"], torch.bfloat16, "cuda"), 200)


@of_every_function
def test_a_cuda_graph_replays_it(name):
    gpu.check_graph(gpu.CASES[name](gpu.GPU_SIZES["reference"], torch.bfloat16, "cuda"), gpu.cuda_graph)


@of_every_function
def test_compiled_and_eager_agree(name):
    gpu.check_compiled(gpu.CASES[name](gpu.GPU_SIZES["reference"], torch.bfloat16, "cuda"), "inductor")


@pytest.mark.gpu
@on_gpu
@pytest.mark.xdist_group("most of the memory")
@pytest.mark.parametrize("name", gpu.FAR)
def test_more_than_two_to_the_31_elements(name):
    needed = 60 * GIB
    # What the case before held, and PyTorch keeps.
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed // GIB} GiB of free GPU memory")
    gpu.check_far_tokens(name, 2**31, "cuda")


@pytest.mark.parametrize("name", gpu.CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dry_run_of_the_checks(launched, name, dtype):
    """In the interpreter, tiny: a fault of the checks themselves comes out here."""
    draw = gpu.CASES[name]
    gpu.check_error(draw(gpu.SMALL, dtype, "cpu"))
    assert launched
    if dtype == torch.float32:
        gpu.check_repetition(draw(gpu.SMALL, dtype, "cpu"), 1)
        gpu.check_graph(draw(gpu.SMALL, dtype, "cpu"), gpu.repeated)
        gpu.check_compiled(draw(gpu.SMALL, dtype, "cpu"), "aot_eager")


@pytest.mark.parametrize("name", gpu.FAR)
def test_dry_run_of_many_images(launched, name):
    gpu.check_far_tokens(name, 4 * 16 * 256, "cpu")
    assert launched


def test_a_function_that_differs_is_found(launched):
    """The checks can fail: a value that is off by 1%, bits that change, a replay that is not the work."""
    case = gpu.CASES["feed_forward"](gpu.SMALL, torch.float32, "cpu")
    calls = itertools.count(1)

    def wrong(*inputs):
        kernel = os.environ["AUXMAE_KERNELS"] == "triton"
        return case.function(*inputs) * (1 + 0.01 * next(calls) if kernel else 1)

    broken = gpu.Case(wrong, case.inputs, case.upstream)
    with pytest.raises(AssertionError, match="number 0"):
        gpu.check_error(broken)
    with pytest.raises(AssertionError, match="differs"):
        gpu.check_repetition(broken, 1)
    with pytest.raises(AssertionError, match="differs"):
        gpu.check_graph(case, lambda work: (work(), lambda: None))

"""What every kernel's proof shares: Triton's interpreter, poisoned outputs, and a record of what was called and launched."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import ahead_of_time
from tests.kernels.calls import CALLS

_TABLE = pytest.StashKey()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compiling the table of resources takes minutes of a core: it starts with the first of these tests, which use another."""
    stash = item.config.stash
    if _TABLE not in stash:
        wanted = any("compiled_table" in getattr(other, "fixturenames", ()) for other in item.session.items)
        stash[_TABLE] = ahead_of_time.start() if wanted else None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves nothing running behind tests that were broken off."""
    process = config.stash.get(_TABLE, None)
    if process is not None and process.poll() is None:
        process.kill()


@pytest.fixture
def compiled_table(request: pytest.FixtureRequest) -> str:
    """What `python -m auxmae_kernels.resources` prints."""
    return ahead_of_time.result(request.config.stash[_TABLE])


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> str:
    """Kernels run, on a GPU or in the interpreter, into memory full of NaN; gives the device."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from auxmae_kernels import boundary, planning

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not boundary.interpreting():
        pytest.skip("no GPU, and Triton was imported without TRITON_INTERPRET=1")
    plain = boundary.empty

    def poisoned(shape, like, dtype=None):
        memory = plain(shape, like, dtype)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    for module in list(vars(__import__("auxmae_kernels")).values()):
        if getattr(module, "empty", None) is plain:
            monkeypatch.setattr(module, "empty", poisoned)

    def record(name, arguments) -> None:
        if not name.endswith("_backward"):
            CALLS[planning.described(name, arguments)] = None

    monkeypatch.setenv("AUXMAE_KERNELS", "triton")
    if device == "cpu":
        # What a GPU was given has been compiled, and some of it does not fit a CPU's memory.
        monkeypatch.setattr(boundary, "call_observers", [record])
    return device


@pytest.fixture
def interpreter(triton: str) -> None:
    """`triton` for tests in fp64, or that draw on the CPU: in the interpreter alone."""
    if triton != "cpu":
        pytest.skip("runs the kernels in Triton's interpreter; on a GPU, the tests marked gpu compare them")


@pytest.fixture
def launched(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`interpreter`; gives a list that grows by each launched kernel."""
    from auxmae_kernels import boundary

    names: list[str] = []
    monkeypatch.setattr(boundary, "observers", [lambda kernel, *_: names.append(kernel.__name__)])
    return names

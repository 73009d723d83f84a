"""Ahead-of-time compilation of the kernels, and what each needs of a GPU: no GPU is needed for either.

`python -m auxmae_kernels.resources` compiles every kernel at its default tiles for every architecture of `tuning` and prints the
table of `kernels/README.md`: registers, bytes spilled from registers and shared memory, read from the compiled binary, and
tensor-core instructions, counted in the assembly.  With a file of recorded calls it compiles what these would launch instead, and
prints what does not compile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from auxmae_kernels.examples import EXAMPLES
from auxmae_kernels.planning import TILES, Entry, planned, replayed
from auxmae_kernels.tuning import ARCHITECTURES

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# The shared memory that one program can have, in KiB: CUDA's programming guide, "compute capabilities"; CDNA 3's LDS.
SHARED_KIB = {"sm_80": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
_MATRIX = {"cuda": r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", "hip": r"\bv_mfma_"}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's local memory that hold spilled registers.
        shared: bytes of a program's shared memory.
        matrix: tensor-core (or matrix-core) instructions in the code.
    """

    registers: int
    spilled: int
    shared: int
    matrix: int


def target(arch: str) -> GPUTarget:
    """Triton's target of "sm_90", "gfx942", …"""
    return GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)


def compile_entry(entry: Entry, arch: str) -> Resources:
    """Compiles for an architecture and reads the resources from the binary.

    Raises:
        RuntimeError: it needs more shared memory than a program can have.
        Exception: whatever Triton raises where the kernel cannot be compiled.
    """
    names = entry.kernel.arg_names
    signature = {name: entry.types.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in entry.aligned}
    compiled = triton.compile(
        ASTSource(entry.kernel, signature, dict(entry.constants), aligned), target=target(arch), options=dict(entry.options)
    )
    shared = int(compiled.metadata.shared)
    if shared > 1024 * SHARED_KIB[arch]:
        raise RuntimeError(f"{shared / 1024:.1f} KiB of shared memory, where {arch} has {SHARED_KIB[arch]}")
    amd = arch.startswith("gfx")
    text = compiled.asm["amdgcn" if amd else "ptx"]
    registers, spilled = _amd(text) if amd else _nvidia(compiled.asm["cubin"])
    return Resources(registers, spilled, shared, len(re.findall(_MATRIX["hip" if amd else "cuda"], text)))


def _nvidia(binary: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {usage[:200]}")
    return int(found[1]), int(found[2])


def _amd(text: str) -> tuple[int, int]:
    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s*(\d+)", text)
        return int(found[1]) if found else 0

    # A spilled register holds four bytes.
    return number("vgpr_count"), 4 * number("vgpr_spill_count")


Outcome = Resources | Exception


def compile_all(entries: Sequence[tuple[str, Entry]]) -> list[Outcome]:
    """What (architecture, entry) need, or why they do not compile; as many at once as PyTorch has threads."""

    def attempt(arch: str, entry: Entry) -> Outcome:
        try:
            return compile_entry(entry, arch)
        except Exception as error:  # whatever a compiler may say
            return error

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda pair: attempt(*pair), entries))


def defaults(arch: str) -> list[Entry]:
    """Every kernel at every tile that is a default on an architecture."""
    entries: dict[Any, Entry] = {}
    for calls in EXAMPLES.values():
        for run in calls():
            entries.update({entry.shape_class: entry for entry in planned(arch, run)})
    return list(entries.values())


def of_calls(runs: Iterable[Callable[[], Any]], arch: str) -> list[Entry]:
    """What recorded calls would launch, and is no default: of sizes, and of what is switched on in a kernel, each class once."""
    known = defaults(arch)
    sizes, switches = {entry.size_class for entry in known}, {entry.switches for entry in known}
    entries = []
    for run in runs:
        for entry in planned(arch, run):
            if entry.size_class not in sizes or entry.switches not in switches:
                entries.append(entry)
                sizes.add(entry.size_class)
                switches.add(entry.switches)
    return entries


def _row(entry: Entry) -> str:
    """The head of an entry's row: kernel, type, tile."""
    kinds = {kind[1:] for kind in entry.types.values() if kind.startswith("*") and kind[1:] in ("fp16", "bf16")}
    tile = " × ".join(str(entry.constants[name]) for name in TILES if name in entry.constants)
    extras = {"GELU": "GELU", "DROP_BELOW": "dropout", "RESIDUAL": "residual", "STORE_OUT": "output"}
    extra = "".join(f", {what}" for name, what in extras.items() if entry.constants.get(name))
    return f"| {entry.name}{extra} | {kinds.pop() if kinds else 'fp32'} | {tile} |"


def table(architectures: Sequence[str]) -> str:
    """The Markdown table of `kernels/README.md`.

    Raises:
        RuntimeError: an entry does not compile.
    """
    entries = [(arch, entry) for arch in architectures for entry in defaults(arch)]
    cells: dict[str, dict[str, str]] = {}
    for (arch, entry), used in zip(entries, compile_all(entries), strict=True):
        if isinstance(used, Exception):
            raise RuntimeError(f"{_row(entry)} on {arch}: {used}") from used
        spilled = f"**{used.spilled}**" if used.spilled else "0"
        cell = f"{entry.options['num_warps']}: {used.registers}/{spilled}/{used.shared / 1024:.1f}/{used.matrix}"
        cells.setdefault(_row(entry), {})[arch] = cell
    lines = [f"| kernel | type | tile | {' | '.join(architectures)} |", "| --- " * (3 + len(architectures)) + "|"]
    lines += [f"{head} {' | '.join(row.get(arch, '–') for arch in architectures)} |" for head, row in cells.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m auxmae_kernels.resources", description="what each kernel needs of a GPU")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="of these architectures alone")
    parser.add_argument("--calls", type=Path, help="compile what these recorded calls would launch (JSON)")
    parser.add_argument(
        "--spread",
        action="store_true",
        help="each recorded call for the first architecture, and for one of the others in turn",
    )
    options = parser.parse_args()
    # Which line an instruction comes from is of no interest here, and takes an eighth of the time.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    architectures = options.arch or ARCHITECTURES
    if options.calls is None:
        print(table(architectures), end="")
        return
    runs = [replayed(call) for call in json.loads(options.calls.read_text(encoding="utf-8"))]
    entries = [
        (arch, entry)
        for turn, arch in enumerate(architectures)
        for number, entry in enumerate(of_calls(runs, arch))
        if turn == 0 or not options.spread or number % (len(architectures) - 1) == turn - 1
    ]
    failed = [
        f"{arch} {entry.shape_class}: {outcome}"
        for (arch, entry), outcome in zip(entries, compile_all(entries), strict=True)
        if isinstance(outcome, Exception)
    ]
    print(f"{len(entries) - len(failed)} of {len(entries)} compiled")
    raise SystemExit("\n".join(failed) or None)


if __name__ == "__main__":
    main()

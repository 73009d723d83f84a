"""Ahead-of-time compilation of the kernels, and what each needs of a GPU: no GPU is needed for either.

`python -m auxmae_kernels.resources` compiles every tuned entry for the architectures with entries of their own and prints the
table of `kernels/README.md`: registers, shared memory, bytes spilled from registers, and tensor-core instructions, read
from the compiled binary.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from auxmae_kernels import tuning
from auxmae_kernels.attention_packed import packed_backward, packed_forward
from auxmae_kernels.attention_streaming import streaming_backward, streaming_forward

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Entry:
    """A kernel with everything that its binary depends on, but for the architecture.

    Attributes:
        kernel: the jitted function.
        types: argument → Triton's name of its type ("*bf16", "i32"); the others are constants.
        constants: argument → value.
        warps, stages: of the launch.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.kernel.__name__)


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
        Exception: whatever Triton raises where the kernel cannot be compiled.
    """
    names = entry.kernel.arg_names
    signature = {name: entry.types.get(name, "constexpr") for name in names}
    # Tensors begin at multiples of 16 bytes and their strides are multiples of 16 elements, as in training.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*") or (signature[name] == "i32" and "stride" in name)
    }
    options = {"num_warps": entry.warps, "num_stages": entry.stages, "enable_fp_fusion": True}
    source = ASTSource(entry.kernel, signature, dict(entry.constants), aligned)
    compiled = triton.compile(source, target=target(arch), options=options)
    if arch.startswith("gfx"):
        return _amd(compiled)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of {entry.name}: {usage[:200]}")
    matrix = len(re.findall(r"\b(?:HGMMA|HMMA|UTCHMMA|QMMA|OMMA)\b", code))
    return Resources(int(found[1]), int(found[2]), int(compiled.metadata.shared), matrix)


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _amd(compiled: Any) -> Resources:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s*(\d+)", text)
        return int(found[1]) if found else 0

    # A spilled register holds four bytes.
    return Resources(
        number("vgpr_count"), 4 * number("vgpr_spill_count"), int(compiled.metadata.shared), len(re.findall(r"\bv_mfma_", text))
    )


def attention_entry(
    kernel: Any, rows: int, head_tile: int, warps: int, *, stages: int = 1, dtype: str = "bf16", **flags: bool
) -> Entry:
    """An entry of `axial_attention`: full heads, and by default ragged channel attention."""
    constants: dict[str, Any] = {
        "HEADS": 8,
        "HEAD_DIM": head_tile,
        "HEAD_TILE": head_tile,
        "TILE": rows,
        "SCALE": head_tile**-0.5,
        "ALONG_CHANNELS": True,
        "HAS_SLOTS": True,
        "HAS_LENGTHS": False,
        "ACC": tl.float32,
        "PRECISION": "tf32",
        "UPCAST": False,
        **flags,
    }
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            continue
        if name.endswith("stride_d"):
            constants[name] = 1
        elif name in ("slots", "lengths"):
            types[name] = "*i32"
        elif name == "lse":
            types[name] = "*fp32"
        elif name in ("qkv", "out", "grad", "grad_qkv"):
            types[name] = f"*{dtype}"
        else:
            types[name] = "i32"
    return Entry(kernel, types, constants, warps, stages)


def tuned(arch: str) -> Iterator[tuple[str, Entry]]:
    """Every entry that is a default on an architecture, with its line's head in the table: kernel, tile × head, warps."""
    nearest = tuning.family(arch)
    packed = ((rows, warps) for (name, rows), warps in tuning.PACKED.items() if name == nearest)
    for kernels, tiles in (
        (
            (packed_forward, packed_backward),
            [(r, h, w) for r, by_head in packed for h, w in zip(tuning.HEADS, by_head, strict=True)],
        ),
        (
            (streaming_forward, streaming_backward),
            [(r, h, w) for h, (r, w) in zip(tuning.HEADS, tuning.STREAMING[nearest], strict=True)],
        ),
    ):
        for rows, head_tile, warps in tiles:
            for kernel in kernels:
                head = f"| {kernel.__name__} | {rows} × {head_tile} | {warps} |"
                yield head, attention_entry(kernel, rows, head_tile, warps)


def table(architectures: tuple[str, ...]) -> str:
    """The Markdown table of `kernels/README.md`: registers / spilled bytes / shared KiB / matrix instructions."""
    lines = ["| architecture | kernel | tile × head | warps | registers | spilled B | shared KiB | matrix instructions |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for arch in architectures:
        for head, entry in tuned(arch):
            used = compile_entry(entry, arch)
            lines.append(f"| {arch} {head} {used.registers} | {used.spilled} | {used.shared / 1024:.1f} | {used.matrix} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    # The architectures whose entries are chosen; the others take theirs.
    print(table(("sm_80", "sm_90")), end="")

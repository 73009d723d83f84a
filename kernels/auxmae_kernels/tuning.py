"""How large a kernel's tile is, and how many warps work on it, by architecture.

The entries are chosen by what the compiler says (see the table in `kernels/README.md`): no spills of registers in the backward
pass in half precision.  `AUXMAE_AUTOTUNE=1` measures the candidates for a shape on first use instead, and keeps what it found
in `$XDG_CACHE_HOME/auxmae/tuning.json`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

# What AMD's and NVIDIA's compilers were asked for; another architecture takes the entries of the nearest.
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


@dataclass(frozen=True)
class Tile:
    """Rows of a tile, warps that share it, and stages of the software pipeline over a loop.

    `columns` counts where a tile does not hold whole rows, `chunk` where a dimension passes by: so many numbers at a time.
    """

    rows: int
    warps: int
    stages: int = 1
    columns: int = 0
    chunk: int = 0


# Warps of packed sequences, for half precision: (architecture, rows) → by head tile.  The fewest that spill nothing.
# Head dims are padded to one of these.
HEADS = (16, 32, 64, 128)
PACKED: dict[tuple[str, int], tuple[int, int, int, int]] = {
    ("sm_80", 16): (1, 1, 1, 2),
    ("sm_80", 32): (2, 2, 2, 4),
    ("sm_80", 64): (4, 4, 4, 8),
    ("sm_90", 16): (1, 1, 1, 2),
    ("sm_90", 32): (2, 2, 2, 4),
    ("sm_90", 64): (4, 4, 4, 8),
    ("sm_90", 128): (8, 8, 8, 8),
    ("gfx942", 16): (1, 1, 1, 2),
    ("gfx942", 32): (2, 2, 2, 4),
    ("gfx942", 64): (4, 4, 4, 4),
}
# (rows, warps, stages) of sequences that stream: architecture → by head tile.  A second stage is 4 to 9% faster on sm_90 where it
# was measured, at heads of 32.
STREAMING: dict[str, tuple[tuple[int, int, int], ...]] = {
    "sm_80": ((64, 4, 1), (32, 2, 1), (32, 4, 1), (32, 4, 1)),
    "sm_90": ((64, 4, 2), (64, 4, 2), (64, 8, 1), (32, 4, 1)),
    "gfx942": ((32, 2, 1), (32, 2, 1), (32, 4, 1), (32, 4, 1)),
}
# The same for fp32 on every architecture: its products hold rows of both operands in registers, and take no tensor core.  0: no
# number of warps is enough, and sequences of this length stream.
PACKED_FP32: dict[int, tuple[int, int, int, int]] = {16: (2, 2, 4, 8), 32: (4, 4, 8, 0)}
STREAMING_FP32: tuple[tuple[int, int, int], ...] = ((32, 4, 1), (16, 4, 1), (16, 4, 1), (16, 8, 1))

# Of a map with what stands behind it.  sm_90's is the fastest of 26 that were measured there on 28 288 rows, 256 × 256 and
# 512 × 256 (benchmarks/NOTES.md); the others have no figure of their own, and gfx942 no room for so much shared memory.
LINEAR: dict[str, Tile] = {
    "sm_80": Tile(64, 8, 3, columns=128, chunk=64),
    "sm_90": Tile(64, 8, 3, columns=128, chunk=64),
    "gfx942": Tile(64, 8, 2, columns=128, chunk=32),
}

# Where set, the architecture to choose tiles for, whatever the device.
assumed: str | None = None


def architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942", …; a CPU, where Triton interprets, counts as the newest one that is tuned."""
    if assumed is not None:
        return assumed
    if device.type != "cuda":
        return "sm_90"
    return _architecture_of(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _architecture_of(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def cdiv(number: int, by: int) -> int:
    """number / by, rounded up.  Triton's own, which a kernel can call too, costs a host a good part of a launch."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """The least that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def family(arch: str) -> str:
    """The architecture whose entries serve this one."""
    if arch.startswith("gfx"):
        return "gfx942"
    # sm_120 has the shared memory of sm_89; sm_100 that of sm_90.
    return "sm_90" if arch in ("sm_90", "sm_100", "sm_103") else "sm_80"


@cache
def _packed(arch: str, dtype: torch.dtype, head_tile: int) -> dict[int, int]:
    """Rows of a tile of packed sequences → its warps."""
    # fp64, which the interpreter alone is given, takes the tiles of half precision: those that are to be proven.
    half = {rows: warps for (name, rows), warps in PACKED.items() if name == family(arch)}
    table = PACKED_FP32 if dtype == torch.float32 else half
    chosen = {rows: warps[HEADS.index(head_tile)] for rows, warps in table.items()}
    return {rows: warps for rows, warps in chosen.items() if warps}


@cache
def longest_packed(head_tile: int, dtype: torch.dtype, arch: str) -> int:
    """Tokens of the longest sequence whose scores one tile holds; longer ones stream."""
    return max(_packed(arch, dtype, head_tile))


@cache
def attention_tile(length: int, head_tile: int, dtype: torch.dtype, arch: str) -> Tile:
    """The tile for sequences of `length` tokens with heads padded to `head_tile`."""
    packed = _packed(arch, dtype, head_tile)
    if length > max(packed):
        return Tile(*(STREAMING_FP32 if dtype == torch.float32 else STREAMING[family(arch)])[HEADS.index(head_tile)])
    # Of the sizes that hold a sequence, the smallest that uses three quarters of its rows, or the one that uses the most: all
    # scores of a tile are computed, and those between two sequences are thrown away.
    sizes = [rows for rows in packed if rows >= length]
    rows = max(sizes, key=lambda rows: (min(rows // max(length, 1) * length / rows, 0.75), -rows))
    return Tile(rows, packed[rows])


def attention_candidates(length: int, head_tile: int, dtype: torch.dtype, arch: str) -> list[Tile]:
    """What autotuning tries for sequences of `length` tokens."""
    longest = longest_packed(head_tile, dtype, arch)
    sizes = [16, 32, 64, 128] if length <= longest else [32, 64]
    sizes = [rows for rows in sizes if length > longest or length <= rows <= longest]
    stages = (1, 2) if length > longest else (1,)
    return [
        Tile(rows, warps, depth)
        for rows in sizes
        for warps in (1, 2, 4, 8)
        if rows // 32 <= warps <= max(1, rows // 8)
        for depth in stages
    ]


_tuned: dict[str, Tile] = {}


def autotuning(device: torch.device) -> bool:
    """Whether tiles are measured instead of looked up: AUXMAE_AUTOTUNE=1, on a GPU."""
    return device.type == "cuda" and os.environ.get("AUXMAE_AUTOTUNE", "") not in ("", "0")


def cache_file() -> Path:
    """Where what was measured is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "auxmae" / "tuning.json"


def fastest(key: str, candidates: Sequence[Tile], run: Callable[[Tile], object], measure: Callable[..., float]) -> Tile:
    """The tile with which `run` is fastest: measured once for a key, then read from memory or from the cache file.

    Args:
        key: everything that the answer depends on, the GPU's name and Triton's version included.
        candidates: tiles to try; one that does not compile or does not fit is passed over.
        run: does the work with a tile.
        measure: times a function without arguments, as `triton.testing.do_bench`.

    Raises:
        RuntimeError: no candidate works.
    """
    if key not in _tuned:
        known = _read_cache()
        if key not in known:
            times = {}
            for tile in candidates:
                try:
                    times[tile] = measure(lambda tile=tile: run(tile))
                except Exception as error:  # whatever a compiler may say
                    failure = error
            if not times:
                raise RuntimeError(f"autotuning {key}: no tile works") from failure
            known[key] = min(times, key=lambda tile: times[tile])
            _write_cache(known)
        _tuned[key] = known[key]
    return _tuned[key]


def kept(key: str) -> Tile | None:
    """What `fastest` has found in this process, or a former one; None where that was never asked."""
    return _tuned.get(key) or _read_cache().get(key)


def _read_cache() -> dict[str, Tile]:
    try:
        stored = json.loads(cache_file().read_text(encoding="utf-8"))
        return {key: Tile(**value) for key, value in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        # Not there, or unreadable: it is measured again.
        return {}


def _write_cache(tiles: dict[str, Tile]) -> None:
    file = cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as written:
            json.dump({key: asdict(tile) for key, tile in tiles.items()}, written, indent=1)
        os.replace(written.name, file)
    except OSError:
        # A cache that cannot be kept costs time, not correctness.
        return


def linear_tile(arch: str) -> Tile:
    """Of a map with what stands behind it: rows, outputs at a time, and inputs at a time."""
    return LINEAR[family(arch)]


def norm_tile(width_tile: int) -> Tile:
    """Whole rows of `add_norm`, padded to `width_tile`: 2048 numbers where a row has no more, 16 a thread up to 8192."""
    rows = max(1, min(32, 2048 // width_tile))
    return Tile(rows, max(4, min(16, rows * width_tile // 512)))

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
from pathlib import Path

import torch

# What AMD's and NVIDIA's compilers were asked for; another architecture takes the entries of the nearest.
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
# Those that have entries of their own.
FAMILIES = ("sm_80", "sm_90", "gfx942")


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
# (rows, warps) of sequences that stream: architecture → by head tile.
STREAMING: dict[str, tuple[tuple[int, int], ...]] = {
    "sm_80": ((64, 4), (32, 2), (32, 4), (32, 4)),
    "sm_90": ((64, 4), (64, 4), (64, 8), (32, 4)),
    "gfx942": ((32, 2), (32, 2), (32, 4), (32, 4)),
}
# The same for fp32 on every architecture: its products hold rows of both operands in registers, and take no tensor core.  0: no
# number of warps is enough, and sequences of this length stream.
PACKED_FP32: dict[int, tuple[int, int, int, int]] = {16: (2, 2, 4, 8), 32: (4, 4, 8, 0)}
STREAMING_FP32: tuple[tuple[int, int], ...] = ((32, 4), (16, 4), (16, 4), (16, 8))

# Widest rows of the sublayers' kernels: beyond, a tile with its sum does not fit the registers, and a library's products alone
# keep a GPU busy.  fp32 takes no tensor core and twice the registers: for the attention sublayer, by the rows of its tile.
WIDEST = 256
FEED_FORWARD_WIDEST_FP32 = 128
BLOCK_WIDEST_FP32 = {16: 64, 32: 32}

# (architecture, width tile) → (rows, hidden chunk, warps, stages), for half precision: of the feed-forward sublayer.
# At 256 neither spills on sm_80 or sm_90; with one stage, or 64 rows on the way back, hundreds of bytes would.
_WIDTHS = (16, 32, 64, 128, 256)
FEED_FORWARD: dict[tuple[str, int], tuple[int, int, int, int]] = {
    **{(a, w): (64, 32, 4, 2) for a in FAMILIES for w in _WIDTHS},
    **{(a, 256): (64, 32, 8, 2) for a in FAMILIES},
}
FEED_FORWARD_BACKWARD: dict[tuple[str, int], tuple[int, int, int, int]] = {
    **{(a, w): (32, 32, 4, 2) for a in FAMILIES for w in _WIDTHS},
    **{(a, 256): (32, 32, 8, 2) for a in FAMILIES},
}

# (architecture, rows) → (warps, stages) of the attention sublayer, for half precision, forward and backward.  At a width of 256
# only the way forward spills, 50 to 100 bytes in 32 rows; 64 rows spill hundreds.  Two stages on the way back in 32 rows would
# need more shared memory than sm_89 and sm_120 have, which take the entries of sm_80.
BLOCK: dict[tuple[str, int], tuple[int, int]] = {(a, r): (r // 4, 2) for a in FAMILIES for r in (16, 32)}
BLOCK_BACKWARD = {**BLOCK, ("sm_80", 32): (8, 1)}


# Where set, the architecture to choose tiles for, whatever the device.
assumed: str | None = None


def architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942", …; a CPU, where Triton interprets, counts as the newest one that is tuned."""
    if assumed is not None:
        return assumed
    if device.type != "cuda":
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def family(arch: str) -> str:
    """The architecture whose entries serve this one."""
    if arch.startswith("gfx"):
        return "gfx942"
    # sm_120 has the shared memory of sm_89; sm_100 that of sm_90.
    return "sm_90" if arch in ("sm_90", "sm_100", "sm_103") else "sm_80"


def _packed(arch: str, dtype: torch.dtype, head_tile: int) -> dict[int, int]:
    """Rows of a tile of packed sequences → its warps."""
    # fp64, which the interpreter alone is given, takes the tiles of half precision: those that are to be proven.
    half = {rows: warps for (name, rows), warps in PACKED.items() if name == family(arch)}
    table = PACKED_FP32 if dtype == torch.float32 else half
    chosen = {rows: warps[HEADS.index(head_tile)] for rows, warps in table.items()}
    return {rows: warps for rows, warps in chosen.items() if warps}


def longest_packed(head_tile: int, dtype: torch.dtype, arch: str) -> int:
    """Tokens of the longest sequence whose scores one tile holds; longer ones stream."""
    return max(_packed(arch, dtype, head_tile))


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
    return [Tile(rows, warps) for rows in sizes for warps in (1, 2, 4, 8) if rows // 32 <= warps <= max(1, rows // 8)]


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


def feed_forward_tile(width_tile: int, dtype: torch.dtype, arch: str, backward: bool) -> tuple[Tile, int]:
    """The tile of rows padded to `width_tile`, and how many hidden numbers a chunk has."""
    table = FEED_FORWARD_BACKWARD if backward else FEED_FORWARD
    rows, chunk, warps, stages = table[family(arch), width_tile]
    if dtype == torch.float32:
        rows, chunk, warps, stages = 16, 16, 8, 1
    return Tile(rows, warps, _stages(stages, arch)), chunk


def feed_forward_widest(dtype: torch.dtype) -> int:
    """The widest rows that the feed-forward sublayer's kernels take, with products in `dtype`."""
    return FEED_FORWARD_WIDEST_FP32 if dtype == torch.float32 else WIDEST


def norm_tile(width_tile: int) -> Tile:
    """Whole rows of `add_norm`, padded to `width_tile`: 2048 numbers where a row has no more, 16 a thread up to 8192."""
    rows = max(1, min(32, 2048 // width_tile))
    return Tile(rows, max(4, min(16, rows * width_tile // 512)))


def block_fits(length: int, width: int, dtype: torch.dtype) -> bool:
    """Whether one program computes the whole attention sublayer of such sequences, with products in `dtype`."""
    sizes = [rows for _, rows in BLOCK if 0 < length <= rows]
    return bool(sizes) and width <= (BLOCK_WIDEST_FP32[min(sizes)] if dtype == torch.float32 else WIDEST)


def block_tile(length: int, dtype: torch.dtype, arch: str, backward: bool) -> Tile:
    """The tile of whole sequences of the attention sublayer."""
    rows = min(rows for _, rows in BLOCK if length <= rows)
    warps, stages = (BLOCK_BACKWARD if backward else BLOCK)[family(arch), rows]
    return Tile(rows, 8, 1) if dtype == torch.float32 else Tile(rows, warps, _stages(stages, arch))


def _stages(stages: int, arch: str) -> int:
    """One where the shared memory, 64 KiB on gfx942, has no room for more."""
    return 1 if family(arch) == "gfx942" else stages

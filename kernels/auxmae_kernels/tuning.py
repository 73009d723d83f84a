"""How large a kernel's tile is, and how many warps work on it, by architecture.

The entries are chosen by what the compiler says (see the table in `kernels/README.md`): no spills of registers in the backward
pass in half precision.  `AUXMAE_AUTOTUNE=1` measures the candidates for a shape on first use instead, and keeps what it found
in `$XDG_CACHE_HOME/auxmae/tuning.json`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# What AMD's and NVIDIA's compilers were asked for; another architecture takes the entries of the nearest.
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


@dataclass(frozen=True)
class Tile:
    """Rows of a tile, warps that share it, and stages of the software pipeline over a loop."""

    rows: int
    warps: int
    stages: int = 1


# Rows of the longest sequence that one tile holds whole.
_LONGEST = {"sm_80": 64, "sm_90": 128, "gfx942": 64}
# (architecture, rows, head tile) → warps, for half precision: of packed sequences.
PACKED: dict[tuple[str, int, int], int] = {(a, r, h): 4 for a in _LONGEST for r in (16, 32, 64, 128) for h in (16, 32, 64, 128)}
# (architecture, head tile) → (rows, warps): of sequences that stream.
STREAMING: dict[tuple[str, int], tuple[int, int]] = {(a, h): (32, 4) for a in _LONGEST for h in (16, 32, 64, 128)}

# (architecture, width tile) → (rows, hidden chunk, warps, stages), for half precision: of the feed-forward sublayer.
# At 256 neither spills on sm_80 or sm_90; with one stage, or 64 rows on the way back, hundreds of bytes would.
_WIDTHS = (16, 32, 64, 128, 256)
FEED_FORWARD: dict[tuple[str, int], tuple[int, int, int, int]] = {
    **{(a, w): (64, 32, 4, 2) for a in _LONGEST for w in _WIDTHS},
    **{(a, 256): (64, 32, 8, 2) for a in _LONGEST},
}
FEED_FORWARD_BACKWARD: dict[tuple[str, int], tuple[int, int, int, int]] = {
    **{(a, w): (32, 32, 4, 2) for a in _LONGEST for w in _WIDTHS},
    **{(a, 256): (32, 32, 8, 2) for a in _LONGEST},
}

# (architecture, width tile) → (rows, warps, stages) at most, for half precision: of the attention sublayer.
BLOCK: dict[tuple[str, int], tuple[int, int, int]] = {(a, w): (32, 8, 1) for a in _LONGEST for w in _WIDTHS}
BLOCK_BACKWARD: dict[tuple[str, int], tuple[int, int, int]] = {(a, w): (32, 8, 1) for a in _LONGEST for w in _WIDTHS}


def architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942", …; a CPU, where Triton interprets, counts as the newest one that is tuned."""
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


def longest_packed(arch: str) -> int:
    """Tokens of the longest sequence whose scores one tile holds; longer ones stream."""
    return _LONGEST[family(arch)]


def attention_tile(length: int, head_tile: int, dtype: torch.dtype, arch: str) -> Tile:
    """The tile for sequences of `length` tokens with heads padded to `head_tile`."""
    nearest = family(arch)
    if length > _LONGEST[nearest]:
        rows, warps = STREAMING[nearest, head_tile]
    else:
        # Of the sizes that hold a sequence, the one that wastes the fewest rows; of equals, the smallest.
        sizes = [rows for rows in (16, 32, 64, 128) if length <= rows <= _LONGEST[nearest]]
        rows = max(sizes, key=lambda rows: (rows // max(length, 1) * length / rows, -rows))
        warps = PACKED[nearest, rows, head_tile]
    # Numbers of 32 bits take twice the registers.
    return Tile(rows, warps if dtype.itemsize <= 2 else min(8, 2 * warps))


def feed_forward_tile(width_tile: int, dtype: torch.dtype, arch: str, backward: bool) -> tuple[Tile, int]:
    """The tile of rows padded to `width_tile`, and how many hidden numbers a chunk has."""
    table = FEED_FORWARD_BACKWARD if backward else FEED_FORWARD
    rows, chunk, warps, stages = table[family(arch), width_tile]
    if dtype.itemsize > 2:
        # Numbers of 32 bits take twice the registers and twice the shared memory.
        rows, chunk, stages = 16, 16, 1
    return Tile(rows, warps, stages), chunk


def norm_tile(width_tile: int) -> Tile:
    """Whole rows of `add_norm`, padded to `width_tile`: 4096 numbers where a row has no more, 32 a thread."""
    rows = max(1, min(32, 4096 // width_tile))
    return Tile(rows, max(4, min(16, rows * width_tile // 1024)))


def longest_block(arch: str) -> int:
    """Tokens of the longest sequence whose whole attention sublayer one program computes."""
    return min(rows for (nearest, _), (rows, _, _) in (*BLOCK.items(), *BLOCK_BACKWARD.items()) if nearest == family(arch))


def block_tile(length: int, width_tile: int, dtype: torch.dtype, arch: str, backward: bool) -> Tile:
    """The tile of whole sequences of the attention sublayer, for rows padded to `width_tile`."""
    rows, warps, stages = (BLOCK_BACKWARD if backward else BLOCK)[family(arch), width_tile]
    # Numbers of 32 bits take twice the registers.
    if dtype.itemsize > 2 and length <= 16:
        rows = 16
    return Tile(rows, warps, stages)

"""Which patches are hidden from the encoder.

`keep` holds the visible positions of each channel's patch grid (row-major), ascending, and −1 at the tail where a channel
shows fewer patches than another; `masked` is True where a patch is hidden.

Shapes: B batch, C channels (or channel groups), N positions of the patch grid, K visible positions, M hidden ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auxmae.errors import SettingsError

STRATEGIES = ("independent", "shared", "channel", "block")


@dataclass(frozen=True)
class Mask:
    """A drawn (or given) mask with what is derived from it once a step.

    Attributes:
        keep: (B, C, K) int64, visible positions, −1 as padding at the tail.
        masked_index: (B, C, M) int64, hidden positions, −1 as padding at the tail.
        aligned: the k-th visible patch of every channel is the same place, so channel attention needs no table.
        ragged: `keep` has padding.
        rows: (B, V) int64, the channels that show anything, where whole channels are hidden and the others show the same
            places, else None.
    """

    keep: Tensor
    masked_index: Tensor
    aligned: bool
    ragged: bool = False
    rows: Tensor | None = None


def visible_count(total: int, ratio: float) -> int:
    """How many of `total` stay visible when `ratio` is hidden: at least one; and at least one is hidden if it can be."""
    return min(max(round(total * (1 - ratio)), 1), max(total - 1, 1))


def hidden_positions(keep: Tensor, positions: int) -> Tensor:
    """`keep` (B, C, K) → (B, C, N) bool, True where hidden."""
    masked = torch.ones(*keep.shape[:2], positions + 1, dtype=torch.bool, device=keep.device)
    return masked.scatter(2, torch.where(keep < 0, positions, keep), False)[..., :positions]


def _indices_of(flags: Tensor, count: int) -> Tensor:
    """(B, C, N) bool → the first `count` True positions of each row, ascending, −1 where there are fewer."""
    order = torch.argsort(flags.to(torch.uint8), dim=2, descending=True, stable=True)[..., :count]
    return torch.where(flags.gather(2, order), order, -1)


def _draw(function: Callable[..., Tensor], *arguments: Any, generator: torch.Generator | None, device: torch.device) -> Tensor:
    # A generator of None is not passed on: torch.compile knows no such function for sizes that vary.
    return function(*arguments, device=device, **({} if generator is None else {"generator": generator}))


def _smallest(noise: Tensor, count: int) -> Tensor:
    return torch.argsort(noise, dim=-1)[..., :count].sort(dim=-1).values


def _block_noise(
    batch: int, rows: int, columns: int, side: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """(B, 1, N): noise that is constant on squares of `side` patches, with a random offset, and a jitter to break ties."""
    coarse = _draw(torch.rand, batch, rows // side + 2, columns // side + 2, generator=generator, device=device)
    shift = _draw(torch.randint, 0, side, (2, batch), generator=generator, device=device)
    row = (torch.arange(rows, device=device) + shift[0, :, None]) // side
    column = (torch.arange(columns, device=device) + shift[1, :, None]) // side
    item = torch.arange(batch, device=device)[:, None, None]
    squares = coarse[item, row[:, :, None], column[:, None, :]]
    jitter = _draw(torch.rand, batch, rows, columns, generator=generator, device=device)
    return (squares + 1e-4 * jitter).reshape(batch, 1, rows * columns)


def usable_strategies(strategy: str, mixture: Mapping[str, float] | None, channels: int) -> dict[str, float]:
    """The strategies that are drawn for images of so many channels, each with its relative frequency.

    Raises:
        SettingsError: there is none, since "channel" needs two channels.
    """
    weights = (mixture or {}) if strategy == "mixed" else {strategy: 1.0}
    usable = {name: float(weight) for name, weight in weights.items() if weight > 0 and (name != "channel" or channels > 1)}
    if usable:
        return usable
    if strategy == "mixed":
        raise SettingsError("masking.mixture has no strategy that works here", hint="give independent a positive weight")
    raise SettingsError(
        "masking.strategy = 'channel' hides whole channels (or groups that share a token), and there is only one",
        hint="set masking.strategy to independent, shared or block",
    )


def draw_mask(
    batch: int,
    channels: int,
    grid: tuple[int, int],
    *,
    ratio: float,
    strategy: str = "independent",
    block_size: int = 2,
    mixture: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Mask:
    """Draws which patches stay visible.

    Args:
        batch, channels, grid: B, C and the patch grid's (rows, columns).
        ratio: part of the patches to hide.
        strategy: one of `STRATEGIES`, or "mixed" to draw one of them for the whole batch.
        block_size: side of a hidden square in patches (strategy "block").
        mixture: relative frequency of each strategy (strategy "mixed").
        generator: source of randomness, on `device`.

    Raises:
        SettingsError: see `usable_strategies`; or an unknown strategy.
    """
    device = torch.device(device or (generator.device if generator is not None else "cpu"))
    rows, columns = grid
    positions = rows * columns
    usable = usable_strategies(strategy, mixture, channels)
    if strategy == "mixed":
        # Drawn on the CPU: the choice steers Python, and a GPU would have to be waited for.
        cpu = generator if generator is not None and generator.device.type == "cpu" else None
        strategy = list(usable)[int(torch.multinomial(torch.tensor(list(usable.values()), device="cpu"), 1, generator=cpu))]
    if strategy == "channel":
        shown = visible_count(channels, ratio)
        visible = _smallest(_draw(torch.rand, batch, channels, generator=generator, device=device), shown)
        seen = torch.zeros(batch, channels, 1, dtype=torch.bool, device=device).scatter(1, visible[..., None], True)
        every = torch.arange(positions, device=device).expand(batch, channels, positions)
        return Mask(torch.where(seen, every, -1), torch.where(seen, -1, every), aligned=True, ragged=True, rows=visible)
    count = visible_count(positions, ratio)
    if strategy == "independent":
        keep = _smallest(_draw(torch.rand, batch, channels, positions, generator=generator, device=device), count)
    elif strategy == "shared":
        keep = _smallest(_draw(torch.rand, batch, 1, positions, generator=generator, device=device), count).expand(
            -1, channels, -1
        )
    elif strategy == "block":
        noise = _block_noise(batch, rows, columns, block_size, generator, device)
        keep = _smallest(noise, count).expand(-1, channels, -1)
    else:
        raise SettingsError(f"unknown masking strategy {strategy!r}", hint=f"one of {', '.join((*STRATEGIES, 'mixed'))}")
    masked = _indices_of(hidden_positions(keep, positions), positions - count)
    return Mask(keep, masked, aligned=strategy != "independent")


def mask_from_keep(keep: Tensor, positions: int) -> Mask:
    """A mask from given visible positions (B, C, K); −1 pads channels that show fewer.

    Raises:
        ValueError: a position is out of range or named twice in a channel, or nothing at all is visible.
    """
    if keep.ndim != 3 or keep.dtype == torch.bool or keep.is_floating_point() or keep.is_complex():
        raise ValueError(f"keep must be integers of shape (B, C, K), not {keep.dtype} {tuple(keep.shape)}")
    keep = keep.long()
    if keep.numel() == 0 or not (keep >= 0).any():
        raise ValueError("keep shows no patch at all")
    if int(keep.max()) >= positions or int(keep.min()) < -1:
        raise ValueError(f"keep holds positions outside 0 … {positions - 1} (−1 is padding)")
    lengths = (keep >= 0).sum(2)
    masked = hidden_positions(keep, positions)
    hidden = masked.sum(2)
    if not torch.equal(hidden + lengths, torch.full_like(lengths, positions)):
        raise ValueError("keep names a position twice in one channel")
    # Ascending with the padding at the tail, as the drawn masks are.
    keep = torch.where(keep < 0, positions, keep).sort(dim=2).values
    keep = torch.where(keep == positions, -1, keep)[..., : int(lengths.max())]
    rows = None
    if bool((lengths == 0).any()) and bool(((lengths > 0).sum(1) == (lengths[0] > 0).sum()).all()):
        rows = _indices_of((lengths > 0)[:, None], int((lengths[0] > 0).sum()))[:, 0]
        shown = keep.gather(1, rows[..., None].expand(-1, -1, keep.shape[2]))
    else:
        shown = keep
    aligned = bool((shown == shown[:, :1]).all())
    if rows is not None and (not aligned or bool((shown < 0).any())):
        # The channels that are shown go on without padding and without a table of places, so these must be the same for all.
        rows, aligned = None, False
    ragged = bool((keep < 0).any())
    return Mask(keep, _indices_of(masked, int(hidden.max())), aligned=aligned, ragged=ragged, rows=rows)


def everything_visible(batch: int, channels: int, positions: int, device: torch.device) -> Mask:
    """The mask that hides nothing, for features."""
    keep = torch.arange(positions, device=device).expand(batch, channels, positions)
    return Mask(keep, keep[..., :0], aligned=True)


def known_visible(known: Tensor) -> Mask:
    """The mask that hides what is not known, for features; of an image of which nothing is known, it hides nothing.

    Args:
        known: (B, C, N) bool, whether anything of a patch is known.
    """
    known = known | ~known.any(2, keepdim=True).any(1, keepdim=True)
    lengths = known.sum(2)
    keep = _indices_of(known, int(lengths.max()) if len(known) else 0)
    hidden = _indices_of(~known, known.shape[2] - int(lengths.min()) if len(known) else 0)
    return Mask(keep, hidden, aligned=bool((keep == keep[:, :1]).all()), ragged=bool((keep < 0).any()))


def slots_of(keep_BGT: Tensor, positions: int) -> Tensor:
    """(B, positions, G) int32: which token of each channel lies at each place, −1 where none does."""
    batch, groups, tokens = keep_BGT.shape
    table = torch.full((batch, positions + 1, groups), -1, dtype=torch.int32, device=keep_BGT.device)
    place = torch.where(keep_BGT < 0, positions, keep_BGT).transpose(1, 2)
    token = torch.arange(tokens, dtype=torch.int32, device=keep_BGT.device)[None, :, None].expand(batch, tokens, groups)
    return table.scatter(1, place, token)[:, :positions]

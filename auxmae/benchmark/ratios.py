"""How a provider compares with the one that it is measured against: the ratio of their times, and how sure that is.

The providers take turns in rounds, so each round gives a ratio of its own, from which what slowed both down has fallen out.
Rounds of one visit are alike (`measure.Visit`), so its median counts as one value; the median of those is the figure.  Its
interval is that of order statistics (Conover, Practical Nonparametric Statistics, ch. 3), which assumes nothing about how times
are distributed.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from auxmae.benchmark.data_suite import MODEL
from auxmae.benchmark.kernel_suite import EAGER
from auxmae.benchmark.measure import Key
from auxmae.benchmark.suites import JOINT, PLAIN

Row = dict[str, Any]

CONFIDENCE = 0.95
# Values below which nothing is said about how far they spread.
FEWEST = 3
# What each suite's providers are compared with.
BASES = {"model": PLAIN, "kernels": EAGER, "scaling": JOINT, "data": MODEL}


@dataclass(frozen=True)
class Ratio:
    """Time over the other's time: `value`, and its spread `low` … `high`, from `count` visits (of one visit: rounds).

    The rounds of one visit run on the same tensors, and spread less than visits do.
    """

    value: float
    low: float
    high: float
    count: int
    visits: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """`low`, `high`; None where there are too few values for one."""
        return None if self.count < FEWEST else (self.low, self.high)

    @property
    def verdict(self) -> str:
        """In words: "faster", "slower", "the same", "within the spread", or that there are too few samples to say."""
        if round(self.value, 2) == 1:
            return "the same"
        if self.interval is None:
            return "a single sample" if self.count == 1 else "two samples"
        return "faster" if self.high < 1 else "slower" if self.low > 1 else "within the spread"

    def agrees(self, other: Ratio) -> bool | None:
        """Whether the spreads of two measurements touch; None where one of them has none."""
        if self.interval is None or other.interval is None:
            return None
        return self.low <= other.high and other.low <= self.high


def ratio(row: Row, base: Row) -> Ratio:
    """Of two providers of one case and pass, of the visits and rounds that both were measured in."""
    rounds = [own / other for own, other in zip(row["samples_ms"], base["samples_ms"], strict=False)]
    # Documents of before visits have all their rounds in one.
    length = row.get("samples_a_visit", len(rounds))
    visits = [statistics.median(rounds[start : start + length]) for start in range(0, len(rounds), length)]
    values = visits if len(visits) > 1 else rounds
    low, high = median_interval(values)
    return Ratio(statistics.median(values), low, high, len(values), len(visits))


def median_interval(values: list[float]) -> tuple[float, float]:
    """The innermost pair of values, as many from either end, that holds the true median with 95% probability.

    Of five or fewer values it is the outermost pair, whose probability is less: 94% of five, 75% of three.
    """
    ordered = sorted(values)
    count = len(ordered)

    def outside(left_out: int) -> float:
        beyond = sum(math.comb(count, index) for index in range(left_out + 1))
        return math.ldexp(beyond, 1 - count)

    left_out = 0
    while left_out + 1 <= (count - 1) // 2 and outside(left_out + 1) <= 1 - CONFIDENCE:
        left_out += 1
    return ordered[left_out], ordered[-1 - left_out]


def base_of(rows: list[Row], row: Row) -> Row | None:
    """The row that a row is compared with, or None where it has no figure."""
    keys = ("suite", "case", "pass")
    found = (
        other
        for other in rows
        if other["provider"] == BASES[row["suite"]]
        and other["median_ms"] is not None
        and all(other[key] == row[key] for key in keys)
    )
    return next(found, None)


def ratios(document: dict[str, Any]) -> dict[Key, Ratio]:
    """(suite, case, provider, pass) → ratio, of everything that was measured beside its base."""
    found: dict[Key, Ratio] = {}
    for row in document["rows"]:
        base = base_of(document["rows"], row)
        if base is not None and base is not row and row["median_ms"] is not None:
            found[row["suite"], row["case"], row["provider"], row["pass"]] = ratio(row, base)
    return found

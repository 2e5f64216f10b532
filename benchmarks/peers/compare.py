"""Two sets of runs: mean, spread, and Welch's interval of the difference. Called by `benchmarks.peers`.

Also the table of docs/peers.md. Knows no model and no library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Difference:
    """`mean` of ours minus theirs, with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Where the interval lies."""
        if self.low > 0:
            return "ours ahead"
        return "ours behind" if self.high < 0 else "no difference shown"


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Welch's t interval for runs of unequal variance. Raises ValueError for fewer than two runs on a side."""
    if min(len(ours), len(theirs)) < 2:
        raise ValueError(f"{len(ours)} and {len(theirs)} runs: an interval needs at least two seeds on each side")
    left, right = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    parts = np.array([left.var(ddof=1) / len(left), right.var(ddof=1) / len(right)])
    mean, error = float(left.mean() - right.mean()), float(np.sqrt(parts.sum()))
    if error == 0:
        return Difference(mean, mean, mean)
    freedom = parts.sum() ** 2 / (parts**2 / [len(left) - 1, len(right) - 1]).sum()
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return Difference(mean, mean - reach, mean + reach)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def signed(difference: Difference) -> str:
    """The difference with its interval."""
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; numbers to the right would not survive a narrow page, so all columns are left."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_measured(page: Path, measured: str) -> None:
    """Puts what was measured between the page's two marks. Raises ValueError for a page without them."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: no place for the table; write the lines {BEGIN} and {END} where it belongs")
    page.write_text(f"{before}{BEGIN}\n{measured}\n{END}{after}", encoding="utf-8")

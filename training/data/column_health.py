"""Shares of missing values and constant columns of a shop's feature columns, counted while they stream past.

Called by `prepare_logs` and `log_items`. Missing includes NaN and infinity, which are no values (`log_tables`).
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from training.data.errors import DataError


@dataclass
class _Column:
    n_rows: int = 0
    n_missing: int = 0
    first: object = None
    varies: bool = False


class ColumnHealth:
    """Counts per column; `check` stops the preparation when too much is missing."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def add(self, name: str, values: pa.Array) -> None:
        """Counts the next values of a column."""
        column = self._columns.setdefault(name, _Column())
        column.n_rows += len(values)
        column.n_missing += values.null_count
        known = values.drop_null()
        if not len(known) or column.varies:
            return
        if column.first is None:
            column.first = known[0].as_py()
        column.varies = not pc.all(pc.equal(known, pa.scalar(column.first, known.type))).as_py()

    def check(self, max_missing: float) -> None:
        """Raises one DataError naming every column whose share of missing values is above `max_missing`."""
        bad = [
            f"{name}: {column.n_missing / column.n_rows:.1%} of {column.n_rows} rows"
            for name, column in self._columns.items()
            if column.n_rows and column.n_missing / column.n_rows > max_missing
        ]
        if bad:
            raise DataError(
                f"values missing (empty, NaN or infinite) in more than {max_missing:.0%} of the rows: "
                + "; ".join(bad)
                + ". Repair the columns, leave them out of the mapping, or allow more with --max-missing."
            )

    def report(self) -> dict[str, object]:
        """Missing shares of columns with any, and the names of columns that hold one value only."""
        columns = self._columns.items()
        return {
            "missing": {name: round(c.n_missing / c.n_rows, 6) for name, c in columns if c.n_missing},
            "constant": [name for name, c in columns if c.n_rows > 1 and not c.varies],
        }

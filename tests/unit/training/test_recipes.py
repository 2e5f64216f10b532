"""What all rows of a table share: the published attention unit, and one budget however many stages a model has."""

import pytest

from training.recipes import TABLES
from training.rows import ROWS

every_table = pytest.mark.parametrize("table", TABLES)


@every_table
def test_attention_is_the_published_unit_in_every_row(table: str) -> None:
    configs = [row.config(TABLES[table].size) for row in ROWS.values()]
    units = [config.attention for config in configs if hasattr(config, "attention")]
    assert len(units) > 10
    assert set(units) == {"mlp"}

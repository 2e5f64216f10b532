"""What all rows of a table share: the published attention unit, and one budget however many stages a model has."""

from typing import Any

import pytest

from training.models import spec_of
from training.recipes import TABLES
from training.rows import ROWS

every_table = pytest.mark.parametrize("table", TABLES)


@every_table
def test_attention_is_the_published_unit_in_every_row(table: str) -> None:
    configs = [row.config(TABLES[table].size) for row in ROWS.values()]
    units = [config.attention for config in configs if hasattr(config, "attention")]
    assert len(units) > 10
    assert set(units) == {"mlp"}


def epochs_of(config: Any) -> int:
    """Passes over a table's training requests, clicked ones or all; a stage that replaces others takes theirs."""
    stages = spec_of(config).stages(config)
    parts = [part for stage in stages for part in (stage.as_long_as or (stage,))]
    return sum(stage.max_epochs for stage in parts)


@every_table
def test_every_row_spends_the_whole_budget_but_no_more(table: str) -> None:
    size = TABLES[table].size
    spent = {name: epochs_of(row.config(size)) for name, row in ROWS.items()}
    # Of its ablations, one has no intent to learn from labels and one nothing but the joint stage.
    assert {name for name, n in spent.items() if n != size.epochs} == {"daian_no_uim", "daian_no_die"}
    assert max(spent.values()) == size.epochs


@every_table
def test_what_serves_gets_half_of_a_teachers_budget(table: str) -> None:
    config = ROWS["tarq_lite"].config(TABLES[table].size)
    assert config.student_epochs == config.teacher_epochs == 2


@every_table
def test_daian_spends_half_of_it_on_all_requests(table: str) -> None:
    config = ROWS["daian"].config(TABLES[table].size)
    parts = [(stage.requests, stage.max_epochs) for stage in spec_of(config).stages(config)]
    assert parts == [("clicked", 1), ("clicked", 1), ("all", 2)]

"""The distance to the best rival stands in the report with both of its intervals: over users, and over seeds too."""

from typing import Any

from training import report_sections
from training.report_page import Table
from training.report_sections import INTERVALS
from training.report_tests import AGAINST_BEST, OVER_SEEDS

OVER_USERS = {"difference": 0.0043, "low": 0.0017, "high": 0.0068, "p": 0.001, "p_holm": 0.002}
WIDER = {"difference": 0.0043, "low": -0.0009, "high": 0.0092, "p": 0.1}


def intervals_column(against: dict[str, Any] | None) -> str:
    row = {"title": "DAIAN", "group": "daian", "intervals": {}, "rela_impr_interval": None}
    if against is not None:
        row[AGAINST_BEST] = against
    found = {"rows": {"daian": row}, "judged_title": "AUC/request"}
    (part,) = [part for part, title, _ in report_sections._PARTS if title == INTERVALS]
    (table,) = [block for block in part(found) if isinstance(block, Table)]
    assert table.header[-1] == "against best rival"
    return table.rows[1][-1]


def test_the_interval_over_seeds_is_the_one_of_the_intervals() -> None:
    assert intervals_column({**OVER_USERS, OVER_SEEDS: WIDER}) == "+0.0043 [-0.0009, +0.0092]"


def test_the_rival_itself_and_a_row_of_one_seed_have_none() -> None:
    assert intervals_column(None) == "–"
    assert intervals_column(OVER_USERS) == "–"

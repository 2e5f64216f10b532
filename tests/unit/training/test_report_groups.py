"""An ablation's cost with both of its intervals: over these weights' users, and over seeds too."""

from typing import Any

from training.report_groups import ablations
from training.report_page import Table
from training.report_tests import AGAINST_WHOLE, OVER_SEEDS

OVER_USERS = {"difference": 0.0124, "low": 0.0085, "high": 0.0163, "p": 0.002, "p_holm": 0.004}
WIDER = {"difference": 0.0124, "low": -0.0048, "high": 0.0205, "p": 0.08}


def row(title: str, **more: Any) -> dict[str, Any]:
    return {"title": title, "numbers": {"auc": {"mean": 0.6, "sd": 0.01}}, "ablation_of": None, **more}


def cells_of(test: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = {"dian": row("DIAN"), "dian_mean": row("w/o Net", ablation_of="dian", **{AGAINST_WHOLE: test})}
    blocks = ablations({"rows": rows, "judged_by": "auc", "judged_title": "AUC"})
    return next(block.rows for block in blocks if isinstance(block, Table))


def test_both_intervals_stand_beside_each_other() -> None:
    whole, ablation = cells_of({**OVER_USERS, OVER_SEEDS: WIDER})[1:]
    assert whole[2:] == ("–", "–")
    assert ablation[2:] == ("+0.0124 [+0.0085, +0.0163] p 0.0020 *", "+0.0124 [-0.0048, +0.0205]")


def test_one_seed_has_the_interval_over_users_alone() -> None:
    assert cells_of(OVER_USERS)[2][3] == "–"

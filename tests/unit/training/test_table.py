"""The table: models first, dashes for what was not measured, and the lines that no model beats."""

import math

from training.table import not_beaten_by, ranking_table, strongest_line

LINE = {"auc": 0.6, "gauc_user": 0.61, "gauc_request": 0.62, "auc_per_request": 0.63}


def line(auc_per_request: float) -> dict[str, float]:
    return {**LINE, "auc_per_request": auc_per_request}


def rows(numbers: dict[str, dict[str, float]]) -> list[str]:
    return ranking_table(numbers).splitlines()[1:]


def test_models_stand_first_and_lines_have_their_words() -> None:
    model = {**line(0.7), "log_loss": 0.1, "intent_kl": 1.0}
    table = rows({"click_rate": {**LINE, "log_loss": 0.2}, "daian_demo": model})
    assert table[0].split() == ["daian_demo", "0.6000", "0.6100", "0.6200", "0.7000", "0.1000"]
    assert table[1].startswith("the candidate's click rate  ")
    assert table[1].split()[-5:] == ["0.6000", "0.6100", "0.6200", "0.6300", "0.2000"]
    assert table[-1] == "daian_demo: intent_kl 1.0000"


def test_a_line_that_is_not_beaten_is_marked() -> None:
    table = rows({"m": line(0.7), "click_rate": line(0.6999), "pair_rate": line(0.7), "cosine_trigger": line(0.8)})
    assert ["not beaten" in row for row in table[:4]] == [False, False, True, True]


def test_of_several_models_those_that_fail_are_named() -> None:
    table = rows({"good": line(0.7), "bad": line(0.6), "click_rate": line(0.65), "pair_rate": line(0.75)})
    assert table[2].endswith("  not beaten by bad")
    assert table[3].endswith("  not beaten")


def test_what_was_not_measured_is_a_dash_and_beats_nothing() -> None:
    nothing = dict.fromkeys(LINE, math.nan)
    numbers = {"m": {**nothing, "rela_impr_gauc_request": math.nan}, "click_rate": nothing}
    assert "nan" not in ranking_table(numbers).lower()
    assert rows(numbers)[0].split() == ["m", "-", "-", "-", "-", "-"]
    assert not_beaten_by("click_rate", ["m"], numbers) == []


def test_lines_alone_are_not_judged() -> None:
    assert "not beaten" not in ranking_table({"click_rate": LINE, "pair_rate": LINE})


def test_the_strongest_line_knows_no_goal_and_is_no_control_and_goes_by_the_given_number() -> None:
    by_two = {"auc_per_request": 0.6, "gauc_request": 0.9}
    lines = {
        "cosine_history": line(0.7),
        "click_rate": by_two,
        "cosine_random": line(0.9),
        "logit_all_goal": line(0.95),
    }
    lines["cosine_goal"] = line(0.8)
    lines["m"] = line(0.99)
    assert strongest_line(lines, "auc_per_request") == "cosine_history"
    assert strongest_line(lines, "gauc_request") == "click_rate"
    assert strongest_line({"m": line(0.9), "pair_rate": line(math.nan)}, "auc_per_request") is None

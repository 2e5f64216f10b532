"""Sections behind the ranking: each oracle's share stands in the report, and nothing is said that nobody measured."""

from typing import Any

from training.report_inside import as_by_clicks, inside, intent_shares, oracle, true_intents
from training.report_page import Block, Figure, Heading, Table


def spread(mean: float) -> dict[str, float]:
    return {"mean": mean, "sd": float("nan"), "low": mean, "high": mean, "n": 1}


def three(mean: float) -> dict[str, dict[str, float]]:
    return {key: spread(mean) for key in ("auc", "gauc_user", "gauc_request")}


def row(**more: Any) -> dict[str, Any]:
    return {"title": "DAIAN", "numbers": {}, "inside": {}, **more}


def cells(blocks: list[Block]) -> list[tuple[str, ...]]:
    return [line for block in blocks if isinstance(block, Table) for line in (block.header, *block.rows)]


ORACLES = {name: {"auc": 0.7, "gauc_user": 0.71, "gauc_request": 0.72} for name in ("attractiveness", "with_position")}


def test_the_share_of_every_oracle_is_said() -> None:
    shares = {"attractiveness": three(0.5), "with_position": three(0.25)}
    said = cells(list(oracle({"oracle": ORACLES, "rows": {"daian": row(oracle_shares=shares)}})))
    assert ("attractiveness", "0.7000", "0.7100", "0.7200") in said
    assert said[said.index(("share of attractiveness", "AUC", "GAUC user", "GAUC request")) + 1][1] == "0.500"
    assert said[said.index(("share of with position", "AUC", "GAUC user", "GAUC request")) + 1][1] == "0.250"
    assert not any("JS" in cell for line in said for cell in line), "no intent was predicted"


def test_intents_stand_beside_the_true_ones() -> None:
    near = {"specific": {"js_of_means": spread(0.03)}}
    shares = dict.fromkeys(ORACLES, three(0.5))
    found = {"oracle": ORACLES, "rows": {"daian": row(oracle_shares=shares, intent_to_truth=near)}}
    assert ("DAIAN", "0.0300", "–") in cells(list(oracle(found)))


def kind(n: int = 7, **more: Any) -> dict[str, Any]:
    sides = {"predicted": [0.25, 0.75], "observed": [0.5, 0.5], **more}
    return {"n_requests": n, "js_of_means": 0.01, "js_per_request": 0.3, **sides}


def drawn(blocks: list[Block]) -> str:
    return "".join(block.svg for block in blocks if isinstance(block, Figure))


def test_the_truth_is_a_third_series_and_all_that_is_drawn_is_in_a_table() -> None:
    true = kind(true=[0.125, 0.875], js_to_true=0.02)
    blocks = list(intent_shares({"all": true, "specific_by_clicks": true, "broad": kind(0)}))
    assert "specific by clicks: JS 0.0100, to the truth 0.0200" in drawn(blocks)
    for side, shares in (("predicted", (0.25, 0.75)), ("observed", (0.5, 0.5)), ("true", (0.125, 0.875))):
        assert all(f"{side}, {level}: {share:.4f}" in drawn(blocks) for level, share in enumerate(shares, start=1))
        assert (f"specific by clicks, {side}", *(f"{share:.4f}" for share in shares)) in cells(blocks)
    assert ("specific by clicks", "7", "0.0100", "0.0200", "0.3000") in cells(blocks)
    assert "drawn as broad" not in str(cells(blocks)), "nobody is in it"


def test_without_a_truth_two_series_stand_there_under_the_names_of_what_they_are() -> None:
    blocks = list(intent_shares(as_by_clicks({"all": kind(), "specific": kind(), "broad": kind(0)})))
    assert ("specific by clicks, observed", "0.5000", "0.5000") in cells(blocks)
    assert "true" not in str(cells(blocks)[1:])
    assert ">true<" not in drawn(blocks)
    assert list(intent_shares({})) == []


def test_where_no_user_is_specific_or_broad_all_of_them_still_are_there() -> None:
    """Of people who hardly come back nobody's kind is known, as on Wikispeedia."""
    said = cells(list(intent_shares(as_by_clicks({"all": kind(), "specific": kind(0), "broad": kind(0)}))))
    assert said[1] == ("all", "7", "0.0100", "–", "0.3000")
    assert ("all, predicted", "0.2500", "0.7500") in said


def test_a_run_alone_has_the_same_figures_where_the_truth_is_known() -> None:
    blocks = list(
        true_intents({"rows": {"m": row(true_intent={"broad": kind(true=[0, 1], js_to_true=0)}), "n": row()}})
    )
    assert [b.text for b in blocks if isinstance(b, Heading)] == [
        "Predicted, observed and true intent: DAIAN (DAIAN, Fig. 5)"
    ]
    assert ("drawn as broad, true", "0.0000", "1.0000") in cells(blocks)


def test_data_without_a_truth_and_models_without_gates_have_no_such_section() -> None:
    found = {"rows": {"din": row()}}
    assert list(oracle(found)) == []
    assert list(inside(found)) == []
    gates = row(inside={"trigger_gate": {"all": spread(0.5), "cold": spread(float("nan"))}})
    blocks = list(inside({"rows": {"daian": gates}}))
    assert blocks[0] == Heading("Inside the models")
    assert ("DAIAN", "trigger gate", "0.5000", "–", "–", "–", "–") in cells(blocks)


def test_gates_and_their_differences_are_said_with_their_spread() -> None:
    two = {"mean": 0.5, "sd": 0.25, "low": 0.25, "high": 0.75, "n": 2}
    found = row(inside={"gate_explicit": {"all": two}}, contrasts={"gate_explicit": {**two, "low": -0.25}})
    said = cells(list(inside({"rows": {"daian": found}})))
    assert ("DAIAN", "gate explicit", "0.5000 ± 0.2500", "–", "–", "–", "–") in said
    assert ("DAIAN", "gate explicit, specific minus broad", "+0.5000 ± 0.2500", "-0.2500", "+0.7500") in said

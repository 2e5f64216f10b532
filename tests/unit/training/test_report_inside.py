"""Sections behind the ranking: each oracle's share stands in the report, and nothing is said that nobody measured."""

from typing import Any

from training.report_inside import inside, oracle
from training.report_page import Block, Heading, Table


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

"""Claims are held, not held or not decided; one that a constant passes is never held."""

from typing import Any

import pytest

from training.report_claims import claims


def js(low: float, high: float, n: int = 2) -> dict[str, float]:
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": n}


def row(low: float, high: float, **changed: Any) -> dict[str, Any]:
    test = {"difference": (low + high) / 2, "low": low, "high": high, "p": 0.5}
    plain = {"title": "X", "is_rival": True, "n_seeds": 2, "failure": None, "numbers": {}, "daian_minus_this": test}
    return {**plain, **changed}


def daian(**changed: Any) -> dict[str, Any]:
    return {"title": "DAIAN", "is_rival": False, "n_seeds": 2, "failure": None, "numbers": {}, **changed}


def held(rows: dict[str, Any]) -> dict[str, bool | None]:
    return {c["text"]: c["held"] for c in claims({"rows": rows, "judged_title": "GAUC request"})}


@pytest.mark.parametrize(
    ("rival", "expected"),
    [
        (row(0.01, 0.02), True),
        (row(-0.02, -0.01), False),
        (row(-0.01, 0.02), None),
        (row(0.01, 0.02, n_seeds=1), None),
        (row(0.01, 0.02, failure="seed-2: out of memory"), None),
        ({"title": "X", "is_rival": True, "n_seeds": 0, "failure": "no"}, None),
    ],
)
def test_a_difference_is_decided_by_its_interval_seeds_and_failures(rival: Any, expected: bool | None) -> None:
    found = held({"daian": daian(), "x": rival})
    assert found["DAIAN is ahead of X in GAUC request"] is expected
    assert found["DAIAN is ahead of every rival in GAUC request"] is expected


def test_one_lost_rival_refutes_and_one_open_rival_leaves_open() -> None:
    text = "DAIAN is ahead of every rival in GAUC request"
    assert held({"daian": daian(), "a": row(0.1, 0.2), "b": row(-0.1, 0.2)})[text] is None
    assert held({"daian": daian(), "a": row(-0.2, -0.1), "b": row(-0.1, 0.2)})[text] is False


@pytest.mark.parametrize(
    ("found", "constant", "expected"),
    [
        (js(0.01, 0.02), 0.023, True),
        (js(0.03, 0.04), 0.023, False),  # below 0.082, yet a constant is nearer: the claim must not be held
        (js(0.03, 0.04), 0.05, True),  # the saboteur: only the constant differs
        (js(0.02, 0.03), 0.023, None),
        (js(0.09, 0.10), 0.20, False),
        (js(0.01, 0.02, n=1), 0.023, None),
    ],
)
def test_the_intent_must_beat_the_training_mean(found: Any, constant: float, expected: bool | None) -> None:
    constants = {"specific": {"uniform": 0.053, "training_mean": constant}}
    rows = {"daian": daian(intent_to_truth={"specific": {"js_of_means": found}}, constants_to_truth=constants)}
    (claim,) = [c for c in claims({"rows": rows, "judged_title": ""}) if "hidden" in c["text"]]
    assert claim["held"] is expected
    assert "uniform 0.0530" in claim["evidence"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (js(0.01, 0.02), True),
        (js(-0.02, -0.01), False),
        (js(-0.01, 0.02), None),  # the saboteur: its mean alone lies on the claim's side
        (js(0.01, 0.02, n=1), None),
        (js(float("nan"), float("nan"), n=0), None),
    ],
)
def test_the_norm_ratio_and_the_gates_are_decided_by_the_range_over_seeds(found: Any, expected: bool | None) -> None:
    rows = {"daian": daian(contrasts={"norm_ratio": found, "gates": found})}
    decided = held(rows)
    assert [decided[text] for text in decided if text.startswith(("The norm ratio", "Gates move"))] == [expected] * 2


@pytest.mark.parametrize(
    ("low", "high", "n_seeds", "expected"),
    [(0.01, 0.02, 2, True), (-0.02, -0.01, 2, False), (-0.01, 0.02, 2, None), (0.01, 0.02, 1, None)],
)
def test_the_gain_by_diversity_is_decided_by_its_slope(
    low: float, high: float, n_seeds: int, expected: bool | None
) -> None:
    test = {"difference": (low + high) / 2, "low": low, "high": high, "p": 0.5}
    rows = {"daian": daian(over_base_by_diversity={"slope": test}), "din": row(0.1, 0.2, n_seeds=n_seeds)}
    (claim,) = [c for c in claims({"rows": rows, "judged_title": ""}) if "diversity" in c["text"]]
    assert claim["held"] is expected
    assert f"{low:+.4f} to {high:+.4f}" in claim["evidence"]


def test_what_was_not_measured_is_claimed_and_not_decided() -> None:
    for rows in ({"daian": daian()}, {}):
        found = claims({"rows": rows, "judged_title": ""})
        (norm, gates, gain) = found[-3:]
        assert [claim["held"] for claim in (norm, gates, gain)] == [None] * 3
        assert all("not measured" in claim["evidence"] for claim in (norm, gates, gain))

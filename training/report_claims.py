"""The papers' claims, each held, not held or not decided on the data of a comparison. Called by
`training.report_numbers`.

Not decided: the interval holds what would refute the claim and what would bear it out, fewer than two seeds were
trained, or a rival failed. Differences are decided by the interval over users and seeds.
"""

import math
from collections.abc import Mapping
from typing import Any

from training.report_tests import AGAINST_DAIAN, AGAINST_PERMUTED, AGAINST_WHOLE, OVER_SEEDS

JS_LIMIT = 0.082  # DAIAN section 5: divergence of the mean intents of specific users
ORACLE_SHARE = 0.85
DAIAN = "daian"
TABLE_2 = ("daian_no_uim", "daian_no_die", "daian_no_sein", "daian_one_stage")
FEWEST_SEEDS = 2
# Who is specific, and what the predicted mean is held against.
_SPECIFIC = {
    "specific": "drawn from the hidden specific population, against true click shares",
    "specific_by_clicks": "specific by their training clicks, against true click shares",
}
_OBSERVED = "specific by their training clicks, against observed labels"


def claims(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict a claim: text, held (None: not decided), and in `evidence` what it rests on."""
    rows, what = found["rows"], found["judged_title"]
    daian = rows.get(DAIAN, {})
    rivals = [row for row in rows.values() if row["is_rival"]]
    ahead = [_difference(f"DAIAN is ahead of {row['title']} in {what}", row, AGAINST_DAIAN, daian) for row in rivals]
    costs = [
        _difference(f"{rows[name]['title']} costs {what}", rows[name], AGAINST_WHOLE, daian)
        for name in TABLE_2
        if name in rows
    ]
    trigger = _difference(f"DAIAN needs the true trigger: a random one costs {what}", daian, AGAINST_PERMUTED, daian)
    return [
        _all(f"DAIAN is ahead of every rival in {what}", ahead),
        *ahead,
        *costs,
        *([trigger] if daian else []),
        *_intents(daian),
        _share(daian),
    ]


def _difference(text: str, row: Mapping[str, Any], kind: str, daian: Mapping[str, Any]) -> dict[str, Any]:
    test = row.get(kind)
    if test is None:
        missing = row.get("failure") or ("DAIAN was not trained" if "numbers" not in daian else "not measured")
        return _claim(text, None, missing)
    evidence = f"{test['difference']:+.4f}, 95 % interval {test['low']:+.4f} to {test['high']:+.4f}, p {test['p']:.4f}"
    decides = test.get(OVER_SEEDS, test)
    if decides is not test:
        evidence += f"; over seeds too {decides['low']:+.4f} to {decides['high']:+.4f}"
    if row.get("failure"):
        return _claim(text, None, f"{evidence}; but a run failed: {row['failure']}")
    if min(row["n_seeds"], daian["n_seeds"]) < FEWEST_SEEDS:
        return _claim(text, None, f"{evidence}; but fewer than {FEWEST_SEEDS} seeds")
    return _claim(text, True if decides["low"] > 0 else False if decides["high"] < 0 else None, evidence)


def _all(text: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    held = [part["held"] for part in parts]
    n_held, n_not, n_open = held.count(True), held.count(False), held.count(None)
    decided = False if n_not else None if n_open or not parts else True
    return _claim(text, decided, f"of {len(parts)} rivals: {n_held} held, {n_not} not held, {n_open} not decided")


def _intents(daian: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One claim for each meaning of "specific" and of "truth"."""
    truth, constants = daian.get("intent_to_truth", {}), daian.get("constants_to_truth", {})
    found = [
        _intent(of, truth.get(kind, {}).get("js_of_means"), constants.get(kind, {})) for kind, of in _SPECIFIC.items()
    ]
    observed = daian.get("constants_to_observed", {}).get("specific", {})
    return [*found, _intent(_OBSERVED, daian.get("intent_js_specific"), observed)]


def _intent(of: str, js: Mapping[str, float] | None, constants: Mapping[str, float]) -> dict[str, Any]:
    text = f"JS of the mean intent of users {of}: at most {JS_LIMIT}, and below that of the training mean"
    if js is None or math.isnan(js["mean"]):
        return _claim(text, None, "no truth is known of this data, or no intent was predicted")
    named = "; ".join(f"constant {name.replace('_', ' ')} {value:.4f}" for name, value in constants.items())
    evidence = _range(js) + (f"; {named}" if named else "")
    bar = constants.get("training_mean")
    if js["n"] < FEWEST_SEEDS or bar is None:
        return _claim(text, None, f"{evidence}; fewer than {FEWEST_SEEDS} seeds, or no constant to compare with")
    if js["high"] <= JS_LIMIT and js["high"] < bar:
        return _claim(text, True, evidence)
    return _claim(text, False if js["low"] > JS_LIMIT or js["low"] >= bar else None, evidence)


def _share(row: Mapping[str, Any]) -> dict[str, Any]:
    text = f"DAIAN has at least {ORACLE_SHARE:.0%} of the oracle's AUC gain over chance"
    share = row.get("oracle_share", {}).get("auc")
    if share is None:
        return _claim(text, None, "no truth is known of this data, or DAIAN was not trained")
    if share["n"] < FEWEST_SEEDS:
        return _claim(text, None, f"{_range(share)}; fewer than {FEWEST_SEEDS} seeds")
    held = True if share["low"] >= ORACLE_SHARE else False if share["high"] < ORACLE_SHARE else None
    return _claim(text, held, _range(share))


def _claim(text: str, held: bool | None, evidence: str) -> dict[str, Any]:
    return {"text": text, "held": held, "evidence": evidence}


def _range(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.4f}, over {found['n']} seeds {found['low']:.4f} to {found['high']:.4f}"

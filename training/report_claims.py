"""The papers' claims, each held, not held or not decided on the data of a comparison. Called by
`training.report_numbers`.

Not decided: the interval holds what would refute the claim and what would bear it out, fewer than two seeds were
trained, or a rival failed. Differences are decided by the interval over users and seeds; intents, the oracle's share,
the norm ratio and the gates by the range over seeds.
"""

import math
from collections.abc import Mapping
from typing import Any

from training.report_contrasts import GATES, NORM_RATIO
from training.report_diversity import OVER_BASE
from training.report_tests import AGAINST_DAIAN, AGAINST_PERMUTED, AGAINST_WHOLE, OVER_SEEDS

JS_LIMIT = 0.082  # DAIAN section 5: divergence of the mean intents of specific users
ORACLE_SHARE = 0.85
DAIAN, BASE = "daian", "din"
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
        _norm_ratio(daian),
        _gates(daian),
        _diversity(daian, rows.get(BASE, {})),
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


def _norm_ratio(daian: Mapping[str, Any]) -> dict[str, Any]:
    """DAIAN eq. 13: an id that was hardly trained is short, and the vector speaks in its place."""
    text = "The norm ratio favours vectors for cold items: their semantic share is above that of warm ones"
    return _contrast(text, daian, NORM_RATIO, "cold minus warm")


def _gates(daian: Mapping[str, Any]) -> dict[str, Any]:
    text = "Gates move with intent: of explicit, against implicit, interest specific visitors get more than broad ones"
    parts = daian.get("contrasts", {})
    each = "; ".join(
        f"{name.replace('_', ' ')} specific minus broad {_range(parts[name])}"
        for name in ("gate_explicit", "gate_implicit")
        if name in parts
    )
    return _contrast(text, daian, GATES, f"{each}; the first minus the second")


def _contrast(text: str, daian: Mapping[str, Any], kind: str, what: str) -> dict[str, Any]:
    found = daian.get("contrasts", {}).get(kind)
    if found is None or math.isnan(found["mean"]):
        return _claim(text, None, "not measured: DAIAN was not trained, has no such part, or nobody is in one group")
    if found["n"] < FEWEST_SEEDS:
        return _claim(text, None, f"{what} {_range(found)}; fewer than {FEWEST_SEEDS} seeds")
    return _claim(text, True if found["low"] > 0 else False if found["high"] < 0 else None, f"{what} {_range(found)}")


def _diversity(daian: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Fig. 6: the gain in GAUC per user is the larger, the more categories a user clicks."""
    text = "DAIAN's gain over DIN in GAUC user grows with intent diversity"
    test = daian.get(OVER_BASE, {}).get("slope")
    if test is None or math.isnan(test["low"]):
        return _claim(text, None, "not measured: DAIAN or DIN was not trained, or users do not differ in diversity")
    evidence = (
        f"by each further leaf category {test['difference']:+.4f}, 95 % interval over users and seeds "
        f"{test['low']:+.4f} to {test['high']:+.4f}"
    )
    if min(daian["n_seeds"], base["n_seeds"]) < FEWEST_SEEDS:
        return _claim(text, None, f"{evidence}; but fewer than {FEWEST_SEEDS} seeds")
    return _claim(text, True if test["low"] > 0 else False if test["high"] < 0 else None, evidence)


def _claim(text: str, held: bool | None, evidence: str) -> dict[str, Any]:
    return {"text": text, "held": held, "evidence": evidence}


def _range(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.4f}, over {found['n']} seeds {found['low']:.4f} to {found['high']:.4f}"

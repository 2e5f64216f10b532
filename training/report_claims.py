"""The papers' claims, each held or not held on the data of a comparison. Called by `training.report_numbers`."""

from collections.abc import Mapping
from typing import Any

JS_LIMIT = 0.082  # DAIAN section 5: divergence of the mean intents of specific users
ORACLE_SHARE = 0.85
DAIAN = "daian"
TABLE_2 = ("daian_no_uim", "daian_no_die", "daian_no_sein", "daian_one_stage")
_NO_RIVALS = ("daian", "ablation", "levels")


def claims(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict a claim: text, held (None: cannot be told here), and in `evidence` what it rests on."""
    rows = found["rows"]
    rivals = [name for name, row in rows.items() if row["group"] not in _NO_RIVALS]
    ahead = [_difference(f"DAIAN is ahead of {rows[name]['title']} in GAUC", rows[name]) for name in rivals]
    costs = [_difference(f"{rows[name]['title']} costs GAUC", rows[name]) for name in TABLE_2 if name in rows]
    return [
        _all("DAIAN is ahead of every rival in GAUC", ahead),
        *ahead,
        *costs,
        _intent(rows.get(DAIAN, {})),
        _share(rows.get(DAIAN, {})),
    ]


def _difference(text: str, row: Mapping[str, Any]) -> dict[str, Any]:
    test = row.get("daian_minus_this")
    if test is None:
        return {"text": text, "held": None, "evidence": row.get("failure") or "DAIAN was not trained"}
    evidence = f"{test['difference']:+.4f}, 95 % interval {test['low']:+.4f} to {test['high']:+.4f}"
    return {"text": text, "held": bool(test["low"] > 0), "evidence": evidence}


def _all(text: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    told = [part for part in parts if part["held"] is not None]
    n_held = sum(part["held"] for part in told)
    held = n_held == len(told) if told else None
    return {"text": text, "held": held, "evidence": f"of {n_held} of {len(told)} rivals that were trained"}


def _intent(row: Mapping[str, Any]) -> dict[str, Any]:
    text = f"JS of the mean intent of specific users to the truth is at most {JS_LIMIT}"
    js = row.get("intent_to_truth", {}).get("specific", {}).get("js_of_means")
    if js is None:
        return {"text": text, "held": None, "evidence": "no truth is known of this data, or no intent was predicted"}
    return {"text": text, "held": bool(js["high"] <= JS_LIMIT), "evidence": _range(js)}


def _share(row: Mapping[str, Any]) -> dict[str, Any]:
    text = f"DAIAN has at least {ORACLE_SHARE:.0%} of the oracle's AUC gain over chance"
    share = row.get("oracle_share", {}).get("auc")
    if share is None:
        return {"text": text, "held": None, "evidence": "no truth is known of this data, or DAIAN was not trained"}
    return {"text": text, "held": bool(share["low"] >= ORACLE_SHARE), "evidence": _range(share)}


def _range(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.4f}, over {found['n']} seeds {found['low']:.4f} to {found['high']:.4f}"

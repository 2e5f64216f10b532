"""An evaluation as text: tables of Markdown, which a terminal shows as well. Called by `daian evaluate`.

Numbers come from `training.evaluate`; nothing is computed here. A dash stands for what was not measured.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluate import Evaluation
from training.table import ranking_table

_RANKING = {
    "auc": "AUC",
    "gauc_user": "GAUC per user",
    "gauc_request": "GAUC per request",
    "auc_per_request": "AUC per request, plain mean",
    "ndcg_at_5": "NDCG@5",
    "ndcg_at_10": "NDCG@10",
    "log_loss": "log-loss",
}
_CALIBRATION = {"ece": "expected calibration error", "copc": "clicks over predicted clicks"}
_TOP = {
    "levels": "similarity levels",
    "leaves": "leaf categories",
    "trigger_leaf": "share in the trigger's leaf category",
    "cosine": "mean cosine of pairs",
}
_KINDS = {"all": "all users", "specific": "specific intent", "broad": "broad intent"}


def evaluation_text(evaluation: Evaluation) -> str:
    """The whole report of one run, as Markdown."""
    sections = [
        [f"# {evaluation.run} on {evaluation.split} of {evaluation.data}"],
        [f"**Another data set.** {warning}" for warning in evaluation.warnings],
        ["```", ranking_table(evaluation.numbers), "```"],
        [f"- {test['sentence']}" for test in evaluation.tests],
        *(ranker_sections(name, measures) for name, measures in evaluation.measures.items()),
        ["In brackets: 95 % intervals from resampled users. docs/metrics.md says what each number is."],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def write_text_report(evaluation: Evaluation, path: Path) -> None:
    """The same into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(evaluation_text(evaluation), encoding="utf-8")


def ranker_sections(name: str, measures: Mapping[str, Any]) -> list[str]:
    """The tables of one ranker, those that were measured."""
    parts = {
        "ranking": lambda found: _list(found, _RANKING),
        "calibration": _calibration,
        "by_item": lambda found: _groups("items", found),
        "by_user": lambda found: _groups("users", found),
        "by_intent_diversity": lambda found: _groups("other leaf categories clicked", found),
        "top": _top,
        "by_level": _levels,
        "intent": _intents,
    }
    lines = [f"## {name}"]
    for part, shown in parts.items():
        if part in measures:
            lines += ["", *shown(measures[part])]
    return lines


def _list(found: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    return _table(["", ""], [[title, _cell(found[key])] for key, title in titles.items() if key in found])


def _calibration(found: Mapping[str, Any]) -> list[str]:
    rows = [[f"{bar['n']:,}", f"{bar['predicted']:.4f}", _cell(bar["click_rate"])] for bar in found["reliability"]]
    return [*_list(found, _CALIBRATION), "", *_table(["candidates", "predicted", "click rate"], rows)]


def _groups(title: str, found: Mapping[str, Any]) -> list[str]:
    """Rows of groups; AUC only where it was measured."""
    keys = [key for key in ("gauc_user", "gauc_request", "auc") if any(key in group for group in found.values())]
    rows = [
        [name, f"{group['n_users']:,}", f"{group['n_candidates']:,}", *(_cell(group[key]) for key in keys)]
        for name, group in found.items()
    ]
    return _table([title, "users", "candidates", *(_RANKING[key] for key in keys)], rows)


def _top(found: Mapping[str, Any]) -> list[str]:
    title = f"first {found['k']} of {found['n_pages']:,} pages with more candidates"
    return _table([title, ""], [[_TOP[key], _cell(found[key])] for key in _TOP if key in found])


def _levels(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            str(level["level"]) if level["level"] else "no vector",
            _plain(level["from"]),
            f"{level['n_candidates']:,}",
            _cell(level["click_rate"]),
            _cell(level["predicted"]),
        ]
        for level in found
    ]
    return _table(["similarity level", "from", "candidates", "click rate", "predicted"], rows)


def _intents(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [_KINDS[kind], f"{part['n_requests']:,}", _cell(part["js_of_means"]), _cell(part["js_per_request"])]
        for kind, part in found.items()
        if part["n_requests"]
    ]
    return _table(["intent", "requests", "JS of the means", "JS per request"], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, padded so that its columns also stand below each other."""
    widths = [max(3, *(len(row[place]) for row in [titles, *rows])) for place in range(len(titles))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    head = "| " + " | ".join(cell.ljust(width) for cell, width in zip(titles, widths, strict=True)) + " |"
    return [head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines]


def _cell(number: Mapping[str, float]) -> str:
    if math.isnan(number["value"]):
        return "-"
    if math.isnan(number["low"]):
        return f"{number['value']:.4f}"
    return f"{number['value']:.4f} [{number['low']:.4f}, {number['high']:.4f}]"


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"

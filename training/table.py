"""The table of models beside the counting lines, as text and as cells.

Printed by `daian baselines` and `daian demo`; `training.evaluation_report` takes the cells. Which line is the strongest
is said here once, for `training.evaluate` and for comparisons.
"""

import math
from collections.abc import Mapping, Sequence

from training.baselines import LINES

Numbers = Mapping[str, Mapping[str, float]]

JUDGED_BY = "auc_per_request"
_COLUMNS = {
    "auc": "AUC",
    "gauc_user": "GAUC user",
    "gauc_request": "GAUC request",
    JUDGED_BY: "AUC/request",
    "log_loss": "log-loss",
}
LEGEND = "GAUC: mean AUC of users or requests by impressions; AUC/request: plain mean; log-loss only of probabilities."
_NO_LINES = ("cosine_random",)
_CELL = 6  # 0.7401


def ranking_table(numbers: Numbers) -> str:
    """Rankers in rows, models first; a dash for what was not measured; at the end who does not beat a line."""
    header, *rows = ranking_cells(numbers)
    width = max(len(row[0]) for row in rows)
    lines = [" " * width + "".join(_beside(title, title) for title in header[1:-1])]
    for name, *cells, verdict in rows:
        shown = "".join(_beside(cell, title) for cell, title in zip(cells, header[1:-1], strict=True))
        lines.append((name.ljust(width) + shown + "  " + verdict).rstrip())
    return "\n".join([*lines, LEGEND, *remarks(numbers)])


def ranking_cells(numbers: Numbers, judged_by: str = JUDGED_BY) -> list[tuple[str, ...]]:
    """The same as cells of text: a row of titles, then a row for each ranker. `judged_by`: by what a line is beaten."""
    models = [name for name in numbers if name not in LINES]
    header = ("", *_COLUMNS.values(), "")
    rows = [
        (
            LINES.get(name, name),
            *(_cell(numbers[name], key) for key in _COLUMNS),
            "" if name in models else _verdict(name, models, numbers, judged_by),
        )
        for name in [*models, *(name for name in LINES if name in numbers)]
    ]
    return [header, *rows]


def remarks(numbers: Numbers) -> list[str]:
    """A line for every model that has numbers without a column."""
    return [line for name in numbers if name not in LINES for line in _more(name, numbers[name])]


def strongest_line(numbers: Numbers, judged_by: str) -> str | None:
    """The counting line with the highest number; None without any.

    Lines that know a request's goal are left out, for no shop has one, and so is the control with a random trigger.
    """
    known = {
        name: found[judged_by]
        for name, found in numbers.items()
        if name in LINES and name not in _NO_LINES and "goal" not in name and not math.isnan(found[judged_by])
    }
    return max(known, key=lambda name: known[name]) if known else None


def not_beaten_by(line: str, models: Sequence[str], numbers: Numbers, judged_by: str = JUDGED_BY) -> list[str]:
    """The models whose number is not above the line's; none where either was not measured."""
    value = numbers[line][judged_by]
    return [model for model in models if numbers[model][judged_by] <= value]


def _verdict(line: str, models: Sequence[str], numbers: Numbers, judged_by: str) -> str:
    stronger = not_beaten_by(line, models, numbers, judged_by)
    if not stronger:
        return ""
    return "not beaten" if len(stronger) == len(models) else "not beaten by " + ", ".join(stronger)


def _more(name: str, found: Mapping[str, float]) -> list[str]:
    """What only a model has, by its key, in a line of its own."""
    rest = {key: value for key, value in found.items() if key not in _COLUMNS and not math.isnan(value)}
    return [f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in rest.items())] if rest else []


def _beside(text: str, title: str) -> str:
    return "  " + text.rjust(max(len(title), _CELL))


def _cell(found: Mapping[str, float], key: str) -> str:
    value = found.get(key, math.nan)
    return "-" if math.isnan(value) else f"{value:.4f}"

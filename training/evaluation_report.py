"""What the report of one run says, section by section, as blocks of `training.report_page`. Called by `daian evaluate`.

One list of blocks makes the terminal's text, the Markdown and the HTML. Numbers come from `training.evaluate`; nothing
is computed here. A bundle that was scored as well stands beside the run. A dash stands for what was not measured.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.whole_files import write_whole
from training.evaluate import JUDGES, Evaluation
from training.figures import bars, lines
from training.report_groups import control
from training.report_inside import inside, oracle, true_intents
from training.report_page import Block, Figure, Heading, Paragraph, Table, html, markdown
from training.table import LEGEND, ranking_cells, remarks

WRITERS = {".md": markdown, ".html": html}

Measures = Mapping[str, Mapping[str, Any]]  # by ranker: training.measures.measure
Rows = Iterator[tuple[str, ...]]

_RANKING = {
    "auc": "AUC",
    "gauc_user": "GAUC per user",
    "gauc_request": "GAUC per request",
    "auc_per_request": "AUC per request, plain mean",
    "ndcg_at_5": "NDCG@5",
    "ndcg_at_10": "NDCG@10",
    "log_loss": "log-loss",
    "rela_impr_gauc_request": "RelaImpr of GAUC per request over the click rate, %",
}
_CALIBRATION = {"ece": "expected calibration error", "copc": "clicks over predicted clicks"}
_TOP = {
    "levels": "similarity levels",
    "leaves": "leaf categories",
    "trigger_leaf": "share in the trigger's leaf category",
    "cosine": "mean cosine of pairs",
}
_KINDS = {"all": "all users", "specific": "specific intent", "broad": "broad intent"}
_GROUPED = ("gauc_user", "gauc_request", "auc")


def evaluation_title(evaluation: Evaluation) -> str:
    """What was measured on what."""
    return f"{evaluation.run} on {evaluation.split} of {evaluation.data}"


def evaluation_blocks(evaluation: Evaluation) -> list[Block]:
    """The whole report of one run; sections that the data or the model cannot have are left out."""
    parts: tuple[Callable[[Measures], Iterator[Block]], ...] = (
        _ranking, _calibration, _levels, _intents, _diversity, _new_and_known, _top,
    )  # fmt: skip
    end = Paragraph(
        "In brackets: 95 % intervals from resampled users: what other users of the same days would have given. What "
        "another training from another seed would give is not in them. docs/metrics.md says what each number is."
    )
    measured = [block for part in parts for block in part(evaluation.measures)]
    return [*_about(evaluation), *measured, *_behind(evaluation), *_latency(evaluation), end]


def evaluation_text(evaluation: Evaluation) -> str:
    """The report as Markdown, which a terminal shows as well."""
    return markdown(evaluation_title(evaluation), evaluation_blocks(evaluation))


def write_evaluation_report(evaluation: Evaluation, path: Path) -> None:
    """The report into a file whose ending, a key of WRITERS, says of which kind it is."""
    text = WRITERS[path.suffix](evaluation_title(evaluation), evaluation_blocks(evaluation))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def _about(evaluation: Evaluation) -> Iterator[Block]:
    for warning in evaluation.warnings:
        yield Paragraph(f"Warning: {warning}")
    header, *rows = ranking_cells(evaluation.numbers, evaluation.judged_by)
    yield Table(header, tuple(rows))
    yield Paragraph(f"{LEGEND} Judged by {JUDGES[evaluation.judged_by]}.")
    sentences = [test["sentence"] for test in evaluation.tests]
    for text in [*remarks(evaluation.numbers), *sentences, *evaluation.notes, *_cost(evaluation)]:
        yield Paragraph(text)


def _cost(evaluation: Evaluation) -> Iterator[str]:
    """Parameters and training time of the run; of a bundle beside it nobody knows them."""
    if not evaluation.cost:
        return
    n, took = evaluation.cost["parameters"], evaluation.cost["training"]
    yield f"{evaluation.run}: {n['tables'] + n['network']:,} parameters, {n['tables']:,} of them in embedding tables."
    if "missing" in took:
        yield f"How long it trained is not known: {took['missing']}."
    elif "cpu_seconds" in took:
        yield f"It trained for {took['seconds']:,.0f} s ({took['cpu_seconds']:,.0f} s of processor time)."
    else:
        sittings = f" in {took['sittings']} sittings" if took["sittings"] > 1 else ""
        yield f"It trained for {took['seconds']:,.0f} s{sittings}, by the times of the points of its curves."


def _behind(evaluation: Evaluation) -> Iterator[Block]:
    """As a comparison's report has it: under random triggers, against the oracle, gates and shares."""
    if not evaluation.behind:
        return
    yield from control(evaluation.behind)
    yield from oracle(evaluation.behind)
    yield from true_intents(evaluation.behind)
    yield from inside(evaluation.behind)
    if len(evaluation.behind["rows"]) > 1:
        yield Paragraph("Only the run is looked into and timed, not the bundle beside it.")


def _latency(evaluation: Evaluation) -> Iterator[Block]:
    found = evaluation.latency
    if not found:
        return
    yield Heading("Latency of the exported graphs")
    if "missing" in found:
        yield Paragraph(f"Not measured: {found['missing']}.")
        return
    yield Paragraph(
        f"{evaluation.run}: {found['median_ms']:.2f} ms, the median of {found['n_repetitions']} requests of "
        f"{found['n_candidates']} candidates and {found['n_behaviours']} behaviours, one thread, on this machine."
    )


def _ranking(measures: Measures) -> Iterator[Block]:
    found = _with(measures, "ranking")
    if found:
        yield Heading("Ranking")
        yield _of_rankers(("", *found), _RANKING, found)


def _calibration(measures: Measures) -> Iterator[Block]:
    found = _with(measures, "calibration")
    if not found:
        return
    yield Heading("Reliability: what is predicted, and what is clicked")
    points = {
        name: [(bar["predicted"], bar["click_rate"]["value"]) for bar in part["reliability"]]
        for name, part in found.items()
    }
    yield Figure(lines("click rate by predicted click rate", points, "predicted", diagonal=True))
    yield _of_rankers(("", *found), _CALIBRATION, found)

    def rows(part: Mapping[str, Any]) -> Rows:
        for bar in part["reliability"]:
            yield f"{bar['n']:,}", f"{bar['predicted']:.4f}", _cell(bar["click_rate"])

    yield Table(("candidates", "predicted", "click rate"), _below_each_other(found, rows))


def _levels(measures: Measures) -> Iterator[Block]:
    """Levels are those of the run, so what was clicked is the same for all rankers and drawn once."""
    found = _with(measures, "by_level")
    if not found:
        return
    yield Heading("Click rate by similarity level")
    first = next(iter(found.values()))
    labels = [_level(part["level"]) for part in first]
    numbers = {"clicked": [part["click_rate"] for part in first]}
    for name, levels in found.items():
        numbers[f"predicted, {name}"] = [part["predicted"] for part in levels]
    title = "click rate and mean prediction by similarity level"
    yield Figure(bars(title, labels, _values(numbers), intervals=_ends(numbers)))
    rows = [
        (
            _level(part["level"]),
            "-" if math.isnan(part["from"]) else f"{part['from']:.3f}",
            f"{part['n_candidates']:,}",
            _cell(part["click_rate"]),
            *(_cell(levels[at]["predicted"]) for levels in found.values()),
        )
        for at, part in enumerate(first)
    ]
    header = ("similarity level", "from", "candidates", "clicked", *(f"predicted, {name}" for name in found))
    yield Table(header, tuple(rows))


def _level(number: int) -> str:
    return str(number) if number else "no vector"


def _intents(measures: Measures) -> Iterator[Block]:
    found = _with(measures, "intent")
    if not found:
        return
    yield Heading("Predicted and observed intent (DAIAN, Fig. 5)")
    for name, kinds in found.items():
        yield from _intent_figures(name, kinds)

    def rows(kinds: Mapping[str, Any]) -> Rows:
        for kind, part in _measured(kinds).items():
            yield _KINDS[kind], f"{part['n_requests']:,}", _cell(part["js_of_means"]), _cell(part["js_per_request"])

    header = ("users", "requests with a click", "JS of the means", "JS per request")
    yield Table(header, _below_each_other(found, rows))
    for name, kinds in found.items():
        yield _intent_shares(name, kinds)


def _intent_figures(name: str, kinds: Mapping[str, Any]) -> Iterator[Block]:
    for kind in ("specific", "broad"):
        part = kinds[kind]
        if part["n_requests"]:
            labels = [str(level + 1) for level in range(len(part["predicted"]))]
            title = f"{name}: users of {_KINDS[kind]}, JS {part['js_of_means']['value']:.4f}"
            yield Figure(bars(title, labels, {"predicted": part["predicted"], "observed": part["observed"]}))


def _intent_shares(name: str, kinds: Mapping[str, Any]) -> Table:
    """What the figures draw, as cells: rankers may have different numbers of levels, so each has a table."""
    rows = [
        (f"{_KINDS[kind]}, {side}", *(f"{share:.4f}" for share in part[side]))
        for kind, part in _measured(kinds).items()
        for side in ("predicted", "observed")
    ]
    n_levels = len(kinds["all"]["predicted"])
    return Table((f"{name}, by level", *(str(level + 1) for level in range(n_levels))), tuple(rows))


def _measured(kinds: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: part for kind, part in kinds.items() if part["n_requests"]}


def _diversity(measures: Measures) -> Iterator[Block]:
    found = _with(measures, "by_intent_diversity")
    if not found:
        return
    yield Heading("GAUC by intent diversity (DAIAN, Fig. 6)")
    first = next(iter(found.values()))
    there = [group for group in first if first[group]["n_candidates"]]
    numbers = {name: [groups[group]["gauc_user"] for group in there] for name, groups in found.items()}
    title = "GAUC per user, by other leaf categories clicked"
    yield Figure(bars(title, there, _values(numbers), zero=False, intervals=_ends(numbers)))
    yield _groups("other leaf categories clicked", found)


def _new_and_known(measures: Measures) -> Iterator[Block]:
    shown = {"by_item": "item", "by_user": "user"}
    parts = {title: _with(measures, part) for part, title in shown.items()}
    if any(parts.values()):
        yield Heading("New and known items and users")
    for title, found in parts.items():
        if found:
            yield _groups(title, found)


def _groups(title: str, found: Measures) -> Table:
    """Rows of groups; AUC only where it was measured."""
    keys = [key for key in _GROUPED if any(key in group for part in found.values() for group in part.values())]

    def rows(part: Mapping[str, Any]) -> Rows:
        for name, group in part.items():
            counts = (f"{group['n_users']:,}", f"{group['n_candidates']:,}")
            yield name, *counts, *(_cell(group[key]) for key in keys)

    return Table((title, "users", "candidates", *(_RANKING[key] for key in keys)), _below_each_other(found, rows))


def _top(measures: Measures) -> Iterator[Block]:
    found = _with(measures, "top")
    if not found:
        return
    yield Heading("The first of a page")
    first = next(iter(found.values()))
    title = f"first {first['k']} of {first['n_pages']:,} pages with more candidates"
    yield _of_rankers((title, *found), _TOP, found)


def _with(measures: Measures, part: str) -> dict[str, Any]:
    """The rankers of which a part was measured."""
    return {name: found[part] for name, found in measures.items() if part in found}


def _of_rankers(header: tuple[str, ...], titles: Mapping[str, str], found: Mapping[str, Any]) -> Table:
    """A row for every number that some ranker has, a column for every ranker."""
    keys = [key for key in titles if any(key in part for part in found.values())]
    rows = [(titles[key], *(_cell(part[key]) if key in part else "-" for part in found.values())) for key in keys]
    return Table(header, tuple(rows))


def _below_each_other(found: Mapping[str, Any], rows: Callable[[Any], Rows]) -> tuple[tuple[str, ...], ...]:
    """The rows of each ranker, below its name where there are several."""
    return tuple(row for name, part in found.items() for row in [*([(name,)] if len(found) > 1 else []), *rows(part)])


def _values(numbers: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[float]]:
    return {name: [number["value"] for number in found] for name, found in numbers.items()}


def _ends(numbers: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[tuple[float, float]]]:
    return {name: [(number["low"], number["high"]) for number in found] for name, found in numbers.items()}


def _cell(number: Mapping[str, float]) -> str:
    if math.isnan(number["value"]):
        return "-"
    if math.isnan(number["low"]):
        return f"{number['value']:.4f}"
    return f"{number['value']:.4f} [{number['low']:.4f}, {number['high']:.4f}]"

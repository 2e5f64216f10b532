"""What the report of a comparison says, section by section, as blocks of `training.report_page`.

Called by `training.report` with what `training.report_numbers` made. What was not measured is a dash.
"""

from collections.abc import Callable, Iterator

from training.baselines import LINES
from training.figures import bars, lines
from training.report_cells import COLUMNS, Numbers, difference, gain, plain, plus_minus, trained
from training.report_diversity import OVER_BASE
from training.report_groups import ablations, control, first_of_a_page, new_and_known
from training.report_inside import inside, oracle
from training.report_numbers import BASE
from training.report_page import Block, Figure, Heading, Paragraph, Table

DAIAN = "daian"
_HELD = {True: "held", False: "not held", None: "not decided"}


def sections(found: Numbers) -> list[Block]:
    """The whole report."""
    parts: tuple[Callable[[Numbers], Iterator[Block]], ...] = (
        _about, _table, _costs, _claims, _counting, control, oracle, _intents, _diversity, new_and_known,
        first_of_a_page, _levels, ablations, _click_rates, inside, _failures,
    )  # fmt: skip
    return [block for part in parts for block in part(found)]


def _about(found: Numbers) -> Iterator[Block]:
    about = found["comparison"]
    sizes = "; ".join(
        f"{split}: {n['requests']:,} requests, {n['clicks']:,} clicks" for split, n in about["sizes"].items()
    )
    yield Paragraph(f"Data {about['data']} ({sizes}). Machine: {about['machine']}.")
    how = searched([row["tried"] for row in trained(found).values()])
    yield Paragraph(
        f"{how}, then up to {_most_seeds(found)} seeds. Numbers are of the test split: mean ± standard "
        "deviation over seeds."
    )
    yield from mixed_code(found)


def mixed_code(found: Numbers) -> Iterator[Block]:
    """A warning where the runs of a report were made by different code."""
    codes = sorted({code for row in trained(found).values() for code in row["code_sha256"]})
    if len(codes) > 1:
        named = ", ".join(code[:12] for code in codes)
        yield Paragraph(f"Mixed: runs were made by different code ({named}); compare such rows with care.")


def searched(tried: list[list[float]]) -> str:
    """The learning rates that were run, as the runs recorded them."""
    rates = ", ".join(f"{rate:g}" for rate in sorted({rate for one in tried for rate in one})) or "unknown"
    counts = sorted({len(one) for one in tried})
    if counts[-1:] in ([], [0], [1]):
        return f"No search: learning rates of {rates}"
    if len(counts) == 1:
        return f"Every row: {counts[0]} settings tried on validation, learning rates of {rates}"
    return f"Rows were searched differently: {counts[0]} to {counts[-1]} settings tried on validation, of {rates}"


def _most_seeds(found: Numbers) -> int:
    return max((row["n_seeds"] for row in found["rows"].values()), default=0)


def _table(found: Numbers) -> Iterator[Block]:
    yield Heading("The table")
    header = ("", "seeds", *COLUMNS.values(), "RelaImpr", "against best rival", "")
    most, judged = _most_seeds(found), found["judged_title"]
    yield Table(header, tuple(_grouped(found, lambda row: _cells(row, most))))
    rival = found["best_rival"]
    named = found["rows"][rival]["title"] if rival else "none"
    yield Paragraph(
        "GAUC is weighted by impressions, AUC/request is a plain mean. "
        f"Everything is judged by {judged}; RelaImpr: of it over DIN's, in %. Best rival by {judged} on the validation "
        f"split: {named}; differences to it are paired over users, with 95 % intervals and p; * where p, adjusted by "
        "Holm over this column, is below 0.05. How much seeds differ is not in these intervals, but in the ±."
    )


def _grouped(found: Numbers, cells: Callable[[Numbers], tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    groups = dict.fromkeys(row["group"] for row in found["rows"].values())
    for group in groups:
        members = [row for row in found["rows"].values() if row["group"] == group]
        yield (group,)
        for row in members:
            yield (row["title"], *cells(row))


def _cells(row: Numbers, most: int) -> tuple[str, ...]:
    if "numbers" not in row:
        return ("0", *["–"] * (len(COLUMNS) + 2), f"failed: {row['failure']}")
    numbers = [plus_minus(row["numbers"][name]) for name in COLUMNS]
    marks = ["below counting"] if row["below_counting"] else []
    if row["n_seeds"] < most:
        marks.append("fewer seeds")
    if row["failure"]:
        marks.append(f"a seed failed: {row['failure']}")
    return (
        str(row["n_seeds"]),
        *numbers,
        plain(row["rela_impr"], "+.2f"),
        difference(row.get("against_best_rival")),
        ", ".join(marks),
    )


def _costs(found: Numbers) -> Iterator[Block]:
    yield Heading("What it costs")
    header = (
        "",
        "learning rate",
        "steps",
        "training, CPU s",
        "parameters",
        "of them tables",
        "latency ms",
        "ratio to DIN",
    )
    yield Table(header, tuple(_grouped(found, _cost_cells)))
    yield Paragraph(
        "Latency: both exported graphs, one request of 100 candidates and 50 behaviours, one thread, median of in-turn "
        "repetitions. Training time is that of the seeds that were not interrupted."
    )


def _cost_cells(row: Numbers) -> tuple[str, ...]:
    if "numbers" not in row:
        return ("–",) * 7
    n = row["n_parameters"]
    return (
        plain(row["learning_rate"], "g"),
        f"{row['n_steps']:,}",
        plus_minus(row["cpu_seconds"], ".1f"),
        f"{n['tables'] + n['network']:,}",
        f"{n['tables']:,}",
        plain(row.get("latency_ms"), ".2f"),
        plain(row.get("latency_ratio"), ".2f"),
    )


def _claims(found: Numbers) -> Iterator[Block]:
    yield Heading("The papers' claims on this data")
    rows = [(claim["text"], _HELD[claim["held"]], claim["evidence"]) for claim in found["claims"]]
    yield Table(("claim", "", "on what grounds"), tuple(rows))
    yield Paragraph(
        "The first interval of a difference is over users alone: what these trained weights would show on other users "
        "of the same days. Claims go by the second, in which seeds are drawn too: what another training would give."
    )


def _counting(found: Numbers) -> Iterator[Block]:
    yield Heading("Counting alone")
    shown = [name for name in COLUMNS if name not in ("ndcg_at_10", "ece", "copc")]
    rows = [
        (LINES[name], *(plain(line.get(key)) for key in shown), "strongest" if name == found["strongest_line"] else "")
        for name, line in found["lines"].items()
    ]
    yield Table(("", *(COLUMNS[name] for name in shown), ""), tuple(rows))
    below = [row["title"] for row in trained(found).values() if row["below_counting"]]
    yield Paragraph(
        f"Not above the strongest of them in {found['judged_title']}: " + (", ".join(below) or "no row") + "."
    )


def _intents(found: Numbers) -> Iterator[Block]:
    kinds = found["rows"].get(DAIAN, {}).get("intent", {})
    shown = [kind for kind in ("specific", "broad") if kinds.get(kind, {}).get("n_requests")]
    if not shown:
        return
    yield Heading("Predicted and observed intent (DAIAN, Fig. 5)")
    for kind in shown:
        part = kinds[kind]
        labels = [str(level + 1) for level in range(len(part["predicted"]))]
        series = {"predicted": part["predicted"], "observed": part["observed"]}
        yield Figure(bars(f"{kind} users, JS {part['js_of_means']:.4f}", labels, series))
    rows = [
        (
            kind,
            f"{kinds[kind]['n_requests']:,.0f}",
            plain(kinds[kind]["js_of_means"]),
            plain(kinds[kind]["js_per_request"]),
        )
        for kind in shown
    ]
    yield Table(("users", "requests with a click", "JS of means", "mean JS per request"), tuple(rows))


def _diversity(found: Numbers) -> Iterator[Block]:
    rows = {row["title"]: row for row in trained(found).values() if row.get(OVER_BASE)}
    if not rows:
        return
    yield Heading("GAUC over DIN by intent diversity (Fig. 6)")
    base = found["rows"][BASE]["by_intent_diversity"]
    gains = {title: row[OVER_BASE]["groups"] for title, row in rows.items()}
    groups = list(next(iter(gains.values())))
    series = {title: [of[group]["difference"] for group in groups] for title, of in gains.items()}
    ends = {title: [(of[group]["low"], of[group]["high"]) for group in groups] for title, of in gains.items()}
    yield Figure(bars("gain in GAUC per user over DIN", groups, series, intervals=ends))
    cells = [
        (group, plain(_candidates(base, group), ",.0f"), *(gain(of[group]) for of in gains.values()))
        for group in groups
    ]
    slopes = ("by each further category", "", *(gain(row[OVER_BASE]["slope"]) for row in rows.values()))
    yield Table(("leaf categories besides the trigger's", "candidates", *gains), (*cells, slopes))
    yield Paragraph(
        "95 % intervals over users and seeds. The last line: the slope of users' gains, weighted by impressions. Users "
        "of whom the last week tells nothing are in no group."
    )


def _candidates(base: Numbers, group: str) -> float | None:
    return base[group]["n_candidates"]["mean"] if group in base else None


def _levels(found: Numbers) -> Iterator[Block]:
    rows = trained(found)
    swept = {row["n_levels"]: row for row in rows.values() if row["group"] == "levels"}
    if not swept:
        return
    if DAIAN in rows:
        swept[found["comparison"]["n_levels"]] = rows[DAIAN]
    yield Heading("Number of similarity levels (Fig. 7)")
    points = {
        key: [(float(n), swept[n]["numbers"][key]["mean"]) for n in sorted(swept)]
        for key in dict.fromkeys((found["judged_by"], "gauc_user"))
    }
    yield Figure(lines("DAIAN by number of levels", {COLUMNS[key]: found for key, found in points.items()}, "n"))
    cells = [(str(n), *(plus_minus(swept[n]["numbers"][key]) for key in points)) for n in sorted(swept)]
    yield Table(("n", *(COLUMNS[key] for key in points)), tuple(cells))


def _click_rates(found: Numbers) -> Iterator[Block]:
    rows = trained(found)
    names = [name for name in dict.fromkeys((DAIAN, BASE, found["best_rival"])) if name in rows]
    if not names:
        return
    yield Heading("Click rate by similarity level, and reliability")
    levels = rows[names[0]]["by_level"]
    labels = ["no vector" if part["level"] == 0 else f"{part['level']:.0f}" for part in levels]
    series = {"clicked": [part["click_rate"] for part in levels]}
    same = [name for name in names if len(rows[name]["by_level"]) == len(levels)]
    series |= {rows[name]["title"]: [part["predicted"] for part in rows[name]["by_level"]] for name in same}
    yield Figure(bars("click rate and mean prediction by level", labels, series))
    points = {
        rows[name]["title"]: [(p["predicted"], p["click_rate"]) for p in rows[name]["reliability"]] for name in names
    }
    yield Figure(lines("reliability (first seed)", points, "predicted", diagonal=True))
    cells = [
        (label, plain(part["from"], ".3f"), f"{part['n_candidates']:,.0f}", *(plain(v[at]) for v in series.values()))
        for at, (label, part) in enumerate(zip(labels, levels, strict=True))
    ]
    yield Table(
        ("similarity level", "from", "candidates", "clicked", *(f"predicted, {n}" for n in list(series)[1:])),
        tuple(cells),
    )
    yield Paragraph(
        "Clicked: clicks over impressions of the level on the test split; predictions are means over seeds."
    )


def _failures(found: Numbers) -> Iterator[Block]:
    failed = [(row["title"], row["failure"]) for row in found["rows"].values() if row["failure"]]
    notes = [(row["title"], note) for row in trained(found).values() for note in row["notes"]]
    if failed or notes:
        yield Heading("Failures and notes")
        yield Table(("", "what happened"), tuple(failed + notes))

"""What the report of a comparison says, section by section, as blocks of `training.report_page`.

Called by `training.report` with what `training.report_numbers` made. What was not measured is a dash.
"""

from collections.abc import Callable, Iterator

from training.baselines import LINES
from training.report_cells import COLUMNS, Numbers, bracketed, difference, gain, plain, plus_minus, trained
from training.report_figures import CLICK_RATES, DIVERSITY, INTENTS, LEVELS, click_rates, diversity, intents, levels
from training.report_groups import ablations, control, first_of_a_page, new_and_known
from training.report_inside import inside, oracle
from training.report_page import Block, Heading, Paragraph, Table
from training.report_tests import AGAINST_BEST, OVER_SEEDS

INTERVALS = "Intervals of the table"
_HELD = {True: "held", False: "not held", None: "not decided"}


def sections(found: Numbers) -> list[Block]:
    """The whole report. A section that nothing was measured for is named at its end, with the reason."""
    blocks: list[Block] = []
    left_out: list[tuple[str, str]] = []
    for part, title, missing in _PARTS:
        made = list(part(found))
        blocks += made
        if missing and not made:
            left_out.append((title, missing))
    if left_out:
        blocks += [Heading("Not in this report"), Table(("section", "why"), tuple(left_out))]
    return blocks


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
        "Holm over this column, is below 0.05. How much seeds differ is not in these intervals, but in the ± and in "
        "the next table."
    )


def _intervals(found: Numbers) -> Iterator[Block]:
    yield Heading(INTERVALS)

    def cells(row: Numbers) -> tuple[str, ...]:
        of = row.get("intervals", {})
        against_best = (row.get(AGAINST_BEST) or {}).get(OVER_SEEDS)
        return (
            *(bracketed(of.get(name)) for name in COLUMNS),
            bracketed(row.get("rela_impr_interval"), "+.2f"),
            "–" if against_best is None else gain(against_best),
        )

    yield Table(("", *COLUMNS.values(), "RelaImpr", "against best rival"), tuple(_grouped(found, cells)))
    yield Paragraph(
        "95 % intervals of the means, over users and seeds: what another training would give on other users of the "
        f"same days. A row of one seed: over users alone. RelaImpr: of {found['judged_title']} over DIN's, in %. "
        f"Against the best rival: the difference in {found['judged_title']}, over users and seeds."
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
        difference(row.get(AGAINST_BEST)),
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
    if found.get("not_timed"):
        yield Paragraph(f"No latency: {found['not_timed']}.")
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


def _failures(found: Numbers) -> Iterator[Block]:
    failed = [(row["title"], row["failure"]) for row in found["rows"].values() if row["failure"]]
    notes = [(row["title"], note) for row in trained(found).values() for note in row["notes"]]
    if failed or notes:
        yield Heading("Failures and notes")
        yield Table(("", "what happened"), tuple(failed + notes))


# What makes a section; its title, and why there may be none of it (nothing: it is always there, or need not be).
_PARTS: tuple[tuple[Callable[[Numbers], Iterator[Block]], str, str], ...] = (
    (_about, "", ""),
    (_table, "The table", ""),
    (_intervals, INTERVALS, ""),
    (_costs, "What it costs", ""),
    (_claims, "The papers' claims on this data", ""),
    (_counting, "Counting alone", ""),
    (control, "Under the trigger of another request", ""),
    (oracle, "Against the oracle", "only a simulated world has a known truth"),
    (intents, INTENTS, "DAIAN has no finished run, or no request has a click to compare"),
    (
        diversity,
        DIVERSITY,
        "DIN and one of DAIAN, DIHN, DIAN and the best rival must be trained, items have a category",
    ),
    (new_and_known, "New and known items and users", "no row has these numbers"),
    (first_of_a_page, "The first of a page", "no row has these numbers, or no page is long enough"),
    (levels, LEVELS, "no other number of levels was trained: add some by --levels"),
    (ablations, "Ablations (DAIAN: Table 2)", "no ablation was trained beside its whole model"),
    (click_rates, CLICK_RATES, "neither DAIAN nor DIN nor a rival has a finished run"),
    (inside, "Inside the models", "no model with gates or shares has a finished run"),
    (_failures, "Failures and notes", ""),
)

"""Sections of a comparison's report that redraw the papers' figures: intents, diversity, levels, click rates.

Called by `training.report_sections` with what `training.report_numbers` made. All that is drawn is in a table below.
"""

from collections.abc import Iterator

from training.figures import bars, lines
from training.report_cells import COLUMNS, Numbers, gain, plain, plus_minus, trained
from training.report_diversity import OVER_BASE
from training.report_inside import as_by_clicks, intent_shares
from training.report_numbers import BASE, shown_by_diversity
from training.report_page import Block, Figure, Heading, Paragraph, Table

DAIAN = "daian"
INTENTS = "Predicted and observed intent (DAIAN, Fig. 5)"
DIVERSITY = "GAUC over DIN by intent diversity (Fig. 6)"
LEVELS = "Number of similarity levels (Fig. 7)"
CLICK_RATES = "Click rate by similarity level, and reliability"


def intents(found: Numbers) -> Iterator[Block]:
    """Mean predicted intents of specific and broad users beside what they clicked and, where it is known, the truth."""
    row = found["rows"].get(DAIAN, {})
    blocks = list(intent_shares(row.get("true_intent") or as_by_clicks(row.get("intent", {}))))
    if blocks:
        yield Heading(INTENTS)
        yield from blocks


def diversity(found: Numbers) -> Iterator[Block]:
    """What some rows gain over DIN, by how many categories a user clicks."""
    shown = [trained(found).get(name, {}) for name in shown_by_diversity(found["best_rival"])]
    rows = {row["title"]: row for row in shown if row.get(OVER_BASE)}
    if not rows:
        return
    yield Heading(DIVERSITY)
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
        "95 % intervals over users and seeds. The last line: the slope of users' gains, weighted by impressions, "
        "without those of whom the last week tells nothing (unknown)."
    )


def _candidates(base: Numbers, group: str) -> float | None:
    return base[group]["n_candidates"]["mean"] if group in base else None


def levels(found: Numbers) -> Iterator[Block]:
    """DAIAN by its number of similarity levels."""
    rows = trained(found)
    swept = {row["n_levels"]: row for row in rows.values() if row["group"] == "levels"}
    if not swept:
        return
    if DAIAN in rows:
        swept[found["comparison"]["n_levels"]] = rows[DAIAN]
    yield Heading(LEVELS)
    points = {
        key: [(float(n), swept[n]["numbers"][key]["mean"]) for n in sorted(swept)]
        for key in dict.fromkeys((found["judged_by"], "gauc_user"))
    }
    yield Figure(lines("DAIAN by number of levels", {COLUMNS[key]: found for key, found in points.items()}, "n"))
    cells = [(str(n), *(plus_minus(swept[n]["numbers"][key]) for key in points)) for n in sorted(swept)]
    yield Table(("n", *(COLUMNS[key] for key in points)), tuple(cells))


def click_rates(found: Numbers) -> Iterator[Block]:
    """What is clicked and what is predicted by similarity level, and the reliability curve."""
    rows = trained(found)
    names = [name for name in dict.fromkeys((DAIAN, BASE, found["best_rival"])) if name in rows]
    if not names:
        return
    yield Heading(CLICK_RATES)
    of_levels = rows[names[0]]["by_level"]
    labels = ["no vector" if part["level"] == 0 else f"{part['level']:.0f}" for part in of_levels]
    series = {"clicked": [part["click_rate"] for part in of_levels]}
    same = [name for name in names if len(rows[name]["by_level"]) == len(of_levels)]
    series |= {rows[name]["title"]: [part["predicted"] for part in rows[name]["by_level"]] for name in same}
    yield Figure(bars("click rate and mean prediction by level", labels, series))
    points = {
        rows[name]["title"]: [(p["predicted"], p["click_rate"]) for p in rows[name]["reliability"]] for name in names
    }
    yield Figure(lines("reliability (first seed)", points, "predicted", diagonal=True))
    cells = [
        (label, plain(part["from"], ".3f"), f"{part['n_candidates']:,.0f}", *(plain(v[at]) for v in series.values()))
        for at, (label, part) in enumerate(zip(labels, of_levels, strict=True))
    ]
    yield Table(
        ("similarity level", "from", "candidates", "clicked", *(f"predicted, {n}" for n in list(series)[1:])),
        tuple(cells),
    )
    yield Paragraph(
        "Clicked: clicks over impressions of the level on the test split; predictions are means over seeds."
    )

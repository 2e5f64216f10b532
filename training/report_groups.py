"""Sections of a comparison's report: the random trigger, ablations, new items and users, the first of a page.

Called by `training.report_sections` with what `training.report_numbers` made.
"""

from collections.abc import Iterator

from training.figures import bars
from training.report_cells import Numbers, difference, gain, plain, plus_minus, trained
from training.report_page import Block, Figure, Heading, Paragraph, Table
from training.report_tests import AGAINST_WHOLE, OVER_SEEDS

_TOP = {
    "levels": "similarity levels",
    "leaves": "leaf categories",
    "trigger_leaf": "in the trigger's leaf",
    "cosine": "mean cosine",
}


def control(found: Numbers) -> Iterator[Block]:
    """What every row loses under the trigger of another request."""
    yield Heading("Under the trigger of another request")
    judged = found["judged_by"]
    rows = [
        (
            row["title"],
            plus_minus(row["numbers"][judged]),
            plus_minus(row["random_trigger"]),
            plain(row["numbers"][judged]["mean"] - row["random_trigger"]["mean"], "+.4f"),
            difference(row.get("true_minus_random_trigger")),
        )
        for row in trained(found).values()
    ]
    yield Table(("", found["judged_title"], "with permuted triggers", "falls by", "paired over users"), tuple(rows))
    yield Paragraph(
        "Paired: 95 % intervals over users, not over seeds. A dash there: no scores under permuted triggers were kept."
    )


def ablations(found: Numbers) -> Iterator[Block]:
    """Every ablation beside the model that it is one of."""
    rows, judged, what = trained(found), found["judged_by"], found["judged_title"]
    parents = dict.fromkeys(row["ablation_of"] for row in rows.values() if row["ablation_of"] in rows)
    if not parents:
        return
    yield Heading("Ablations (DAIAN: Table 2)")
    cells: list[tuple[str, ...]] = []
    for parent in parents:
        family = [rows[parent], *(row for row in rows.values() if row["ablation_of"] == parent)]
        numbers = [row["numbers"][judged] for row in family]
        series, spreads = {what: [n["mean"] for n in numbers]}, {what: [n["sd"] for n in numbers]}
        titles = [row["title"] for row in family]
        yield Figure(bars(f"{rows[parent]['title']}: {what}", titles, series, spreads, zero=False))
        cells.append((f"{rows[parent]['title']} and its ablations",))
        cells += [(row["title"], plus_minus(n), *_cost(row)) for row, n in zip(family, numbers, strict=True)]
    yield Table(("", what, "whole model minus this", "over users and seeds"), tuple(cells))


def _cost(row: Numbers) -> tuple[str, str]:
    test = row.get(AGAINST_WHOLE) if row["ablation_of"] else None
    of_seeds = (test or {}).get(OVER_SEEDS)
    return difference(test), "–" if of_seeds is None else gain(of_seeds)


def new_and_known(found: Numbers) -> Iterator[Block]:
    """GAUC among cold and warm candidates, and of cold and warm users."""
    rows = {name: row for name, row in trained(found).items() if row["by_item"] or row["by_user"]}
    if not rows:
        return
    yield Heading("New and known items and users")
    sides = [(part, side) for part in ("by_item", "by_user") for side in ("cold", "warm")]
    header = ("GAUC request", *(f"{side} {part.removeprefix('by_')}s" for part, side in sides))
    cells = [
        (row["title"], *(plus_minus(row[part].get(side, {}).get("gauc_request")) for part, side in sides))
        for row in rows.values()
    ]
    counts = next(iter(rows.values()))
    n = [counts[part].get(side, {}).get("n_candidates", {}).get("mean") for part, side in sides]
    yield Table(header, (("candidates", *(plain(value, ",.0f") for value in n)), *cells))
    yield Paragraph(
        "Mean ± deviation over seeds, among the candidates of each side alone. Cold items: fewer than 20 training "
        "impressions; cold users: no training request."
    )


def first_of_a_page(found: Numbers) -> Iterator[Block]:
    """How diverse the first few of a page are."""
    rows = [row for row in trained(found).values() if row["top"]]
    if not rows:
        return
    keys = [key for key in _TOP if any(key in row["top"] for row in rows)]
    yield Heading("The first of a page")
    cells = [(row["title"], *(plus_minus(row["top"].get(key)) for key in keys)) for row in rows]
    yield Table((f"first {rows[0]['top']['k']['mean']:.0f} of a page", *(_TOP[key] for key in keys)), tuple(cells))
    yield Paragraph("Means over pages with more candidates, ± deviation over seeds. The cosine is that of pairs.")

"""Sections of a report that look behind the ranking: against the oracle of a simulated world, and inside the models.

Called by `training.report_sections` (a comparison) and `training.evaluation_report` (one run): one text for both.
"""

from collections.abc import Iterator

from training.report_cells import COLUMNS, Numbers, plain, plus_minus, trained
from training.report_page import Block, Heading, Paragraph, Table

_GROUPS = ("all", "specific", "broad", "cold", "warm")
_SHARES = ("auc", "gauc_user", "gauc_request")
_CONTRASTS = {
    "norm_ratio": "semantic share, cold minus warm",
    "gate_explicit": "gate explicit, specific minus broad",
    "gate_implicit": "gate implicit, specific minus broad",
    "gates": "the explicit one of these minus the implicit one",
}


def oracle(found: Numbers) -> Iterator[Block]:
    """What each oracle reaches, each row's share of its gain over chance, and its intents beside the true ones."""
    if "oracle" not in found:
        return
    yield Heading("Against the oracle")
    oracles = [(_named(name), *(plain(n[key]) for key in _SHARES)) for name, n in found["oracle"].items()]
    yield Table(("oracle", *(COLUMNS[key] for key in _SHARES)), tuple(oracles))
    rows = {name: row for name, row in trained(found).items() if "oracle_shares" in row}
    for name in found["oracle"]:
        cells = [
            (row["title"], *(plus_minus(row["oracle_shares"][name][key], ".3f") for key in _SHARES))
            for row in rows.values()
        ]
        yield Table((f"share of {_named(name)}", *(COLUMNS[key] for key in _SHARES)), tuple(cells))
    yield Paragraph(
        "Share of an oracle's gain over 0.5. Attractiveness knows the wish of the visit, which no model does; "
        "foreseeable knows all but that; with position also knows the places of the page, which logged clicks follow."
    )
    kinds = ("specific", "broad")
    near = [
        (row["title"], *(plus_minus(row["intent_to_truth"].get(kind, {}).get("js_of_means")) for kind in kinds))
        for row in rows.values()
        if "intent_to_truth" in row
    ]
    if near:
        yield Table(("intent", *(f"JS, {kind} users" for kind in kinds)), tuple(near))
        yield Paragraph("JS in nats, of mean predicted intents to mean true click shares.")


def inside(found: Numbers) -> Iterator[Block]:
    """Means of gates and shares by group of candidates; nothing where no model has any."""
    rows = [
        (row["title"], name.replace("_", " "), *(plus_minus(means.get(group)) for group in _GROUPS))
        for row in trained(found).values()
        for name, means in row["inside"].items()
    ]
    if not rows:
        return
    yield Heading("Inside the models")
    yield Table(("", "mean over candidates", *_GROUPS), tuple(rows))
    yield from _contrasts(found)
    yield Paragraph(
        "specific, broad: the visitor's true kind where the data tell it; else at least half of the request's "
        "clicks in the highest level, or in the two lowest. cold: fewer than 20 training impressions. A gate "
        "of 1 lets an interest through as it is; the semantic share is the norm ratio of DAIAN's eq. 13."
    )


def _contrasts(found: Numbers) -> Iterator[Block]:
    """Differences between groups within each seed; a run alone has none."""
    rows = [
        (row["title"], says, *_ends(row["contrasts"][name]))
        for row in trained(found).values()
        for name, says in _CONTRASTS.items()
        if name in row.get("contrasts", ())
    ]
    if rows:
        yield Table(("", "difference within a seed", "mean ± deviation", "lowest", "highest"), tuple(rows))


def _ends(found: Numbers) -> tuple[str, str, str]:
    return plus_minus(found, "+.4f"), plain(found["low"], "+.4f"), plain(found["high"], "+.4f")


def _named(oracle: str) -> str:
    return oracle.replace("_", " ")

"""Sections of a report that look behind the ranking: against the oracle of a simulated world, and inside the models.

Called by `training.report_sections` (a comparison) and `training.evaluation_report` (one run): one text for both.
"""

from collections.abc import Iterator

from training.figures import bars
from training.report_cells import COLUMNS, Numbers, plain, plus_minus, trained
from training.report_page import Block, Figure, Heading, Paragraph, Table

_GROUPS = ("all", "specific", "broad", "cold", "warm")
_SHARES = ("auc", "gauc_user", "gauc_request")
_KINDS = {
    "all": "all",
    "specific_by_clicks": "specific by clicks",
    "broad_by_clicks": "broad by clicks",
    "specific": "drawn as specific",
    "broad": "drawn as broad",
}
_BY_CLICKS = {"all": "all", "specific": "specific_by_clicks", "broad": "broad_by_clicks"}
_SIDES = ("predicted", "observed", "true")
_NEAR = {
    "js_of_means": "JS of means, predicted to observed",
    "js_to_true": "predicted to true",
    "js_per_request": "mean JS per request",
}
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


def true_intents(found: Numbers) -> Iterator[Block]:
    """Of every row that predicts intents, the figures and cells with the truth in them; nothing without a truth."""
    rows = [row for row in trained(found).values() if row.get("true_intent")]
    for row in rows:
        yield Heading(f"Predicted, observed and true intent: {row['title']} (DAIAN, Fig. 5)")
        yield from intent_shares(row["true_intent"])


def intent_shares(kinds: Numbers) -> Iterator[Block]:
    """Mean intents by level of each kind of visitor: a figure each, their divergences, and the shares as cells.

    `kinds`: as `training.report_intents.predicted_observed_true` or `as_by_clicks` has them.
    """
    shown = {kind: part for kind, part in kinds.items() if kind in _KINDS and part["n_requests"]}
    if not shown:
        return
    n_levels = max(len(part["predicted"]) for part in shown.values())
    labels = [str(level + 1) for level in range(n_levels)]
    for kind, part in shown.items():
        to_true = f", to the truth {part['js_to_true']:.4f}" if "js_to_true" in part else ""
        sides = {side: part[side] for side in _SIDES if side in part}
        yield Figure(bars(f"{_KINDS[kind]}: JS {part['js_of_means']:.4f}{to_true}", labels, sides))
    near = [
        (_KINDS[kind], f"{part['n_requests']:,.0f}", *(plain(part.get(key)) for key in _NEAR))
        for kind, part in shown.items()
    ]
    yield Table(("users", "requests with a click", *_NEAR.values()), tuple(near))
    shares = [
        (f"{_KINDS[kind]}, {side}", *(plain(share) for share in part[side]))
        for kind, part in shown.items()
        for side in _SIDES
        if side in part
    ]
    yield Table(("mean share of level", *labels), tuple(shares))
    if any("true" in part for part in shown.values()):
        yield Paragraph(
            "All sides over the same requests, those with a click to observe. True: the expected share of the page's "
            "clicks by level. The claims' divergences to the truth are over all requests that have one."
        )


def as_by_clicks(kinds: Numbers) -> dict[str, Numbers]:
    """The kinds of `training.measures.intent`, all by clicks, under the names that tell them from drawn ones."""
    return {_BY_CLICKS[kind]: part for kind, part in kinds.items() if kind in _BY_CLICKS and part.get("n_requests")}


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

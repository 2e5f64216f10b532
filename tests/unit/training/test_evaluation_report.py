"""The report of one run: both formats say the same, whoever is measured, and the page needs nothing but itself."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.test_measures import Shop
from training.evaluate import Evaluation
from training.evaluation_report import (
    evaluation_blocks,
    evaluation_text,
    evaluation_title,
    write_evaluation_report,
)
from training.report_page import Figure, Heading, Paragraph, Table, html, markdown

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = {"auc": 0.7, "gauc_user": 0.61, "gauc_request": 0.62, "auc_per_request": 0.63}


def evaluation_of(**shops: Shop) -> Evaluation:
    """An evaluation of the first one; the others stand beside it."""
    return Evaluation(
        run=next(iter(shops)),
        data="a <shop> & more",
        split="test",
        numbers=dict.fromkeys([*shops, "click_rate"], NUMBERS),
        measures={name: shop.measured() for name, shop in shops.items()},
        tests=[{"sentence": "It is better than <nothing>."}],
        warnings=["other days"],
    )


@pytest.fixture(scope="module")
def with_intent() -> Evaluation:
    return evaluation_of(daian=Shop())


@pytest.fixture(scope="module")
def without_intent() -> Evaluation:
    return evaluation_of(din=Shop(with_intent=False))


@pytest.fixture(scope="module")
def beside_a_bundle() -> Evaluation:
    shop = Shop()
    other = Shop(with_intent=False)
    for name in ("items", "candidates", "training"):
        setattr(other, name, getattr(shop, name))
    return evaluation_of(daian=shop, live=other)


class Page(HTMLParser):
    """Reads a page, and fails when a tag is not closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [f"{name}={value}" for name, value in attrs if name in LOADING]
        if tag in ("td", "th"):
            self.cells.append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


LOADING = ("src", "href", "xlink:href", "srcset", "data", "action", "background", "poster")


def page_of(found: Evaluation) -> str:
    return html(evaluation_title(found), evaluation_blocks(found))


def headings(found: Evaluation) -> list[str]:
    return [block.text for block in evaluation_blocks(found) if isinstance(block, Heading)]


def figures(found: Evaluation) -> list[ET.Element]:
    return [ET.fromstring(block.svg) for block in evaluation_blocks(found) if isinstance(block, Figure)]


def figure(found: Evaluation, title: str) -> ET.Element:
    (one,) = (svg for svg in figures(found) if title in (svg.findtext(f"{SVG}text") or ""))
    return one


def hovers(svg: ET.Element) -> list[str]:
    return [title.text or "" for title in svg.iter(f"{SVG}title")]


@pytest.mark.parametrize("which", ["with_intent", "without_intent", "beside_a_bundle"])
def test_both_formats_hold_the_same_cells_and_the_page_is_well_formed(
    which: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(which)
    table_lines = [line for line in evaluation_text(found).splitlines() if line.startswith("|")]
    in_markdown = [cell.strip().strip("*") for line in table_lines for cell in line[1:-1].split("|")]
    in_html = Page(page_of(found)).cells
    said = [[cell for cell in cells if re.search(r"\d|\w", cell)] for cells in (in_markdown, in_html)]
    assert said[0] == said[1]
    assert sum("." in cell for cell in said[0]) > 80


def test_every_interval_that_was_measured_is_said(with_intent: Evaluation) -> None:
    text, page, n = evaluation_text(with_intent), page_of(with_intent), 0
    for value, low, high in intervals_of(with_intent.measures):
        cell = f"{value:.4f} [{low:.4f}, {high:.4f}]"
        assert cell in text
        assert cell in page
        n += 1
    assert n > 60


def intervals_of(found: Any) -> list[tuple[float, float, float]]:
    if isinstance(found, dict) and set(found) == {"value", "low", "high"}:
        return [(found["value"], found["low"], found["high"])] if found["low"] == found["low"] else []
    inside = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return [number for part in inside for number in intervals_of(part)]


def test_the_page_asks_nothing_of_anyone(with_intent: Evaluation) -> None:
    text = page_of(with_intent)
    page = Page(text)
    assert page.references == []
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base"}
    assert "url(" not in text
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\"' <]*", text)) == {SVG.strip("{}")}, "the name of SVG, which nobody loads"


def test_what_would_be_loaded_is_seen() -> None:
    """The twin: the reader of pages does see a reference and a tag left open."""
    assert Page('<p><img src="https://there/a.png"/></p>').references == ["src=https://there/a.png"]
    with pytest.raises(AssertionError):
        Page("<p><b></p>")


def test_a_ranker_without_intent_has_no_section_of_it(with_intent: Evaluation, without_intent: Evaluation) -> None:
    there, not_there = headings(with_intent), headings(without_intent)
    assert [heading for heading in there if heading not in not_there] == [
        "Predicted and observed intent (DAIAN, Fig. 5)"
    ]
    assert [heading for heading in there if heading in not_there] == not_there
    assert (len(figures(with_intent)), len(figures(without_intent))) == (5, 3)
    assert "intent, observed" not in page_of(without_intent)


def test_figures_draw_what_was_measured(with_intent: Evaluation) -> None:
    measures = with_intent.measures["daian"]
    curve = [
        f"daian: {bar['predicted']:.4g}, {bar['click_rate']['value']:.4f}"
        for bar in measures["calibration"]["reliability"]
    ]
    assert hovers(figure(with_intent, "by predicted click rate")) == curve
    levels = hovers(figure(with_intent, "similarity level"))
    for part in measures["by_level"]:
        name = part["level"] or "no vector"
        assert f"clicked, {name}: {part['click_rate']['value']:.4f}" in levels
        assert f"predicted, daian, {name}: {part['predicted']['value']:.4f}" in levels
    for kind in ("specific", "broad"):
        shares = hovers(figure(with_intent, f"{kind} intent"))
        for side in ("predicted", "observed"):
            for level, share in enumerate(measures["intent"][kind][side], start=1):
                assert f"{side}, {level}: {share:.4f}" in shares
    of_labels_too = hovers(figure(with_intent, "other leaf categories"))
    diversity = [text for text in of_labels_too if text.startswith("daian, ")]
    groups = measures["by_intent_diversity"]
    measured = {name: group["gauc_user"]["value"] for name, group in groups.items()}
    assert diversity == [f"daian, {name}: {value:.4f}" for name, value in measured.items() if value == value]
    whiskers = [
        line for line in figure(with_intent, "other leaf").iter(f"{SVG}line") if line.attrib["stroke"] == "#222"
    ]
    assert len(whiskers) == len(intervals_of({name: group["gauc_user"] for name, group in groups.items()}))


def test_a_bundle_stands_beside_the_run(beside_a_bundle: Evaluation) -> None:
    assert "Predicted and observed intent (DAIAN, Fig. 5)" in headings(beside_a_bundle)
    curve = figure(beside_a_bundle, "by predicted click rate")
    assert {hover.split(":")[0] for hover in hovers(curve)} == {"daian", "live"}
    (items,) = (b for b in evaluation_blocks(beside_a_bundle) if isinstance(b, Table) and b.header[0] == "item")
    assert [row[0] for row in items.rows] == ["daian", "cold", "warm", "live", "cold", "warm"]


def test_what_was_not_measured_is_a_dash(without_intent: Evaluation) -> None:
    measures = json.loads(json.dumps(without_intent.measures))
    nothing = dict.fromkeys(("value", "low", "high"), float("nan"))
    measures["din"]["by_item"]["cold"]["auc"] = nothing
    measures["din"]["ranking"]["auc"] = {**nothing, "value": 0.123456}
    found = Evaluation(**{**vars(without_intent), "measures": measures})
    for text in (evaluation_text(found), page_of(found)):
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
        assert re.search(r"\b0\.1235\b(?! \[)", text)
    (items,) = (b for b in evaluation_blocks(found) if isinstance(b, Table) and b.header[0] == "item")
    assert [row[-1] == "-" for row in items.rows] == [True, False]


def test_warnings_tests_and_lines_are_in_both(with_intent: Evaluation, tmp_path: Path) -> None:
    for name in ("deep/report.md", "deep/report.html"):
        write_evaluation_report(with_intent, tmp_path / name)
    text, page = ((tmp_path / "deep" / name).read_text() for name in ("report.md", "report.html"))
    assert text == evaluation_text(with_intent)
    assert page == page_of(with_intent)
    for word in ("other days", "candidate&#x27;s click rate", "It is better than &lt;nothing&gt;.", "not beaten"):
        assert word in page
    for word in ("other days", "candidate's click rate", "It is better than <nothing>.", "not beaten"):
        assert word in text


def test_columns_of_markdown_stand_below_each_other() -> None:
    table = Table(("a | b", "number"), (("group",), ("x", "1"), ("y" * 80, "22")))
    head, rule, group, one, long = markdown("t", [Paragraph("p"), table]).splitlines()[4:]
    assert head == "| a \\| b    | number |"
    assert rule == "| --------- | -----: |"
    assert group == "| **group** |        |"
    assert one == "| x         |      1 |"
    assert long == f"| {'y' * 80} |     22 |", "one long cell does not make every line long"


@pytest.mark.parametrize(
    ("took", "said"),
    [
        ({"seconds": 1234.4, "cpu_seconds": 1000.0}, "It trained for 1,234 s (1,000 s of processor time)."),
        ({"seconds": 99.0, "sittings": 1}, "It trained for 99 s, by the times"),
        ({"seconds": 99.0, "sittings": 2}, "It trained for 99 s in 2 sittings, by the times"),
        ({"missing": "nobody wrote it down"}, "How long it trained is not known: nobody wrote it down."),
    ],
)
def test_what_the_run_has_cost_is_said(with_intent: Evaluation, took: dict[str, float], said: str) -> None:
    cost = {"parameters": {"tables": 1_000_000, "network": 2_345}, "training": took}
    text = evaluation_text(Evaluation(**{**vars(with_intent), "cost": cost}))
    assert "daian: 1,002,345 parameters, 1,000,000 of them in embedding tables." in text
    assert said in text
    assert "parameters" not in evaluation_text(with_intent), "an evaluation that does not know it says nothing"


def test_what_is_behind_the_ranking_is_said_as_in_a_comparison(with_intent: Evaluation) -> None:
    def spread(mean: float) -> dict[str, float]:
        return {"mean": mean, "sd": float("nan"), "low": mean, "high": mean, "n": 1}

    fall = {"difference": 0.07, "low": 0.05, "high": 0.09, "p": 0.002, "p_holm": 0.002}
    row = {
        "title": "daian",
        "numbers": {"auc_per_request": spread(0.63)},
        "random_trigger": spread(0.56),
        "true_minus_random_trigger": fall,
        "inside": {"trigger_gate": {"all": spread(0.25)}},
        "oracle_shares": {"foreseeable": {key: spread(0.875) for key in ("auc", "gauc_user", "gauc_request")}},
    }
    behind = {
        "judged_by": "auc_per_request",
        "judged_title": "AUC/request",
        "rows": {"daian": row},
        "oracle": {"foreseeable": {"auc": 0.7, "gauc_user": 0.7, "gauc_request": 0.7}},
    }
    took = {"median_ms": 1.25, "n_repetitions": 60, "n_candidates": 100, "n_behaviours": 50}
    found = Evaluation(**{**vars(with_intent), "behind": behind, "latency": took, "judged_by": "auc_per_request"})
    cells = Page(page_of(found)).cells
    for cell in ("0.6300", "0.5600", "+0.0700", "+0.0700 [+0.0500, +0.0900] p 0.0020 *", "0.2500", "0.875"):
        assert cell in cells
    text = evaluation_text(found)
    assert "1.25 ms, the median of 60 requests of 100 candidates" in text
    assert "Judged by AUC per request." in text
    assert "another training from another seed" in text
    missing = evaluation_text(Evaluation(**{**vars(found), "latency": {"missing": "nobody can"}}))
    assert "Not measured: nobody can." in missing
    plain = headings(with_intent)
    assert [heading for heading in headings(found) if heading not in plain] == [
        "Under the trigger of another request",
        "Against the oracle",
        "Inside the models",
        "Latency of the exported graphs",
    ]

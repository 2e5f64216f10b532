"""Wikispeedia: what a game becomes, on games small enough to read; the real files where they are at hand."""

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from training.data.content_encoders import HashedNgrams
from training.data.dataset import open_catalogue, open_dataset, split_files
from training.data.errors import DataError
from training.data.prepare_wikispeedia import article_text, page_views, prepare_wikispeedia, split_games, step_times
from training.data.request_files import read_requests
from training.data.wikispeedia_files import Game, read_games, read_graph

ARTICLES = ("Ape", "%C3%85land", "Cat", "Dog_%28animal%29", "End")
LINKS = {"Ape": ("Cat", "Dog_%28animal%29", "End"), "Cat": ("Ape", "End"), "Dog_%28animal%29": ("Ape",)}


def game(path: str, ended_at_s: int = 10_000, duration_s: int = 100, user: str = "u", outcome: str = "restart") -> Game:
    return Game(user, ended_at_s, duration_s, tuple(path.split(";")), "End", outcome)  # type: ignore[arg-type]


def views(path: str, outcome: str = "restart") -> list[tuple[str, str | None]]:
    return [(view.article, view.clicked) for view in page_views(game(path, outcome=outcome))]


def test_every_page_left_by_a_link_and_the_last_are_views() -> None:
    assert views("Ape;Cat;End") == [("Ape", "Cat"), ("Cat", "End"), ("End", None)]


def test_a_page_left_by_the_back_button_is_none_and_the_one_before_is_next() -> None:
    assert views("Ape;Cat;<;Dog_%28animal%29") == [
        ("Ape", "Cat"),
        ("Ape", "Dog_%28animal%29"),
        ("Dog_%28animal%29", None),
    ]


def test_going_back_twice_returns_to_the_page_before_that() -> None:
    assert views("Ape;Cat;Ape;<;<;End") == [("Ape", "Cat"), ("Cat", "Ape"), ("Ape", "End"), ("End", None)]


def test_a_game_given_up_after_going_back_ends_on_the_page_gone_back_to() -> None:
    assert views("Ape;Cat;<") == [("Ape", "Cat"), ("Ape", None)]


def test_the_goal_of_a_finished_game_is_no_request() -> None:
    assert views("Ape;Cat;End", outcome="finished") == [("Ape", "Cat"), ("Cat", "End")]


def test_steps_are_spread_evenly_before_the_end() -> None:
    assert step_times(game("Ape;Cat;End;Cat")) == [9_900_000, 9_925_000, 9_950_000, 9_975_000]
    assert step_times(game("Ape;Cat;End", outcome="finished")) == [9_900_000, 9_950_000, 10_000_000]


def test_the_idle_half_hour_of_a_timeout_is_not_played() -> None:
    timed_out = game("Ape;Cat", duration_s=1_820, outcome="timeout")
    assert step_times(timed_out) == [8_180_000, 8_190_000]


def test_steps_are_strictly_later_even_without_any_time() -> None:
    assert step_times(game("Ape;Cat;Ape;Cat", duration_s=0)) == [10_000_000 + k for k in range(4)]


def test_the_last_tenth_tests_and_the_tenth_before_validates() -> None:
    split = split_games(25)
    assert (split.count("train"), split.count("validation"), split.count("test")) == (21, 2, 2)
    assert split == sorted(split, key=["train", "validation", "test"].index)


# --- files -----------------------------------------------------------------------------------------------------------


def write_source(folder: Path, unfinished: list[str], finished: list[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "articles.tsv").write_text("# names\n\n" + "\n".join(ARTICLES) + "\n")
    (folder / "categories.tsv").write_text(
        "# categories\nApe\tsubject.Science.Biology.Mammals\nApe\tsubject.People\n%C3%85land\tsubject.Countries\n"
    )
    links = [f"{page}\t{target}" for page, targets in LINKS.items() for target in targets]
    (folder / "links.tsv").write_text("# links\n" + "\n".join(links) + "\n")
    (folder / "paths_unfinished.tsv").write_text("# games\n" + "\n".join(unfinished) + "\n")
    if finished is not None:
        (folder / "paths_finished.tsv").write_text("# games\n" + "\n".join(finished) + "\n")
    return folder


def line(path: str, ended_at: int = 10_000, user: str = "u", duration: int = 100) -> str:
    return f"{user}\t{ended_at}\t{duration}\t{path}\tEnd\trestart"


def prepare(source: Path, out: Path, with_goal: bool = False) -> list[dict[str, object]]:
    prepare_wikispeedia(source, out, HashedNgrams(), with_goal, show_progress=False)
    rows: list[dict[str, object]] = []
    for split in ("train", "validation", "test"):
        if not (out / split).is_dir():
            continue
        for path in split_files(out, split):
            for batch, clicks in read_requests(path):
                shown = np.split(clicks, batch.candidate_offsets[1:-1])
                rows += [
                    row | {"split": split, "clicks": c.tolist()} for row, c in zip(batch.to_rows(), shown, strict=True)
                ]
    return rows


def test_requests_candidates_clicks_and_behaviours(tmp_path: Path) -> None:
    source = write_source(
        tmp_path / "source",
        [line("Ape;Cat;Ape", 10_000), line("Cat;End", 10_050, user="v"), line("Ape;Dog_%28animal%29", 20_000)],
    )
    rows = prepare(source, tmp_path / "out")
    assert [(r["trigger"], r["candidates"], r["clicks"]) for r in rows] == [
        ("Ape", ["Cat", "Dog_%28animal%29", "End"], [1, 0, 0]),
        ("Cat", ["Ape", "End"], [1, 0]),
        ("Ape", ["Cat", "Dog_%28animal%29", "End"], [0, 0, 0]),
        ("Cat", ["Ape", "End"], [0, 1]),
        ("Ape", ["Cat", "Dog_%28animal%29", "End"], [0, 1, 0]),
        ("Dog_%28animal%29", ["Ape"], [0]),
    ]
    behaviours = [[(b["item"], b["at"]) for b in r["behaviours"]] for r in rows]  # type: ignore[index,attr-defined]
    cat, ape = ("Cat", 9_933_333), ("Ape", 9_966_666)
    assert behaviours == [[], [], [cat], [], [cat, ape], [cat, ape]], (
        "of this user, strictly before, the start page never"
    )
    assert open_dataset(tmp_path / "out").report["views_of_pages_without_links"] == 1, "End has no links"


def test_behaviours_older_than_the_window_are_left_out(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [line("Ape;Cat", 10_000), line("Ape;Cat", 10_000 + 15 * 86_400)])
    rows = prepare(source, tmp_path / "out")
    assert [len(r["behaviours"]) for r in rows] == [0, 0, 0, 0]  # type: ignore[arg-type]
    prepare_wikispeedia(source, tmp_path / "long", HashedNgrams(), behaviour_days=180, show_progress=False)
    long = [batch for path in split_files(tmp_path / "long", "train") for batch, _ in read_requests(path)]
    assert sum(len(batch.behaviour_item) for batch in long) == 2


def test_a_later_game_never_appears_in_an_earlier_one(tmp_path: Path) -> None:
    """Time stamps are ends: read as starts, the short second game would lie inside the long first one."""
    source = write_source(
        tmp_path / "source", [line("Ape;Cat;Ape", 10_000, duration=900), line("Ape;End", 10_020, duration=10)]
    )
    for row in prepare(source, tmp_path / "out")[:3]:
        assert "End" not in [b["item"] for b in row["behaviours"]]  # type: ignore[index,attr-defined]


def test_a_split_begins_after_the_one_before_has_ended(tmp_path: Path) -> None:
    games = [line("Ape;Cat", 10_000 + 10 * n, duration=5) for n in range(9)] + [
        line("Ape;Cat;Ape", 10_120, duration=60)
    ]
    source = write_source(tmp_path / "source", games)
    rows = prepare(source, tmp_path / "out")
    assert [(r["trigger"], r["requested_at"]) for r in rows if r["split"] == "test"] == [("Ape", 10_100_000)]
    dataset = open_dataset(tmp_path / "out")
    assert dataset.report["requests_before_their_split"] == 2, "pages of the long game while others still trained"
    assert dataset.windows["train"][1] < dataset.windows["test"][0]


def test_clicks_that_are_not_links_are_counted_and_remembered(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [line("Dog_%28animal%29;%C3%85land"), line("Ape;Cat", 11_000)])
    rows = prepare(source, tmp_path / "out")
    assert [r["trigger"] for r in rows] == ["Ape", "Cat"]
    assert [b["item"] for b in rows[0]["behaviours"]] == ["%C3%85land"]  # type: ignore[index,attr-defined]
    report = open_dataset(tmp_path / "out").report
    assert (report["clicks_outside_the_page"], report["views_of_pages_without_links"]) == (1, 1)


def test_finished_games_are_read_with_their_own_columns_and_in_order(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [line("Ape;Cat", 10_000)], ["v\t9000\t50\tApe;Cat;End\t3"])
    games = read_games(source, frozenset(ARTICLES))
    assert [(g.user, g.outcome, g.goal) for g in games] == [("v", "finished", "End"), ("u", "restart", "End")]
    assert [r["trigger"] for r in prepare(source, tmp_path / "out")] == ["Ape", "Cat", "Ape", "Cat"]


def test_the_goal_is_a_field_only_on_request(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [line("Ape;Cat")])
    assert list(prepare(source, tmp_path / "without")[0]["context"]) == ["page_number"]  # type: ignore[call-overload]
    (source / "paths_unfinished.tsv").write_text("u\t10000\t100\tCat;Ape\tApe\trestart\n")
    context = prepare(source, tmp_path / "with", with_goal=True)[0]["context"]
    assert context == {"page_number": 1.0, "goal": "Ape", "goal_category": "Science"}


def test_item_fields_texts_and_popularity_of_the_training_games(tmp_path: Path) -> None:
    games = [line("Ape;Cat", 10_000 + n) for n in range(8)] + [line("Ape;End", 10_100), line("Ape;End", 10_200)]
    source = write_source(tmp_path / "source", games)
    prepare(source, tmp_path / "out")
    catalogue = open_catalogue(tmp_path / "out")
    raw = catalogue.raw(int(catalogue.rows(["Ape"])[0]))
    assert raw | {"title": "Ape", "category": "Science", "leaf_category": "Science.Biology.Mammals"} == raw
    assert (raw["links_on_page"], raw["links_to_page"]) == (3.0, 2.0)
    assert catalogue.popularity[catalogue.rows(["Cat", "End"])].tolist() == [8.0, 0.0], (
        "End was clicked in later games only"
    )
    assert (catalogue.norms[1:] > 0).all(), "every article has a vector, popular or not"
    graph = read_graph(source)
    assert article_text(graph, "Ape", "title and category") == "Ape. Science, Biology, Mammals"
    assert article_text(graph, "%C3%85land", "title") == "Åland"
    assert article_text(graph, "Dog_%28animal%29", "title and category") == "Dog (animal)"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("paths_unfinished.tsv", "u\t1\t2\tApe;Nowhere\tEnd\trestart", ["line 1", "'Nowhere'"]),
        ("paths_unfinished.tsv", "# x\nu\t1\t2\tApe;<\tEnd\trestart", ["line 2", "no page to go back to"]),
        ("paths_unfinished.tsv", "u\t1\t2\tApe\tEnd", ["line 1", "5 cells, expected 6"]),
        ("paths_unfinished.tsv", "u\tsoon\t2\tApe\tEnd\trestart", ["line 1", "'soon'"]),
        ("paths_unfinished.tsv", "u\t1\t-2\tApe\tEnd\trestart", ["line 1", "'-2'"]),
        ("paths_unfinished.tsv", "u\t1\t2\tApe\tEnd\tpower cut", ["line 1", "'power cut'"]),
        ("paths_finished.tsv", "u\t1\t2\tApe;Cat;<\tNULL", ["line 1", "end at its goal"]),
        ("links.tsv", "Ape\tNowhere", ["line 1", "'Nowhere'"]),
        ("categories.tsv", "Ape\tScience", ["line 1", "subject."]),
        ("articles.tsv", "Ape\nApe", ["listed twice"]),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, file: str, text: str, words: list[str]) -> None:
    source = write_source(tmp_path / "source", [line("Ape;Cat")])
    (source / file).write_text(text + "\n")
    with pytest.raises(DataError) as caught:
        prepare(source, tmp_path / "out")
    for word in [str(source / file), *words]:
        assert word in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [line("Ape;Cat")])
    (source / "paths_unfinished.tsv").unlink()
    with pytest.raises(DataError, match="paths_finished"):
        prepare(source, tmp_path / "out")
    (source / "links.tsv").unlink()
    with pytest.raises(DataError, match=r"links\.tsv: no such file"):
        prepare(source, tmp_path / "out")


REAL = Path(os.environ.get("DAIAN_TEST_WIKISPEEDIA", Path(__file__).parents[5] / "shared" / "data" / "wikispeedia"))


@pytest.mark.skipif(not (REAL / "links.tsv").is_file(), reason="the Wikispeedia files are not at hand")
def test_the_real_games_have_the_known_numbers() -> None:
    graph = read_graph(REAL)
    games = [game for game in read_games(REAL, frozenset(graph.articles)) if game.outcome != "finished"]
    assert (len(graph.articles), sum(map(len, graph.links.values())), len(games)) == (4_604, 119_882, 21_143)
    by_user: dict[str, list[Game]] = {}
    for one in games:
        by_user.setdefault(one.user, []).append(one)
    reach: Counter[str] = Counter()
    for own in by_user.values():
        for before, after in pairwise(own):
            if before.outcome == "restart":
                reach["pairs"] += 1
                reach["as ends"] += before.ended_at_s > after.ended_at_s - after.duration_s
                reach["as starts"] += before.ended_at_s + before.duration_s > after.ended_at_s
    assert reach["as ends"] < 0.05 * reach["pairs"] < 0.15 * reach["pairs"] < reach["as starts"], "time stamps are ends"

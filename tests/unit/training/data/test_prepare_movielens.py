"""MovieLens-100k: DIHN's trigger rule on ratings, against a plain search; films, people, splits; errors that name the
cell. The files are made here, in the format of RecBole's: the real ones may not be redistributed."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cyclopts import App
from jaxtyping import Int64

from training.data import triggered_requests
from training.data.alimama_rules import Impressions, behaviours_before
from training.data.check_requests import check_requests
from training.data.commands import register_data
from training.data.content_encoders import HashedNgrams
from training.data.dataset import SPLITS, open_catalogue, open_dataset, split_files
from training.data.errors import DataError
from training.data.movielens_files import Film, read_films, read_people, read_ratings
from training.data.prepare_movielens import film_text, impressions_of, prepare_movielens
from training.data.request_files import read_requests

HOUR = 3_600
START = 880_000_020  # a whole minute
RATINGS = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
FILMS = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
PEOPLE = ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")
Rating = tuple[int, int, int, int]  # user, film, rating, time


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = ["\t".join(str(cell) for cell in row) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_source(folder: Path, ratings: Sequence[Rating]) -> Path:
    """The three files around some ratings; film 3 is as little known as the set's `unkonwn` one."""
    folder.mkdir(exist_ok=True)
    films: list[tuple[object, ...]] = [
        (1, "Clockwork Orchard, The", 1995, "Animation Children's Comedy"),
        (2, "Nié", "V", "Drama"),
        (3, "unkonwn", "unkonwn", "unknown"),
        *((film, f"Film {film}", 1950 + film, "Drama Crime" if film % 2 else "Comedy") for film in range(4, 31)),
    ]
    ages = (7, 18, 24, 25, 34, 44, 49, 50, 55, 56)
    people = [(user, ages[user % 10], "MF"[user % 2], "writer", "00000") for user in range(1, 21)]
    write_table(folder / "ml-100k.inter", RATINGS, ratings)
    write_table(folder / "ml-100k.item", FILMS, films)
    write_table(folder / "ml-100k.user", PEOPLE, people)
    return folder


def random_ratings(seed: int = 0) -> list[Rating]:
    """Each of 20 users rates all 30 films in a day and a half of their own; several at a time, and hours apart."""
    random = np.random.default_rng(seed)
    found: list[Rating] = []
    for user in range(1, 21):
        times = START + user * 40_000 + random.integers(0, 54, 30) * 2_400  # 4 hours are 6 steps
        stars = random.integers(1, 6, 30)
        found += [(user, film + 1, int(stars[film]), int(times[film])) for film in random.permutation(30)]
    return found


def prepare(source: Path, out: Path) -> list[dict[str, object]]:
    """Every request with its split and clicks."""
    prepare_movielens(source, out, HashedNgrams(), show_progress=False)
    rows: list[dict[str, object]] = []
    for split in SPLITS:
        for path in split_files(out, split):
            for batch, clicks in read_requests(path):
                parts = np.split(clicks, batch.candidate_offsets[1:-1])
                rows += [
                    row | {"split": split, "clicks": part.tolist()}
                    for row, part in zip(batch.to_rows(), parts, strict=True)
                ]
    return rows


def expected(ratings: Sequence[Rating]) -> dict[str, tuple[str, list[str], list[int], set[tuple[int, str]]]]:
    """Requests by (user, time), computed row by row: id -> trigger, candidates, clicks, behaviours."""
    clicks = [(user, at, film) for user, film, rating, at in ratings if rating >= 4]
    found = {}
    for user, at in {(user, at) for user, _, _, at in ratings}:
        near = [(t, film) for u, t, film in clicks if u == user and 0 < at - t <= 4 * HOUR]
        if near:
            shown = sorted((film, rating) for u, film, rating, t in ratings if (u, t) == (user, at))
            found[f"{user}-{at}"] = (
                str(max(near)[1]),
                [str(film) for film, _ in shown],
                [int(rating >= 4) for _, rating in shown],
                {(t * 1000, str(film)) for u, t, film in clicks if u == user and t < at},
            )
    return found


def prepared(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    return {
        str(row["request_id"]): (
            row["trigger"],
            row["candidates"],
            row["clicks"],
            {(behaviour["at"], behaviour["item"]) for behaviour in row["behaviours"]},  # type: ignore[attr-defined]
        )
        for row in rows
    }


def test_every_request_is_as_the_rules_say(tmp_path: Path) -> None:
    ratings = random_ratings()
    rows = prepare(make_source(tmp_path / "source", ratings), tmp_path / "out")
    plain = expected(ratings)
    assert prepared(rows) == plain
    assert any(len(row["candidates"]) > 1 for row in rows)  # type: ignore[arg-type]
    dataset = open_dataset(tmp_path / "out")
    samples = sum(len(shown) for _, shown, _, _ in plain.values())
    report = dataset.report
    assert (report["ratings"], report["samples"]) == (600, samples)
    assert 0 < report["ratings_without_trigger"] == 600 - samples
    assert report["users_with_samples"] == len({name.partition("-")[0] for name in plain})
    assert "stand for impressions" in report["deviation"]
    assert "redistributed" in report["source"]
    assert dataset.rules.opening_window_s == 4 * HOUR, "the rules drop the trigger's click"
    assert check_requests(tmp_path / "out", show_progress=False).problems == []


def test_behaviours_that_are_not_strictly_before_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur: one second more, and the clicks of the request itself are in its history."""

    def not_strict(
        impressions: Impressions, user: Int64[np.ndarray, " R"], at_s: Int64[np.ndarray, " R"], at_most: int
    ) -> object:
        return behaviours_before(impressions, user, at_s + 1, at_most)

    monkeypatch.setattr(triggered_requests, "behaviours_before", not_strict)
    with pytest.raises(AssertionError):
        test_every_request_is_as_the_rules_say(tmp_path)


def test_four_stars_are_a_click_and_three_are_an_impression(tmp_path: Path) -> None:
    source = make_source(tmp_path, [(1, 1, 3, START), (1, 2, 4, START), (1, 4, 5, START + 9)])
    ratings = read_ratings(source, read_films(source), read_people(source))
    assert impressions_of(ratings).clicked.tolist() == [False, True, True]


def test_the_last_tenth_tests_and_the_tenth_before_validates(tmp_path: Path) -> None:
    ratings = [(1, 1 + n % 30, 5, START + 60 * n) for n in range(101)]  # the first one has no trigger
    rows = prepare(make_source(tmp_path / "source", ratings), tmp_path / "out")
    assert [sum(row["split"] == split for row in rows) for split in SPLITS] == [80, 10, 10]
    windows = open_dataset(tmp_path / "out").windows
    assert windows["train"][1] < windows["validation"][0]
    assert windows["validation"][1] < windows["test"][0] == (START + 60 * 91) * 1000


def test_popularity_counts_the_clicks_of_the_training_days(tmp_path: Path) -> None:
    ratings = [(1, 1 + (n > 50) + (n > 95), 5, START + 60 * n) for n in range(101)]
    prepare(make_source(tmp_path / "source", ratings), tmp_path / "out")
    catalogue = open_catalogue(tmp_path / "out")
    assert catalogue.popularity[catalogue.rows(["1", "2", "3"])].tolist() == [50.0, 30.0, 0.0]


def test_films_and_people_have_their_fields(tmp_path: Path) -> None:
    rows = prepare(make_source(tmp_path / "source", random_ratings()), tmp_path / "out")
    catalogue = open_catalogue(tmp_path / "out")
    raw = [catalogue.raw(int(row)) for row in catalogue.rows(["1", "2", "3"])]
    title = "The Clockwork Orchard"
    genres = {"genre": "Animation", "genres": "Animation Children's Comedy"}
    assert raw[0] | {"title": title, "year": 1995.0} | genres == raw[0]
    assert raw[1] | {"title": "Nié", "year": None, "genre": "Drama", "genres": "Drama"} == raw[1], "V is no year"
    assert raw[2] | {"title": None, "year": None, "genre": None, "genres": None} == raw[2], "unkonwn is no title"
    assert (catalogue.norms[catalogue.rows(["1", "2", "3"])] > 0).tolist() == [True, True, False]
    assert open_dataset(tmp_path / "out").report["films_without_year"] == 2
    people: dict[str, dict[str, str]] = {row["user"]["user"]: row["user"] for row in rows}  # type: ignore[index,misc]
    assert people["10"] == {"user": "10", "age": "under 18", "gender": "M", "occupation": "writer"}
    bands = ["18-24", "18-24", "25-34", "25-34", "35-44", "45-49", "50-55", "50-55", "56 and over"]
    assert [people[str(user)]["age"] for user in range(1, 10)] == bands


def test_the_encoder_reads_title_and_genres() -> None:
    assert film_text(Film("Nié", 1995.0, ("Drama", "War"))) == "Nié. Drama, War"
    assert film_text(Film("Nié", None, ())) == "Nié"
    assert film_text(Film(None, None, ())) is None


def test_columns_may_stand_in_another_order_and_others_beside_them(tmp_path: Path) -> None:
    source = make_source(tmp_path, random_ratings())
    films, people = read_films(source), read_people(source)
    before = read_ratings(source, films, people)
    lines = [line.split("\t") for line in (source / "ml-100k.inter").read_text().splitlines()]
    turned = [
        [at, "more:float" if n == 0 else "1", rating, film, user] for n, (user, film, rating, at) in enumerate(lines)
    ]
    write_table(source / "ml-100k.inter", turned[0], turned[1:])
    after = read_ratings(source, films, people)
    assert all(
        np.array_equal(getattr(before, name), getattr(after, name)) for name in ("user", "film", "rating", "at_s")
    )


GOOD = f"1\t1\t4\t{START}"


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("ml-100k.inter", f"1\t1\tgood\t{START}", ["line 4", "column rating", "'good'", "number"]),
        ("ml-100k.inter", f"1\t1\tnan\t{START}", ["line 4", "column rating", "'nan'"]),
        ("ml-100k.inter", f"1\t1\t8\t{START}", ["line 4", "column rating", "8, expected 1 to 5"]),
        ("ml-100k.inter", "1\t1\t4\tyesterday", ["line 4", "column timestamp", "'yesterday'"]),
        ("ml-100k.inter", f"1\t1\t4\t{START}000", ["line 4", "column timestamp", "whole seconds"]),
        ("ml-100k.inter", "1\t1\t4\t0.5", ["line 4", "column timestamp", "whole seconds"]),
        ("ml-100k.inter", "1\t1\t4\t1e400", ["line 4", "column timestamp", "number"]),
        ("ml-100k.inter", f"1\t1\t4\t{START}\t9", ["line 4", "5 cells", "header has 4"]),
        ("ml-100k.inter", f"-1\t1\t4\t{START}", ["line 4", "column user_id", "'-1'"]),
        ("ml-100k.inter", f"77\t1\t4\t{START}", ["line 4", "column user_id", "77 is not in ml-100k.user"]),
        ("ml-100k.inter", f"1\t77\t4\t{START}", ["line 4", "column item_id", "77 is not in ml-100k.item"]),
        ("ml-100k.item", "1\tAgain\t1995\tDrama", ["line 4", "column item_id", "1 came before"]),
        ("ml-100k.item", "i9\tFilm\t1995\tDrama", ["line 4", "column item_id", "'i9'"]),
        ("ml-100k.item", "9\tFilm", ["line 4", "2 cells", "header has 4"]),
        ("ml-100k.user", "99\told\tM\twriter\t00000", ["line 4", "column age", "'old'"]),
        ("ml-100k.user", "2\t30\tM\twriter\t00000", ["line 4", "column user_id", "2 came before"]),
    ],
)
def test_errors_name_file_line_and_column(tmp_path: Path, file: str, line: str, words: list[str]) -> None:
    source = make_source(tmp_path / "source", random_ratings())
    lines = (source / file).read_text().splitlines()
    (source / file).write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    refuse(source, tmp_path / "out", [str(source / file), *words])


@pytest.mark.parametrize(
    ("file", "header", "words"),
    [
        ("ml-100k.inter", "user_id\titem_id\trating\ttimestamp", ["column rating has type ''", "expected 'float'"]),
        ("ml-100k.inter", "user_id:token\titem_id:token\trating:token\ttimestamp:float", ["rating has type 'token'"]),
        ("ml-100k.inter", GOOD, ["no column user_id:token", "no column timestamp:float", "the header is"]),
        (
            "ml-100k.item",
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq",
            ["class:token_seq"],
        ),
        (
            "ml-100k.user",
            "user_id:token\tage:token\tage:token\toccupation:token\tzip_code:token",
            ["age stands 2 times"],
        ),
    ],
)
def test_another_header_is_refused_with_what_was_found(
    tmp_path: Path, file: str, header: str, words: list[str]
) -> None:
    source = make_source(tmp_path / "source", random_ratings())
    lines = (source / file).read_text().splitlines()
    (source / file).write_text("\n".join([header, *lines[1:]]) + "\n")
    refuse(source, tmp_path / "out", [str(source / file), "pip download --no-deps recbole", *words])


@pytest.mark.parametrize("file", ["ml-100k.inter", "ml-100k.item", "ml-100k.user"])
def test_missing_empty_and_garbled_files_are_named_with_what_to_do(tmp_path: Path, file: str) -> None:
    source = make_source(tmp_path / "source", random_ratings())
    header, advice = (source / file).read_text().splitlines()[0], "pip download --no-deps recbole"
    for content, word in (
        (b"", "empty"),
        (header.encode(), "no rows"),
        (header.encode() + b"\n\xff", "line 2: not UTF-8"),
    ):
        (source / file).write_bytes(content)
        refuse(source, tmp_path / "out", [str(source / file), word, advice])
    (source / file).unlink()
    refuse(source, tmp_path / "out", [str(source / file), "no such file", advice])


def test_ratings_without_any_trigger_or_with_one_time_only_leave_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", [(1, film, 5, START + film * 5 * HOUR) for film in range(1, 20)])
    refuse(source, tmp_path / "out", ["ml-100k.inter", "within 4 hours", "times"])
    make_source(source, [(1, 1, 5, START), (1, 2, 5, START + 9), (1, 4, 1, START + 9)])
    refuse(source, tmp_path / "out", ["no training or no test"])


def refuse(source: Path, out: Path, words: Sequence[str]) -> None:
    """The preparation stops with an error that has all the words, and leaves nothing behind."""
    with pytest.raises(DataError) as caught:
        prepare_movielens(source, out, HashedNgrams(), show_progress=False)
    for word in words:
        assert word in str(caught.value)
    assert [path.name for path in out.parent.iterdir()] == [source.name]


def test_the_command_prepares_and_says_what_the_set_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path / "source", random_ratings())
    app = App("daian")
    register_data(app)
    words = ["data", "prepare", "movielens", str(source), "--out", str(tmp_path / "out"), "--encoder", "hashed-ngrams"]
    app(words, exit_on_error=False, result_action="return_value")
    shown = capsys.readouterr().out
    assert "movielens" in shown
    assert "deviation: ratings stand for impressions" in shown


if "DAIAN_TEST_MOVIELENS" in os.environ:  # a folder with the files: they may not be handed on, so most have none

    def test_the_real_ratings_have_the_known_numbers(tmp_path: Path) -> None:
        out = tmp_path / "out"
        prepare_movielens(Path(os.environ["DAIAN_TEST_MOVIELENS"]), out, HashedNgrams(), show_progress=False)
        report = open_dataset(out).report
        assert (report["ratings"], report["samples"], report["users_with_samples"]) == (100_000, 93_401, 941)

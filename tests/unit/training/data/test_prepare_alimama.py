"""Alimama: DIHN's trigger rule on hand-made logs, DAIAN's split, streams in parts, errors that name the cell."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from training.data import alimama_rules
from training.data.alimama_files import Ads, LogPart, Part, read_ads, read_profiles, stream_samples
from training.data.alimama_proxy import proxy_vectors, random_directions, spectral_categories
from training.data.alimama_rules import (
    Impressions,
    behaviours_before,
    count_log,
    once_per_request,
    request_starts,
    triggers,
)
from training.data.check_requests import check_requests
from training.data.dataset import open_catalogue, open_dataset, split_files
from training.data.errors import DataError
from training.data.prepare_alimama import prepare_alimama
from training.data.request_files import read_requests

HOUR = 3_600
MIDNIGHT = 1_494_000_000 // 86_400 * 86_400 - 8 * HOUR  # 00:00 in Beijing
SAMPLE_HEADER = ("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk")


def impressions_of(*rows: tuple[int, int, int, int]) -> Impressions:
    """From (user, time, ad, clicked)."""
    user, at_s, ad, clicked = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return Impressions.of(Part(user, at_s, ad, np.full(len(rows), "p", dtype=object), clicked))


def trigger_ads(impressions: Impressions) -> list[int | None]:
    """The ad of each impression's trigger, in the order of (user, time, ad)."""
    return [None if place < 0 else int(impressions.ad[place]) for place in triggers(impressions)]


def test_the_latest_earlier_click_is_the_trigger() -> None:
    log = impressions_of((1, 100, 7, 1), (1, 200, 8, 1), (1, 300, 9, 0))
    assert trigger_ads(log) == [None, 7, 8]


def test_a_click_never_triggers_itself_nor_others_of_its_time() -> None:
    log = impressions_of((1, 100, 7, 1), (1, 100, 8, 0), (1, 100, 9, 1))
    assert trigger_ads(log) == [None, None, None]


def test_of_clicks_at_one_time_the_largest_ad_is_the_trigger() -> None:
    log = impressions_of((1, 100, 30, 1), (1, 100, 4, 1), (1, 101, 1, 0))
    assert trigger_ads(log) == [None, None, 30]


def test_four_hours_are_in_and_a_second_more_is_out() -> None:
    log = impressions_of((1, 0, 7, 1), (1, 4 * HOUR, 8, 0), (1, 4 * HOUR + 1, 9, 0))
    assert trigger_ads(log) == [None, 7, None]


def test_clicks_of_another_user_are_no_trigger() -> None:
    log = impressions_of((1, 100, 7, 1), (2, 101, 8, 0), (0, 101, 8, 0))
    assert trigger_ads(log) == [None, None, None]


def test_the_rule_agrees_with_a_plain_search() -> None:
    random = np.random.default_rng(3)
    rows = [(int(u), int(t), int(a), int(c)) for u, t, a, c in random.integers(0, (4, 3 * 4 * HOUR, 9, 2), (400, 4))]
    rows = [(u, t // 600 * 600, a, c) for u, t, a, c in rows]  # many at the same time
    log = impressions_of(*rows)
    clicks = {(u, t, a) for u, t, a, c in rows if c}
    for user, at_s, found in zip(log.user, log.at_s, trigger_ads(log), strict=True):
        earlier = [(t, a) for u, t, a in clicks if u == user and 0 < at_s - t <= 4 * HOUR]
        assert found == (max(earlier)[1] if earlier else None)


def test_a_rule_that_lets_the_own_time_count_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur: with `<=` instead of `<` a click is its own trigger, and the test above must fail."""
    searchsorted = np.searchsorted

    def not_strict(a: np.ndarray, v: np.ndarray, side: str = "left") -> np.ndarray:
        del side
        return searchsorted(a, v, side="right")

    monkeypatch.setattr(alimama_rules.np, "searchsorted", not_strict)
    with pytest.raises(AssertionError):
        test_a_click_never_triggers_itself_nor_others_of_its_time()


def test_repeated_impressions_are_one_and_clicked_if_any_was() -> None:
    log = impressions_of((1, 100, 7, 0), (1, 100, 7, 1), (1, 100, 8, 0))
    assert (log.ad.tolist(), log.clicked.tolist(), log.n_repeated) == ([7, 8], [True, False], 1)


def test_behaviours_are_the_users_earlier_clicks_the_newest_of_them() -> None:
    log = impressions_of((1, 10, 1, 1), (1, 20, 2, 1), (1, 30, 3, 1), (1, 30, 4, 0), (2, 5, 9, 1))
    places, offsets = behaviours_before(log, np.array([1, 1, 2]), np.array([30, 31, 5]), at_most=2)
    assert [log.ad[places[a:b]].tolist() for a, b in pairwise(offsets)] == [
        [1, 2],
        [2, 3],
        [],
    ]


def test_requests_by_time_and_by_trigger_click() -> None:
    log = impressions_of((1, 0, 5, 1), (1, 10, 6, 0), (1, 10, 7, 0), (1, 20, 8, 0), (2, 0, 5, 1), (2, 20, 8, 0))
    trigger = triggers(log)
    shown = log.take(np.flatnonzero(trigger >= 0))
    kept = trigger[trigger >= 0]
    assert request_starts(shown, kept, "time", (1000,)).tolist() == [0, 2, 3]
    assert request_starts(shown, kept, "trigger", (1000,)).tolist() == [0, 3]
    assert request_starts(shown, kept, "trigger", (15,)).tolist() == [0, 2, 3], "midnight parts a request"
    assert request_starts(shown, kept, "trigger", (15, 1000)).tolist() == [0, 2, 3], "and so does the night before"
    assert request_starts(shown, kept, "trigger", ()).tolist() == [0, 3]


def test_an_ad_shown_on_two_pages_below_a_click_is_one_candidate_clicked_if_it_ever_was() -> None:
    log = impressions_of((1, 0, 5, 1), (1, 10, 6, 0), (1, 10, 7, 0), (1, 20, 6, 1), (1, 20, 8, 0), (1, 30, 6, 0))
    trigger = triggers(log)
    shown, kept = log.take(np.flatnonzero(trigger >= 0)), trigger[trigger >= 0]
    once, rows, starts = once_per_request(shown, request_starts(shown, kept, "trigger", (1000,)))
    assert once.ad.tolist() == [6, 7, 8, 6], "where they were first shown; the last one is below a new click"
    assert once.at_s.tolist() == [10, 10, 20, 30]
    assert once.clicked.tolist() == [True, False, False, False]
    assert rows.tolist() == [0, 1, 3, 4]
    assert starts.tolist() == [0, 3]


def test_log_counts_are_strictly_before_and_of_the_same_user_and_category() -> None:
    day = 86_400
    log = LogPart(
        user=np.array([1, 1, 1, 1, 2, 1, 1]),
        at_s=np.array([99, 100, 50, 60, 50, -7, 100 + 20 * day]),
        category=np.array([5, 5, 5, 6, 5, 5, 5]),
        is_view=np.array([True, True, False, True, True, True, True]),
    )
    user, category = np.array([1, 1, 1, 3]), np.array([5, 6, 7, 5])
    views = count_log(log, log.is_view, user, category, np.array([100, 100, 100, 100]))
    assert views.tolist() == [1, 1, 0, 0]
    later = count_log(log, log.is_view, user[:1], category[:1], np.array([99 + 14 * day + 1]))
    assert later.tolist() == [1], "the view at 100 is 14 days old, the one at 99 older"


# --- files -----------------------------------------------------------------------------------------------------------


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def make_source(folder: Path, n_users: int = 30, seed: int = 0) -> list[tuple[object, ...]]:
    """The four files, small, with what makes the public ones awkward: NULL, a space in a header, an unknown ad."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    samples: list[tuple[object, ...]] = []
    for _ in range(n_users * 60):
        at_s = MIDNIGHT + int(random.integers(0, 8 * 86_400)) // 3_600 * 3_600
        clicked = int(random.random() < 0.3)
        ad = int(random.integers(1, 42))
        samples.append((int(random.integers(1, n_users)), at_s, ad, "430548_1007", 1 - clicked, clicked))
    samples.append((5, MIDNIGHT + 8 * 86_400 - 1, 3, "430539_1007", 1, 0))
    write_csv(folder / "raw_sample.csv", SAMPLE_HEADER, samples)
    ads = [(ad, ad % 5, ad % 7, ad % 6, "NULL" if ad % 3 else ad, ad * 1.5) for ad in range(1, 41)]
    write_csv(folder / "ad_feature.csv", ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price"), ads)
    header = ("userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level")
    header += ("shopping_level", "occupation", "new_user_class_level ")
    profiles = [(user, 1, 2, 1 + user % 2, 3, "", 3, 0, "") for user in range(2, n_users)]
    write_csv(folder / "user_profile.csv", header, profiles)
    log = [
        (u, t, tag, a % 5, 1) for (u, t, a, *_), tag in zip(samples, ["pv", "cart", "pv", "fav"] * 999, strict=False)
    ]
    write_csv(folder / "behavior_log.csv", ("user", "time_stamp", "btag", "cate", "brand"), log)
    return samples


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_source(tmp_path / "public")
    return tmp_path / "public"


def all_rows(folder: Path, split: str) -> list[tuple[dict[str, object], list[int]]]:
    rows = []
    for path in split_files(folder, split):  # type: ignore[arg-type]
        for batch, clicks in read_requests(path):
            parts = np.split(clicks, batch.candidate_offsets[1:-1])
            rows += list(zip(batch.to_rows(), [part.tolist() for part in parts], strict=True))
    return rows


def expected(samples: list[tuple[object, ...]]) -> dict[str, tuple[str, list[str], list[int]]]:
    """Requests by (user, time), computed row by row: id -> trigger, candidates, clicks."""
    rows = [(int(u), int(t), int(a), int(c)) for u, t, a, _, _, c in samples]  # type: ignore[call-overload]
    clicks = {(u, t, a) for u, t, a, c in rows if c}
    found = {}
    for user, at_s in {(u, t) for u, t, _, _ in rows}:
        earlier = [(t, a) for u, t, a in clicks if u == user and 0 < at_s - t <= 4 * HOUR]
        if earlier:
            shown = sorted({a for u, t, a, _ in rows if (u, t) == (user, at_s)})
            clicked = [int((user, at_s, ad) in clicks) for ad in shown]
            found[f"{user}-{at_s}"] = (str(max(earlier)[1]), [str(ad) for ad in shown], clicked)
    return found


@pytest.mark.parametrize("n_parts", [1, 7])
def test_every_request_is_as_the_rules_say(tmp_path: Path, n_parts: int) -> None:
    samples = make_source(tmp_path / "public")
    out = tmp_path / "prepared"
    dataset = prepare_alimama(tmp_path / "public", out, n_parts=n_parts, show_progress=False)
    rows = [(row, clicks) for split in ("train", "validation", "test") for row, clicks in all_rows(out, split)]
    assert {r["request_id"]: (r["trigger"], r["candidates"], c) for r, c in rows} == expected(samples)
    clicked = {(str(u), t, str(a)) for u, t, a, _, _, c in samples if c}
    for row, _ in rows:
        seen = {(row["user"]["user"], b["at"] // 1000, b["item"]) for b in row["behaviours"]}  # type: ignore[index,union-attr]
        before = {c for c in clicked if c[0] == row["user"]["user"] and c[1] * 1000 < row["requested_at"]}  # type: ignore[index,operator]
        assert seen == before, "exactly the user's clicks strictly before the request"
    assert dataset.report["impressions"] == len(samples)
    assert "multimodal" in dataset.report["deviation"]
    assert dataset.rules.opening_window_s == 4 * HOUR, "the rules drop the trigger's click"
    assert not list(tmp_path.glob(".prepared.parts*")), "the parts on disk are removed"
    assert check_requests(out, show_progress=False).problems == []


def test_a_preparation_that_fails_leaves_none_of_the_folders_that_it_made(tmp_path: Path) -> None:
    make_source(tmp_path / "public")
    (tmp_path / "public/raw_sample.csv").write_text("user,time_stamp\n")
    with pytest.raises(DataError):
        prepare_alimama(tmp_path / "public", tmp_path / "new/er/prepared", show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["public"]


def test_seven_days_train_one_day_tests_and_some_users_validate(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    windows = prepare_alimama(source, out, validation_share=0.5, show_progress=False).windows
    test_from = (MIDNIGHT + 7 * 86_400) * 1000
    assert windows["train"][1] < test_from <= windows["test"][0]
    assert test_from - 86_400_000 <= windows["validation"][0]
    assert windows["validation"][1] < test_from
    users = {r["user"]["user"] for r, _ in all_rows(out, "validation")}  # type: ignore[index]
    late = [r for r, _ in all_rows(out, "train") if r["requested_at"] >= test_from - 86_400_000]  # type: ignore[operator]
    assert late, "the other users' day 7 is trained on"
    assert not {r["user"]["user"] for r in late} & users  # type: ignore[index]
    whole = prepare_alimama(source, tmp_path / "whole", validation_share=0, show_progress=False)
    assert set(whole.windows) == {"train", "test"}


def test_a_page_that_begins_before_day_7_carries_nothing_of_it_into_the_training(tmp_path: Path) -> None:
    """Below one trigger click lie pages on both sides of midnight; the held-out users' later ones are validation."""
    make_source(tmp_path / "public")
    border = MIDNIGHT + 6 * 86_400
    samples: list[tuple[object, ...]] = [(5, MIDNIGHT + 8 * 86_400 - 1, 3, "430539_1007", 1, 0)]
    for user in range(1, 30):
        samples.append((user, border - 60, 1, "430548_1007", 0, 1))  # the click that triggers
        samples.append((user, border - 30, 2, "430548_1007", 1, 0))
        samples.append((user, border + 30, 3, "430548_1007", 1, 0))
    write_csv(tmp_path / "public" / "raw_sample.csv", SAMPLE_HEADER, samples)
    for share in (0.5, 0.0):
        out = tmp_path / f"prepared-{share}"
        prepare_alimama(tmp_path / "public", out, "trigger", validation_share=share, show_progress=False)
        shown = {tuple(row["candidates"]) for row, _ in all_rows(out, "train")}  # type: ignore[arg-type]
        assert shown == ({("2", "3")} if not share else {("2",), ("3",)})
    held_out = {r["user"]["user"] for r, _ in all_rows(tmp_path / "prepared-0.5", "validation")}  # type: ignore[index]
    trained = all_rows(tmp_path / "prepared-0.5", "train")
    late = {r["user"]["user"] for r, _ in trained if "3" in r["candidates"]}  # type: ignore[index,operator]
    assert held_out
    assert not held_out & late


def test_popularity_and_vectors_know_nothing_of_the_test_day(tmp_path: Path) -> None:
    samples = make_source(tmp_path / "public")
    prepare_alimama(tmp_path / "public", tmp_path / "a", validation_share=0, show_progress=False)
    test_from = MIDNIGHT + 7 * 86_400
    turned = [(u, t, a, p, c, n) if t >= test_from else (u, t, a, p, n, c) for u, t, a, p, n, c in samples]  # type: ignore[operator]
    write_csv(tmp_path / "public" / "raw_sample.csv", SAMPLE_HEADER, turned)
    prepare_alimama(tmp_path / "public", tmp_path / "b", validation_share=0, show_progress=False)
    a, b = open_catalogue(tmp_path / "a"), open_catalogue(tmp_path / "b")
    assert np.array_equal(a.popularity, b.popularity)
    assert np.array_equal(a.codes, b.codes)
    assert a.popularity.sum() > 0


def test_vectors_know_nothing_of_the_validation(tmp_path: Path) -> None:
    """The clicks that early stopping is judged by are no more a source of vectors than those of the test day."""
    samples = make_source(tmp_path / "public")
    prepare_alimama(tmp_path / "public", tmp_path / "a", validation_share=0.5, show_progress=False)
    held_out = {int(row["user"]["user"]) for row, _ in all_rows(tmp_path / "a", "validation")}  # type: ignore[index]
    from_s = MIDNIGHT + 6 * 86_400
    turned = [
        (u, t, a, p, c, n) if t >= from_s and u in held_out else (u, t, a, p, n, c)  # type: ignore[operator]
        for u, t, a, p, n, c in samples
    ]
    assert turned != samples
    write_csv(tmp_path / "public" / "raw_sample.csv", SAMPLE_HEADER, turned)
    prepare_alimama(tmp_path / "public", tmp_path / "b", validation_share=0.5, show_progress=False)
    assert np.array_equal(open_catalogue(tmp_path / "a").codes, open_catalogue(tmp_path / "b").codes)


def test_fields_profiles_and_the_behaviour_log(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    prepare_alimama(source, out, by="trigger", with_behaviour_log=True, show_progress=False)
    assert [f.name for f in open_dataset(out).schema.context] == ["pid", "hour", "category_views", "category_actions"]
    rows = all_rows(out, "train")
    assert any(row["context"]["category_views"] > 0 for row, _ in rows)  # type: ignore[index]
    assert {row["user"].get("final_gender_code") for row, _ in rows} == {"1", "2", None}  # type: ignore[union-attr]
    assert all("pvalue_level" not in row["user"] for row, _ in rows), "empty in the file is missing"  # type: ignore[operator]
    ids = [row["request_id"] for row, _ in rows]
    assert len(set(ids)) == len(ids)
    assert any(len(clicks) > 1 for _, clicks in rows), "a trigger's pages are one request"
    for row, _ in rows:
        assert len(set(row["candidates"])) == len(row["candidates"]), "an ad on two pages is one candidate"  # type: ignore[arg-type]
    catalogue = open_catalogue(out)
    row = int(catalogue.rows(["4"])[0])
    assert catalogue.raw(row) | {"price": 6.0} == catalogue.raw(row)
    assert catalogue.raw(row)["brand"] is None
    assert catalogue.raw(row)["leaf_category"] == "4"


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("raw_sample.csv", "1,1494000000,5,p,1,1", ["row 3", "nonclk and clk"]),
        ("raw_sample.csv", "x,1494000000,5,p,1,0", ["after row", "Row #4", "'x'"]),
        ("raw_sample.csv", ",1494000000,5,p,1,0", ["row 3", "column user"]),
        ("raw_sample.csv", "1,1494000000,5", ["Expected 6 columns, got 3"]),
        ("ad_feature.csv", "1,1,1,1,1,1.0", ["row 3", "adgroup_id", "unique"]),
        ("user_profile.csv", "2,1,2,1,3,,3,0,", ["row 3", "userid", "unique"]),
    ],
)
def test_errors_name_file_row_and_column(source: Path, tmp_path: Path, file: str, line: str, words: list[str]) -> None:
    lines = (source / file).read_text().splitlines()
    (source / file).write_text("\n".join([*lines[:3], line, ""]))
    with pytest.raises(DataError) as caught:
        prepare_alimama(source, tmp_path / "prepared", show_progress=False)
    for word in [str(source / file), *words]:
        assert word in str(caught.value)
    assert not (tmp_path / "prepared").exists()


def test_a_missing_file_and_a_missing_column_are_named(source: Path, tmp_path: Path) -> None:
    text = (source / "ad_feature.csv").read_text()
    (source / "ad_feature.csv").write_text(text.replace("cate_id", "category", 1))
    with pytest.raises(DataError, match=r"no columns \['cate_id'\]"):
        prepare_alimama(source, tmp_path / "prepared", show_progress=False)
    (source / "ad_feature.csv").unlink()
    with pytest.raises(DataError, match="no such file"):
        prepare_alimama(source, tmp_path / "prepared", show_progress=False)


def test_streams_come_in_batches_and_count_their_rows(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.alimama_files.BLOCK_BYTES", 4_096)
    starts = [(first, batch.num_rows) for first, batch in stream_samples(source / "raw_sample.csv")]
    assert len(starts) > 5
    assert [first for first, _ in starts[1:]] == (1 + np.cumsum([n for _, n in starts])[:-1]).tolist()


# --- proxy vectors ---------------------------------------------------------------------------------------------------


def test_categories_that_the_same_users_click_are_near() -> None:
    random = np.random.default_rng(1)
    group = random.integers(0, 2, 600)
    category = group * 3 + random.integers(0, 3, 600)
    user = np.repeat(np.arange(200), 3)
    category = category.reshape(200, 3) % 3 + 3 * (np.arange(200) % 2)[:, None]
    vectors = spectral_categories(user, category.ravel(), 7)
    near = vectors @ vectors.T
    assert near[0, 1] > 0
    assert near[3, 4] > 0
    assert near[0, 4] < 0
    assert not vectors[6].any(), "never clicked"


def test_equal_values_point_the_same_way_and_none_nowhere() -> None:
    directions = random_directions(np.array(["a", "b", "a", None], dtype=object), "brand")
    assert np.array_equal(directions[0], directions[2])
    assert abs(float(directions[0] @ directions[1])) < 0.8
    assert not directions[3].any()


def test_proxy_vectors_rank_same_category_over_nothing_in_common(source: Path) -> None:
    ads: Ads = read_ads(source / "ad_feature.csv")
    random = np.random.default_rng(0)
    vectors = proxy_vectors(ads, random.integers(0, 50, 300), random.choice(ads.ids, 300))
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    category = ads.texts["cate_id"]
    near = vectors @ vectors.T
    same = (category[:, None] == category[None, :]) & ~np.eye(len(category), dtype=bool)
    assert near[same].mean() > near[~same & ~np.eye(len(category), dtype=bool)].mean() + 0.3
    again = proxy_vectors(ads, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    assert np.isfinite(again).all(), "no click at all"


def test_users_without_a_profile_have_missing_fields(source: Path) -> None:
    profiles = read_profiles(source / "user_profile.csv")
    assert profiles.columns(np.array([2, 999]))["cms_segid"].tolist() == ["1", None]

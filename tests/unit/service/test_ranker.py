"""Ranker.rank on a real bundle: what is answered when parts are unknown, late or broken."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.behaviour_codec import StoredBehaviour
from service.contract.requests import RequestBatch
from service.deadline import Deadline
from service.errors import ModelFailed
from service.metrics import Metrics, StageTimer
from service.question import Question
from service.ranker import Ranker, Ranking
from service.request_log import RequestLog
from service.runtime import Runtime
from service.user_store import StoredUser
from tests.small_bundle import NOW, PRIOR, HandMade, candidate_graph, item_ids, make_encoder, row, write_small_bundle

CLICKS = (StoredBehaviour("i8", NOW - 60_000, "click"), StoredBehaviour("i3", NOW - 7_200_000, "click"))


def ask(ranker: Ranker, deadline_ms: float = 10_000, **changes: object) -> Ranking:
    """The ranking of one question, in full."""
    question = replace(Question("r", NOW, "u1", "i0"), **changes)  # type: ignore[arg-type]
    return asyncio.run(ranker.rank(question, Deadline.after_ms(deadline_ms), StageTimer()))


def ids(ranking: Ranking) -> list[object]:
    return [item["id"] for item in ranking.items]


def test_given_candidates_come_back_as_a_permutation_ordered_by_the_network(runtime: Runtime) -> None:
    asked = item_ids()[:300]
    ranking = ask(runtime.ranker, candidates=asked, behaviours=CLICKS)
    expected = HandMade.for_encoder(runtime.encoder).logits(
        runtime.encoder, row(asked, behaviours=[("i8", 60), ("i3", 7200)])
    )
    assert ids(ranking) == [asked[place] for place in np.argsort(-expected, kind="stable")]
    assert (ranking.degraded, ranking.coverage, ranking.n_used) == ((), 1.0, 2)
    assert ranking.newest_age_s == 60.0


def test_b4_repeated_candidates_are_answered_once_at_their_first_mention(runtime: Runtime) -> None:
    ranking = ask(runtime.ranker, candidates=["i3", "i5", "i3", "i5", "i3"])
    assert sorted(map(str, ids(ranking))) == ["i3", "i5"]
    assert ranking.n_candidates == 2


def test_where_the_network_gave_no_scores_none_were_finite_or_not(runtime: Runtime) -> None:
    assert ask(runtime.ranker, candidates=[]).finite_share is None
    assert ask(runtime.ranker, candidates=["i5"]).finite_share == 1


def test_b4_without_deduplication_they_come_twice(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.ranker.distinct_ids", lambda ids, _: list(ids))
    assert len(ask(runtime.ranker, candidates=["i3", "i5", "i3"]).items) == 3


def test_two_spellings_of_one_id_are_one_candidate_in_the_callers_spelling(runtime: Runtime) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert ids(ask(runtime.ranker, candidates=[decomposed, composed])) == [decomposed]


def test_b1_an_unknown_user_is_no_degradation(runtime: Runtime) -> None:
    ranking = ask(runtime.ranker, user="never seen", candidates=["i3", "i9"])
    assert (ranking.degraded, ranking.n_used, ranking.newest_age_s) == ((), 0, None)


def test_b2_an_unknown_trigger_is_named_and_ranked(runtime: Runtime) -> None:
    ranking = ask(runtime.ranker, trigger="never seen", candidates=["i3", "i9"])
    assert ranking.degraded == ("trigger_unknown",)
    assert ranking.coverage == 1.0
    assert {item["level"] for item in ranking.items} == {0}


def test_b3_unknown_candidates_are_kept_scored_and_cold(runtime: Runtime) -> None:
    ranking = ask(runtime.ranker, candidates=["i3", "new"])
    assert {item["id"]: item["cold"] for item in ranking.items} == {"i3": False, "new": True}
    assert all(item["score"] is not None for item in ranking.items)
    assert ask(runtime.ranker, candidates=["new", "newer"]).degraded == ("candidates_unknown",)


def n_cold_counted(
    ranker: Ranker, candidates: list[str], top_k: int | None = None
) -> tuple[float | None, float | None]:
    """(cold candidates, all candidates) as the series say after one question."""
    ranker._metrics = metrics = Metrics()
    ask(ranker, candidates=candidates, top_k=top_k)
    of = metrics.registry.get_sample_value
    return of("daian_cold_total", {"kind": "candidate"}), of("daian_candidates_sum")


def test_cold_candidates_are_counted_before_the_cut_as_all_candidates_are(runtime: Runtime) -> None:
    asked = ["i3", "new", "newer", "newest"]
    page = ask(runtime.ranker, candidates=asked, top_k=1)
    assert sum(bool(item["cold"]) for item in page.items) < 3  # counted on the page, most would be missing
    assert page.n_cold == 3
    assert n_cold_counted(runtime.ranker, candidates=asked, top_k=1) == (3.0, 4.0)
    assert n_cold_counted(runtime.ranker, candidates=asked) == (3.0, 4.0)


def test_an_empty_list_gives_no_items_and_no_recall(runtime: Runtime) -> None:
    ranking = ask(runtime.ranker, candidates=[])
    assert (ranking.items, ranking.degraded, ranking.coverage) == ([], (), 1.0)


def test_without_candidates_twenty_are_recalled(runtime: Runtime) -> None:
    ranking = ask(runtime.ranker)
    assert (len(ranking.items), ranking.n_candidates) == (20, 400)
    assert "i0" not in ids(ranking)


def test_excluded_items_are_neither_recalled_nor_answered(runtime: Runtime) -> None:
    first = [str(found) for found in ids(ask(runtime.ranker))][:5]
    assert not set(first) & set(ids(ask(runtime.ranker, exclude=first, top_k=400)))
    assert ids(ask(runtime.ranker, candidates=["i3", "i5"], exclude=["i5"])) == ["i3"]


def test_same_question_same_answer(runtime: Runtime) -> None:
    assert ask(runtime.ranker).items == ask(runtime.ranker).items


@pytest.fixture
def logging(runtime: Runtime, tmp_path: Path) -> Runtime:
    """The same, with a log of what was ranked."""
    runtime.ranker._request_log = RequestLog(tmp_path / "ranked.ndjson", Metrics())
    return runtime


def test_stored_behaviours_and_attributes_are_used(logging: Runtime) -> None:
    class Knowing:
        async def fetch(self, user_id: str, requested_at: int, tenant: str) -> StoredUser:
            assert (user_id, requested_at, tenant) == ("u1", NOW, "main")
            return StoredUser({"city": "hz", "unknown": "x"}, CLICKS)

    logging.ranker._store = Knowing()  # type: ignore[assignment]
    ranking = ask(logging.ranker, candidates=["i3"])
    assert ranking.n_used == 2
    assert ranking.row["user"] == {"city": "hz", "user": "u1"}


class AwayStore:
    """A store that is down."""

    async def fetch(self, user_id: str, requested_at: int, tenant: str) -> StoredUser:  # noqa: ARG002
        return StoredUser(degraded=("behaviours",))


def test_a_store_that_is_away_costs_the_history_and_is_named(runtime: Runtime) -> None:
    runtime.ranker._store = AwayStore()  # type: ignore[assignment]
    ranking = ask(runtime.ranker, candidates=["i3", "i9"])
    assert (ranking.degraded, ranking.n_used, ranking.coverage) == (("behaviours",), 0, 1.0)
    assert ask(runtime.ranker, user=None, candidates=["i3"]).degraded == ()  # anonymous: nobody was asked


def broken(*_: object) -> None:
    raise ModelFailed("broken on purpose")


@pytest.mark.parametrize("part", ["encode_request", "score"])
def test_a_failing_graph_leaves_similarity_then_popularity_then_the_given_order(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(runtime.scorer, part, broken)
    asked = item_ids()[:50]
    ranking = ask(runtime.ranker, candidates=asked)
    similarity = runtime.encoder.catalogue.similarity(np.array([1]), np.arange(1, 51))
    assert ids(ranking) == [asked[place] for place in np.argsort(-similarity, kind="stable")]
    assert (ranking.degraded, ranking.coverage) == (("model",), 0.0)
    assert {item["ctr"] for item in ranking.items} == {PRIOR}

    assert ids(ask(runtime.ranker, trigger="unknown", candidates=["i9", "i3"])) == ["i3", "i9"]  # by popularity
    assert ids(ask(runtime.ranker, trigger="unknown", candidates=["b", "a"])) == ["b", "a"]
    assert len(ask(runtime.ranker).items) == 20  # recall answers without a network too


def test_a_deadline_that_ends_between_chunks_is_named_with_its_coverage(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runtime.scorer.score
    monkeypatch.setattr(runtime.scorer, "_chunk", 64)

    def slow(state, inputs, _deadline):  # type: ignore[no-untyped-def]
        moments = iter([5.0, 6.0, 6.0, 7.0, 9.5])  # two chunks of a second each, then half a second is left
        return real(state, inputs, Deadline(at_s=10.0, clock=lambda: next(moments)))

    monkeypatch.setattr(runtime.scorer, "score", slow)
    ranking = ask(runtime.ranker, candidates=item_ids()[:256])
    assert (ranking.degraded, ranking.coverage) == (("deadline",), 0.5)
    assert ranking.finite_share == 1  # of what was tried
    assert [item["reason"] for item in ranking.items[128:]] == ["prior"] * 128
    assert ids(ranking)[128:] == item_ids()[128:256]


def test_c5_numbers_that_are_not_finite_become_the_prior(
    open_bundle: Callable[[Path], Runtime], tmp_path: Path
) -> None:
    bad = 2 + 7  # the encoded id of i7: 0 and 1 are nothing and unknown
    bundle = write_small_bundle(tmp_path, candidates=candidate_graph(nan_for_item=bad), golden=[
        {"case": "one", "request": row(["i5"]), "logits": _expected(["i5"]), "intent": None}
    ])  # fmt: skip
    ranking = ask(open_bundle(bundle.path).ranker, candidates=["i6", "i7", "i8"])
    assert ranking.degraded == ("scores",)
    assert ranking.items[-1]["id"] == "i7"
    assert (ranking.items[-1]["score"], ranking.items[-1]["ctr"]) == (None, PRIOR)
    assert ranking.coverage == ranking.finite_share == pytest.approx(2 / 3)


def _expected(candidates: list[str]) -> list[float]:
    encoder = make_encoder()
    return HandMade.for_encoder(encoder).logits(encoder, row(candidates)).tolist()


def test_what_was_ranked_is_a_row_of_the_contract_that_encodes_to_the_same(logging: Runtime) -> None:
    ranking = ask(logging.ranker, candidates=["i3", "i9"], behaviours=CLICKS, context={"surface": "home"})
    inputs = logging.encoder.encode(RequestBatch.from_rows([ranking.row]))
    assert ranking.row["candidates"] == ids(ranking)
    assert (inputs.history_age > 0).sum() == 2
    assert inputs.context_fields[0, 0] >= 2  # "home" is known


def test_without_a_log_no_row_is_made(runtime: Runtime) -> None:
    assert ask(runtime.ranker, candidates=["i3"]).row == {}

"""The stage before ranking: what it leaves, what is left when it cannot, and bundles with and without it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import prerank, runtime
from service.bundle_swap import prerank_plan
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.contract.requests import RequestBatch
from service.deadline import Deadline
from service.doctor import verify
from service.errors import ModelFailed
from service.metrics import StageTimer
from service.prerank import Preranker, PrerankPlan
from service.question import Question
from service.ranker import Ranker, Ranking
from service.runtime import Runtime, Shared, open_preranker, open_runtime
from service.settings import Settings, SettingsError
from tests.small_bundle import NOW, HandMade, candidate_graph, item_ids, row, write_small_bundle

PLAN = PrerankPlan(n_recalled=300, n_kept=40)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a pre-ranker; read only."""
    return write_small_bundle(tmp_path_factory.mktemp("prerank"), prerank=True)


def opened(bundle: Bundle, shared: Shared, plan: PrerankPlan | None = PLAN) -> Runtime:
    return open_runtime(bundle.path, shared, chunk=64, ort_threads=1, loaded_at=0.0, prerank=plan)


def ask(ranker: Ranker, deadline_ms: float = 10_000, **changes: object) -> Ranking:
    question = replace(Question("r", NOW, "u1", "i0"), **changes)  # type: ignore[arg-type]
    return asyncio.run(ranker.rank(question, Deadline.after_ms(deadline_ms), StageTimer()))


def recalled(one: Runtime) -> list[str]:
    """What recall gives for the question of `ask`, in its order."""
    catalogue, nothing = one.encoder.catalogue, np.zeros(0, np.int64)
    inputs = one.encoder.encode_request(RequestBatch.from_rows([row([])]))
    intent = one.scorer.encode_request(inputs).intent
    trigger = int(catalogue.rows(["i0"])[0])
    return catalogue.ids(one.ranker._retriever.recall(trigger, nothing, intent, nothing, PLAN.n_recalled).rows)


def best_by_hand(one: Runtime, ids: list[str], n: int) -> set[str]:
    logits = HandMade.preranker(one.encoder).logits(one.encoder, row(ids))
    return {ids[place] for place in np.argsort(-logits, kind="stable")[:n]}


# ---- what it leaves -------------------------------------------------------------------------------------------------


def test_of_what_is_recalled_its_best_are_ranked_by_the_ranker(both: Bundle, shared: Shared) -> None:
    one = opened(both, shared)
    ranking = ask(one.ranker, top_k=40)
    assert (ranking.n_candidates, ranking.degraded, ranking.coverage) == (40, (), 1.0)
    kept = {str(item["id"]) for item in ranking.items}
    assert kept == best_by_hand(one, recalled(one), 40)
    assert kept != set(recalled(one)[:40])  # it did choose
    scores = [float(str(item["score"])) for item in ranking.items]
    assert scores == sorted(scores, reverse=True)
    order = [str(item["id"]) for item in ranking.items]
    assert scores == pytest.approx(HandMade.for_encoder(one.encoder).logits(one.encoder, row(order)).tolist(), abs=1e-5)


def test_without_the_stage_other_items_are_ranked(both: Bundle, shared: Shared) -> None:
    assert ask(opened(both, shared, None).ranker).n_candidates == 400


def test_candidates_of_the_caller_are_never_cut(both: Bundle, shared: Shared) -> None:
    asked = item_ids()[:300]
    ranking = ask(opened(both, shared).ranker, candidates=asked)
    assert sorted(str(item["id"]) for item in ranking.items) == sorted(asked)


def test_a_longer_page_is_not_cut_short(both: Bundle, shared: Shared) -> None:
    assert len(ask(opened(both, shared).ranker, top_k=120).items) == 120


def test_fewer_recalled_than_kept_are_all_ranked_without_asking(
    both: Bundle, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preranker, "best", broken)
    ranking = ask(opened(both, shared).ranker, exclude=item_ids()[:580])
    assert 0 < ranking.n_candidates < 40
    assert ranking.degraded == ()


# ---- what is left when it cannot ------------------------------------------------------------------------------------


def broken(*_: object) -> None:
    raise ModelFailed("broken on purpose")


def check_the_first_recalled_are_ranked(one: Runtime, deadline_ms: float = 10_000) -> None:
    ranking = ask(one.ranker, deadline_ms, top_k=40)
    assert ranking.degraded == ("prerank",)
    assert {str(item["id"]) for item in ranking.items} == set(recalled(one)[:40])
    assert ranking.coverage == 1.0


@pytest.mark.parametrize("part", ["encode_request", "score"])
def test_a_failing_graph_leaves_the_first_recalled(
    both: Bundle, shared: Shared, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    one = opened(both, shared)
    monkeypatch.setattr(one.ranker._preranker._scorer, part, broken)  # type: ignore[union-attr]
    check_the_first_recalled_are_ranked(one)


def test_without_the_catch_a_failing_graph_would_cost_the_answer(
    both: Bundle, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    class UncaughtError(Exception):
        """What nobody catches."""

    monkeypatch.setattr("service.ranker.ModelFailed", UncaughtError)
    one = opened(both, shared)
    monkeypatch.setattr(one.ranker._preranker._scorer, "score", broken)  # type: ignore[union-attr]
    with pytest.raises(ModelFailed):
        ask(one.ranker)


def test_numbers_that_are_not_finite_choose_nothing(shared: Shared, tmp_path: Path) -> None:
    bad = 2 + 7  # the encoded id of i7, which is in no golden request of the pre-ranker
    graph = candidate_graph(nan_for_item=bad)
    one = opened(write_small_bundle(tmp_path, prerank=True, prerank_candidates=graph), shared, PrerankPlan(590, 40))
    ranking = ask(one.ranker, top_k=40)
    assert ranking.degraded == ("prerank",)
    assert ranking.coverage == 1.0


def inputs_of(one: Runtime, n: int) -> object:
    return one.encoder.encode(RequestBatch.from_rows([row(item_ids()[:n])]))


def clock(moments: list[float]) -> Callable[[], float]:
    given = iter(moments)
    return lambda: next(given)


def test_it_takes_no_more_than_half_of_the_time_left(both: Bundle, shared: Shared) -> None:
    """Ten seconds are left when it begins and each chunk of 64 takes two: after two of five it gives up."""
    one = opened(both, shared)
    preranker = one.ranker._preranker
    assert preranker is not None
    asked = inputs_of(one, 320)
    # left, begins; then before and after every chunk
    seconds = [0.0, 0.0, 0.0, 2.0, 2.0, 4.0, 4.0]
    assert preranker.best(asked, 40, Deadline(10.0, clock(seconds))) is None  # type: ignore[arg-type]


def test_if_it_took_all_the_time_it_would_not_give_up(
    both: Bundle, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prerank, "SHARE_OF_TIME", 0.0)
    preranker = opened(both, shared).ranker._preranker
    assert preranker is not None
    asked = inputs_of(opened(both, shared), 256)
    seconds = [0.0, 0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 8.0]
    found = preranker.best(asked, 40, Deadline(10.0, clock(seconds)))  # type: ignore[arg-type]
    assert found is not None
    assert len(found) == 40


def test_a_deadline_that_has_passed_is_not_spent_on(both: Bundle, shared: Shared) -> None:
    one = opened(both, shared)
    assert one.ranker._preranker is not None
    assert one.ranker._preranker.best(inputs_of(one, 50), 40, Deadline(0.0, lambda: 1.0)) is None  # type: ignore[arg-type]


# ---- bundles --------------------------------------------------------------------------------------------------------


def test_a_bundle_without_a_preranker_is_refused_when_one_is_asked_for(bundle: Bundle, shared: Shared) -> None:
    with pytest.raises(BundleError, match=r"no pre-ranker and DAIAN_PRERANK is on: export the bundle with --prerank"):
        opened(bundle, shared)
    assert opened(bundle, shared, None).label == "daian@v1"


def test_a_preranker_that_scores_otherwise_is_refused_by_its_golden_requests(shared: Shared, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path, prerank=True, prerank_candidates=candidate_graph(nan_for_item=2 + 5))
    with pytest.raises(BundleError, match=r"prerank/golden\.jsonl, line 1"):
        opened(bundle, shared)
    with pytest.raises(BundleError, match=r"prerank/golden\.jsonl, line 1"):
        verify(bundle.path, Settings())
    assert opened(bundle, shared, None).label == "daian@v1"  # nobody asks it


def test_without_the_replay_it_would_be_served(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_small_bundle(tmp_path, prerank=True, prerank_candidates=candidate_graph(nan_for_item=2 + 5))
    monkeypatch.setattr(runtime, "self_check", lambda *_, **__: 1)
    assert opened(bundle, shared).ranker._preranker is not None


def test_a_flipped_bit_in_its_table_is_refused(shared: Shared, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path, prerank=True)
    table = bundle.path / "prerank" / "tables" / "table.item.npy"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    with pytest.raises(BundleError, match=r"prerank/tables/table\.item\.npy"):
        opened(bundle, shared)


def test_its_tables_are_its_own(both: Bundle) -> None:
    """Both parts have a table of the same name; each graph gets the one of its folder."""
    encoder = both.open_encoder()
    found = open_preranker(both, encoder, PLAN, 256, 1)
    inputs = encoder.encode(RequestBatch.from_rows([row(["i5", "i6"])]))
    scores = found._scorer.score(found._scorer.encode_request(inputs), inputs, Deadline.after_ms(1000)).logits
    assert scores.tolist() == pytest.approx(HandMade.preranker(encoder).logits(encoder, row(["i5", "i6"])).tolist())


def test_verify_counts_both_parts(both: Bundle, bundle: Bundle) -> None:
    assert "5 golden requests" in verify(both.path, Settings())
    assert "3 golden requests" in verify(bundle.path, Settings())


# ---- settings -------------------------------------------------------------------------------------------------------


def test_it_is_off_unless_asked_for() -> None:
    assert prerank_plan(Settings()) is None
    assert prerank_plan(Settings(prerank="on")) == PrerankPlan(2000, 200)


def test_a_plan_that_cuts_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="DAIAN_PRERANK_KEEP is 300 of 300"):
        prerank_plan(Settings(prerank="on", prerank_recall=300, prerank_keep=300))

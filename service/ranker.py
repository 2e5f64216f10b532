"""Ranker.rank: one request, start to end.

Called by the routes with a validated question, a deadline that was admitted, and a stage timer. The store is asked in
the event loop; everything after it (encoding, both graphs, recall, order) is one piece of work in one worker thread. A
part that fails costs quality, never the answer, and is named in `degraded`; `page.py` has the ladder of what is left.
Never here: HTTP, JSON, wall clocks, tensors of its own making.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Float32, Int64

from service import page
from service.admission import Admission
from service.contract.encoder import Encoder, ModelInputs
from service.contract.requests import RequestBatch
from service.deadline import Deadline
from service.errors import ModelFailed
from service.label_values import DegradedReason
from service.metrics import Metrics, StageTimer
from service.prerank import Preranker
from service.question import Question, batch_of, distinct_ids, row_of
from service.request_log import RequestLog
from service.retriever import NEWEST, POOL, Retriever
from service.scorer import RequestState, Scorer
from service.user_store import StoredUser, UserStore

RECALLED_TOP_K = 20  # items answered when the candidates come from recall and the caller names no top_k
_log = logging.getLogger("daian.ranker")


@dataclass(frozen=True)
class Intent:
    """The distribution over similarity levels, as predicted and as applied by recall and scoring."""

    edges: list[float]
    predicted: list[float]
    applied: list[float]


@dataclass(frozen=True)
class Ranking:
    """The answer in plain values; `row` is what was ranked, as a row of the contract, while it is logged.

    `n_candidates` and of them `n_cold`, which the catalogue does not know, are from before the cut to `top_k`.
    `finite_share` is of the scores that the network gave, however far it got; None when it gave none.
    """

    degraded: tuple[DegradedReason, ...]
    coverage: float
    finite_share: float | None
    intent: Intent | None
    n_used: int
    n_similar: int
    newest_age_s: float | None
    n_candidates: int
    n_cold: int
    items: list[dict[str, object]]
    row: dict[str, object]


@dataclass
class Turn:
    """One request on its way through the worker thread; `missing` collects what the answer lacks, in order.

    `trigger_row` is the trigger's row of the catalogue, 0 when it is unknown or not looked up yet.
    """

    question: Question
    user: StoredUser
    deadline: Deadline
    timer: StageTimer
    missing: dict[DegradedReason, None] = field(default_factory=dict)
    trigger_row: int = 0
    finite_share: float | None = None

    def lost(self, *reasons: DegradedReason) -> None:
        """Notes reasons for the answer's `degraded` list."""
        self.missing.update(dict.fromkeys(reasons))


@dataclass(frozen=True)
class _Candidates:
    """What is to be ranked: ids as they are answered, and their rows of the catalogue, 0 for the unknown."""

    ids: Sequence[str]
    rows: Int64[np.ndarray, " N"]


class Ranker:
    """Ranks with one bundle. The runtime makes one per bundle; store, admission, log and metrics outlive it."""

    def __init__(
        self,
        encoder: Encoder,
        scorer: Scorer,
        retriever: Retriever,
        prior: float,
        store: UserStore,
        admission: Admission,
        request_log: RequestLog,
        metrics: Metrics,
        preranker: Preranker | None = None,
    ) -> None:
        self._encoder, self._catalogue = encoder, encoder.catalogue
        self._scorer, self._retriever, self._prior = scorer, retriever, prior
        self._store, self._admission = store, admission
        self._request_log, self._metrics = request_log, metrics
        self._preranker = preranker

    async def rank(self, question: Question, deadline: Deadline, timer: StageTimer) -> Ranking:
        """The ranked page of one question.

        Raises DeadlineExceeded when no worker was free in time; every other failure becomes a degraded answer.
        """
        with timer.stage("behaviours"):
            user = await self._fetch(question)
        turn = Turn(question, user, deadline, timer, dict.fromkeys(user.degraded))
        ranking = await self._admission.run(partial(self.compute, turn), deadline)
        self._request_log.append(ranking.row, question.tenant)
        self._observe(ranking)
        return ranking

    async def _fetch(self, question: Question) -> StoredUser:
        """The user's profile and behaviours; anonymous callers and those who bring their own cost no round trip."""
        if question.user is None or question.behaviours is not None:
            return StoredUser(behaviours=tuple(question.behaviours or ()))
        return await self._store.fetch(question.user, question.requested_at, question.tenant)

    def compute(self, turn: Turn) -> Ranking:
        """The CPU part, whole, in the calling thread."""
        with turn.timer.stage("encode"):
            inputs = self._encoder.encode_request(self._batch(turn))
            turn.trigger_row = self._catalogue.row(turn.question.trigger)
        state = self._request_state(turn, inputs)
        candidates = self._candidates(turn, state, inputs)
        with turn.timer.stage("encode"):
            inputs = self._with_candidates(turn, inputs, candidates.rows)
        logits = self._logits(turn, state, inputs)
        with turn.timer.stage("order"):
            return self._ranking(turn, self._scored(turn, candidates, inputs, logits), state, inputs)

    def _candidates(self, turn: Turn, state: RequestState | None, inputs: ModelInputs) -> "_Candidates":
        """The caller's, each once, or recall's."""
        asked = turn.question.candidates
        if asked is None:
            return self._recalled(turn, state, inputs)
        with turn.timer.stage("encode"):
            ids = distinct_ids(asked, turn.question.exclude)
            return _Candidates(ids, self._catalogue.rows(ids))

    def _with_candidates(self, turn: Turn, inputs: ModelInputs, rows: Int64[np.ndarray, " N"]) -> ModelInputs:
        trigger = np.array([turn.trigger_row], np.int64)
        return self._encoder.encode_candidate_rows(inputs, trigger, rows, np.zeros(len(rows), np.int64))

    def _batch(self, turn: Turn) -> RequestBatch:
        return batch_of(turn.question, self._encoder.schema, turn.user.attributes, turn.user.behaviours)

    def _row(self, turn: Turn, ids: Sequence[str]) -> dict[str, object]:
        return row_of(turn.question, self._encoder.schema, turn.user.attributes, turn.user.behaviours, ids)

    def _request_state(self, turn: Turn, inputs: ModelInputs) -> RequestState | None:
        """The request graph's state; None when it failed or its time was already over."""
        if turn.deadline.passed():
            turn.lost("deadline")
            return None
        try:
            with turn.timer.stage("request_graph"):
                return self._scorer.encode_request(inputs)
        except ModelFailed:
            _log.exception("request graph failed")
            return None

    def _recalled(self, turn: Turn, state: RequestState | None, inputs: ModelInputs) -> "_Candidates":
        """Candidates from the index, cut by the pre-ranker if there is one, in id order: equal scores then have one
        order.
        """
        rows = self._recall(turn, state)
        if self._preranker is not None:
            with turn.timer.stage("prerank"):
                rows = rows[self._kept(self._preranker, turn, inputs, rows)]
        ids = self._catalogue.ids(rows)
        by_id = sorted(range(len(ids)), key=ids.__getitem__)
        return _Candidates([ids[place] for place in by_id], rows[np.array(by_id, np.int64)])

    def _kept(
        self, preranker: Preranker, turn: Turn, inputs: ModelInputs, rows: Int64[np.ndarray, " P"]
    ) -> Int64[np.ndarray, " K"]:
        """Places of what is worth ranking; the first of recall's order, and said so, where the pre-ranker has none."""
        n_recalled = len(rows)
        n_kept = max(preranker.plan.n_kept, turn.question.top_k or 0)
        if n_recalled <= n_kept:
            return np.arange(n_recalled)
        best = None
        try:
            best = preranker.best(self._with_candidates(turn, inputs, rows), n_kept, turn.deadline)
        except ModelFailed:
            _log.exception("pre-ranker failed")
        if best is None:
            turn.lost("prerank")
            return np.arange(n_kept)
        return best

    def _recall(self, turn: Turn, state: RequestState | None) -> Int64[np.ndarray, " P"]:
        """Catalogue rows from the index, in recall's order."""
        with turn.timer.stage("recall"):
            newest = sorted(turn.user.behaviours, key=lambda behaviour: behaviour.at)[-NEWEST:]
            recalled = self._retriever.recall(
                turn.trigger_row,
                self._catalogue.rows([behaviour.item for behaviour in newest]),
                None if state is None else state.intent,
                self._catalogue.rows(list(turn.question.exclude)),
                POOL if self._preranker is None else self._preranker.plan.n_recalled,
            )
            if not recalled.near:
                turn.lost("recall")
            return recalled.rows

    def _logits(self, turn: Turn, state: RequestState | None, inputs: ModelInputs) -> Float32[np.ndarray, " N"]:
        """Logits where the network reached in time, NaN elsewhere, with the reasons noted."""
        logits = np.full(len(inputs.candidate_similarity), np.nan, np.float32)
        if state is not None and len(logits):
            try:
                with turn.timer.stage("candidate_graph"):
                    scores = self._scorer.score(state, inputs, turn.deadline)
                logits[: len(scores.logits)] = scores.logits
                if not scores.in_time:
                    turn.lost("deadline")
                if n_given := len(scores.logits):
                    turn.finite_share = np.count_nonzero(np.isfinite(scores.logits)) / n_given
                    if turn.finite_share < 1:
                        turn.lost("scores")
            except ModelFailed:
                _log.exception("candidate graph failed")
        if state is None or (len(logits) and not np.isfinite(logits).any()):
            turn.lost("model")
        return logits

    def _scored(
        self, turn: Turn, candidates: "_Candidates", inputs: ModelInputs, logits: Float32[np.ndarray, " N"]
    ) -> page.Scored:
        ids, rows = candidates.ids, candidates.rows
        if turn.trigger_row == 0:
            turn.lost("trigger_unknown")
        if len(rows) and not rows.any():
            turn.lost("candidates_unknown")
        levels = self._encoder.scale.level(inputs.candidate_similarity)
        popularity = self._catalogue.popularity.take(rows)
        return page.Scored(ids, logits, inputs.candidate_similarity, levels, popularity, rows > 0)

    def _ranking(self, turn: Turn, scored: page.Scored, state: RequestState | None, inputs: ModelInputs) -> Ranking:
        history = page.History(
            n_used=int(np.count_nonzero(inputs.history_age)),
            n_similar=int(np.count_nonzero(inputs.related_age)),
            related_threshold=self._encoder.rules.related_threshold,
        )
        items = page.items(scored, self._top_k(turn.question, len(scored.ids)), history, self._prior)
        return Ranking(
            degraded=tuple(turn.missing),
            coverage=scored.coverage,
            finite_share=turn.finite_share,
            intent=self._intent(state),
            n_used=history.n_used,
            n_similar=history.n_similar,
            newest_age_s=_newest_age_s(turn) if history.n_used else None,
            n_candidates=len(scored.ids),
            n_cold=len(scored.ids) - int(np.count_nonzero(scored.known)),
            items=items,
            row=self._row(turn, [str(item["id"]) for item in items]) if self._request_log.is_on else {},
        )

    def _intent(self, state: RequestState | None) -> Intent | None:
        if state is None or state.intent is None:
            return None
        predicted = state.intent.tolist()
        return Intent(self._encoder.scale.edges.tolist(), predicted, predicted)

    @staticmethod
    def _top_k(question: Question, n_candidates: int) -> int:
        if question.top_k is not None:
            return question.top_k
        return n_candidates if question.candidates is not None else RECALLED_TOP_K

    def _observe(self, ranking: Ranking) -> None:
        metrics = self._metrics
        metrics.candidates.observe(ranking.n_candidates)
        metrics.coverage.observe(ranking.coverage)
        metrics.behaviours_used.observe(ranking.n_used)
        if ranking.newest_age_s is not None:
            metrics.behaviour_age.observe(ranking.newest_age_s)
        for reason in ranking.degraded:
            metrics.degraded.labels(reason).inc()
        if ranking.items:
            metrics.top_level.labels(str(ranking.items[0]["level"])).inc()
        metrics.count_cold("candidate", ranking.n_cold)
        metrics.count_cold("trigger", int("trigger_unknown" in ranking.degraded))


def _newest_age_s(turn: Turn) -> float | None:
    """Seconds since the newest behaviour before the request, as the caller may check it against its own clicks."""
    times = [one.at for one in turn.user.behaviours if one.at < turn.question.requested_at]
    return round((turn.question.requested_at - max(times)) / 1000, 3) if times else None

"""The graphs in ONNX Runtime: chunks against the clock, failures by name, pairs that fit."""

import numpy as np
import pytest

from service.contract.encoder import ModelInputs
from service.contract.errors import BundleError
from service.contract.requests import RequestBatch
from service.deadline import Deadline
from service.errors import ModelFailed
from service.scorer import Graph, RequestState, Scorer
from tests.small_bundle import SCALE, HandMade, candidate_graph, item_ids, make_encoder, request_graph, row

ENCODER = make_encoder()
MODEL = HandMade.for_encoder(ENCODER)
TABLES = {"table.item": MODEL.table}


def make_scorer(chunk: int) -> Scorer:
    return Scorer(
        Graph("request.onnx", request_graph(SCALE.n_levels), TABLES),
        Graph("candidates.onnx", candidate_graph(), TABLES),
        chunk,
    )


def encoded(n: int) -> ModelInputs[np.ndarray]:
    return ENCODER.encode(RequestBatch.from_rows([row(item_ids()[:n], behaviours=[("i8", 60)])]))


class Ticking:
    """A clock that moves on by `step` at every look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_chunks_give_the_numbers_of_the_whole(chunk: int) -> None:
    inputs = encoded(100)
    scorer = make_scorer(chunk)
    scores = scorer.score(scorer.encode_request(inputs), inputs, Deadline.after_ms(10_000))
    expected = MODEL.logits(ENCODER, row(item_ids()[:100], behaviours=[("i8", 60)]))
    np.testing.assert_allclose(scores.logits, expected, atol=1e-5)
    assert scores.in_time


def test_scoring_stops_between_chunks_when_the_next_would_be_late() -> None:
    inputs, scorer = encoded(100), make_scorer(10)
    deadline = Deadline(at_s=7.5, clock=Ticking(1.0))  # each chunk looks twice: one second of work in its eyes
    scores = scorer.score(scorer.encode_request(inputs), inputs, deadline)
    assert not scores.in_time
    assert 0 < len(scores.logits) < 100
    assert len(scores.logits) % 10 == 0


def test_in_one_chunk_the_clock_is_not_seen() -> None:
    inputs, scorer = encoded(100), make_scorer(100)
    deadline = Deadline(at_s=7.5, clock=Ticking(1.0))
    assert len(scorer.score(scorer.encode_request(inputs), inputs, deadline).logits) == 100


def test_a_deadline_that_has_passed_scores_nothing() -> None:
    inputs, scorer = encoded(10), make_scorer(10)
    scores = scorer.score(scorer.encode_request(inputs), inputs, Deadline.after_ms(-1))
    assert (len(scores.logits), scores.in_time) == (0, False)


def test_the_intent_is_one_row() -> None:
    state = make_scorer(10).encode_request(encoded(1))
    assert state.intent is not None
    assert state.intent.shape == (SCALE.n_levels,)
    assert state.intent.sum() == pytest.approx(1.0)


def test_a_failure_inside_onnx_runtime_has_our_name() -> None:
    state = RequestState({"state.used": np.zeros((3, 3), np.float32)}, None)
    with pytest.raises(ModelFailed, match=r"candidates\.onnx"):
        make_scorer(10).score(state, encoded(4), Deadline.after_ms(1000))


def test_a_graph_that_asks_for_more_than_there_is_is_refused() -> None:
    with pytest.raises(BundleError, match=r"table\.item"):
        Scorer(Graph("request.onnx", request_graph(4), {}), Graph("candidates.onnx", candidate_graph(), {}), 10)


def test_bytes_that_are_no_model_are_refused_by_name() -> None:
    with pytest.raises(BundleError, match=r"request\.onnx cannot be opened"):
        Graph("request.onnx", b"not a model", {})


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_session_has_the_threads_it_was_given_and_none_that_spins(n_threads: int) -> None:
    """One thread a session, because the machine's parallelism is in the requests; one that spins takes it away."""
    graph = Graph("candidates.onnx", candidate_graph(), TABLES, n_threads)
    options = graph._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (n_threads, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"

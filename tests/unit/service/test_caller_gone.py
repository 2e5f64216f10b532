"""B15: nothing is computed for a caller that has left: neither from the queue on, nor from the next chunk on."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from service.admission import Admission
from service.contract.bundle import Bundle
from service.contract.requests import RequestBatch
from service.deadline import Deadline
from service.errors import CallerGone, verdict_of
from service.metrics import Metrics
from service.scorer import Graph, RequestState, Scorer
from service.settings import Settings
from tests.asgi_client import opened
from tests.small_bundle import SCALE, HandMade, candidate_graph, item_ids, make_encoder, request_graph, row


def after(n_looks: int) -> Callable[[], bool]:
    """A caller that leaves when it has been looked after so often."""
    left = iter([False] * n_looks)
    return lambda: next(left, True)


def waiting(is_gone: Callable[[], bool]) -> Deadline:
    return Deadline(Deadline.after_ms(60_000).at_s, is_gone=is_gone)


def run_for(is_gone: Callable[[], bool]) -> tuple[list[str], float | None]:
    """(what a worker did, callers that were found to be gone)."""
    done: list[str] = []
    metrics = Metrics()
    admission = Admission(1, metrics)
    with contextlib.closing(admission), contextlib.suppress(CallerGone):
        asyncio.run(admission.run(lambda: done.append("work"), waiting(is_gone)))
    return done, metrics.registry.get_sample_value("daian_shed_total", {"reason": "gone"})


def test_b15_a_caller_that_left_in_the_queue_costs_no_worker() -> None:
    assert verdict_of(CallerGone("")).status == 503
    assert run_for(lambda: True) == ([], 1.0)
    assert run_for(lambda: False) == (["work"], 0.0)


def n_chunks_scored(is_gone: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> int:
    encoder = make_encoder()
    tables = {"table.item": HandMade.for_encoder(encoder).table}
    candidates = Graph("candidates.onnx", candidate_graph(), tables)
    scorer = Scorer(Graph("request.onnx", request_graph(SCALE.n_levels), tables), candidates, 10)
    inputs = encoder.encode(RequestBatch.from_rows([row(item_ids()[:100], behaviours=[("i8", 60)])]))
    state: RequestState = scorer.encode_request(inputs)
    scored: list[int] = []
    run = candidates.run

    def counted(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        scored.append(1)
        return run(given)

    monkeypatch.setattr(candidates, "run", counted)
    with contextlib.suppress(CallerGone):
        scorer.score(state, inputs, waiting(is_gone))
    return len(scored)


def test_b15_a_caller_that_leaves_is_dropped_at_the_next_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert n_chunks_scored(after(3), monkeypatch) == 3


def test_b15_unasked_all_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert n_chunks_scored(lambda: False, monkeypatch) == 10


def test_b15_without_a_server_that_says_so_everybody_waits(bundle: Bundle) -> None:
    with opened(Settings(bundle_root=bundle.path, deadline_ms=2000)) as client:
        assert client.rank(trigger="i0").status_code == 200

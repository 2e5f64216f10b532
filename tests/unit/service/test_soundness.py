"""A bundle of whose scores half or more are no numbers is left for the one before, once, and says so."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.bundle_swap import BundleSwap
from service.contract.bundle import point_to, read_bundle
from service.contract.requests import RequestBatch
from service.ranker import Ranking
from service.runtime import Runtime
from service.settings import Settings
from service.soundness import Soundness
from tests.asgi_client import Client, opened
from tests.small_bundle import candidate_graph, item_ids, row, write_small_bundle
from tests.unit.service.test_bundle_swap import Tried, rehash

K = 3
BAD_ITEM = "i3"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """v1 is current; v2 and v3 beside it give NaN for one item, which no golden request asks for."""
    first = write_small_bundle(tmp_path, version="v1")
    place = int(first.open_encoder().encode(RequestBatch.from_rows([row([BAD_ITEM])])).candidate_fields[0, 0])
    for version in ("v2", "v3"):
        write_small_bundle(tmp_path, version=version)
        (tmp_path / "daian" / version / "candidates.onnx").write_bytes(candidate_graph(nan_for_item=place))
        rehash(tmp_path / "daian" / version)
    monkeypatch.setattr("service.runtime.self_check", lambda *_, **__: 1)
    point_to(tmp_path, first)
    return tmp_path


@pytest.fixture
def call(root: Path) -> Iterator[Client]:
    with opened(Settings(bundle_root=root, bundle_poll_s=0.05, bundle_failures=K, deadline_ms=2000)) as client:
        swap(client)._trial = Tried()
        yield client


def swap(call: Client) -> BundleSwap:
    found = call.app.state.parts.swap
    assert isinstance(found, BundleSwap)
    return found


def live(call: Client) -> str:
    return str(call.app.state.parts.switch.live.bundle.version)


def promote(call: Client, version: str) -> None:
    call._loop.run_until_complete(swap(call).promote(version))


def fail(call: Client, n: int) -> list[list[str]]:
    answers = [call.rank(trigger="i0", candidates=[BAD_ITEM, "i5"]) for _ in range(n)]
    assert {one.status_code for one in answers} == {200}
    return [one.json()["degraded"] for one in answers]


def succeed(call: Client) -> None:
    assert call.rank(trigger="i0", candidates=["i5"]).json()["degraded"] == []


def gauge(call: Client, outcome: str) -> float:
    found = call.app.state.parts.metrics.registry.get_sample_value("daian_bundle_failed", {"outcome": outcome})
    return float(found)


def states(call: Client) -> dict[str, str]:
    (model,) = call("GET", "/v1/models").json()["models"]
    return {one["version"]: one["state"] for one in model["versions"]}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    wanted = "bundle fail", "bundle gives"
    return [one.getMessage() for one in caplog.records if one.getMessage().startswith(wanted)]


def test_c5_after_k_answers_without_numbers_the_bundle_before_answers(
    call: Client, caplog: pytest.LogCaptureFixture
) -> None:
    succeed(call)
    promote(call, "v2")
    assert fail(call, K) == [["scores"]] * K
    assert live(call) == "v1"
    assert fail(call, 1) == [[]]
    assert states(call) == {"v1": "live", "v2": "failed"}
    assert (gauge(call, "went_back"), gauge(call, "stayed")) == (1, 0)
    assert said(caplog) == ["bundle failed, the one before answers"]


def test_c5_without_it_every_page_stays_without_numbers(root: Path) -> None:
    with opened(Settings(bundle_root=root, bundle_poll_s=0.05, bundle_failures=0, deadline_ms=2000)) as call:
        swap(call)._trial = Tried()
        succeed(call)
        promote(call, "v2")
        assert fail(call, 5 * K) == [["scores"]] * 5 * K
        assert (live(call), gauge(call, "went_back")) == ("v2", 0)


def test_one_answer_with_numbers_ends_the_row_and_an_answer_without_scores_does_not(call: Client) -> None:
    succeed(call)
    promote(call, "v2")
    for _ in range(3):
        fail(call, K - 1)
        succeed(call)
    fail(call, K - 1)
    assert call.rank(trigger="i0", candidates=[]).status_code == 200
    assert live(call) == "v2"
    fail(call, 1)
    assert live(call) == "v1"


def test_what_failed_is_not_opened_again_before_the_pointer_moves(call: Client, root: Path) -> None:
    succeed(call)
    promote(call, "v2")
    fail(call, K)
    trials = swap(call)._trial.paths  # type: ignore[attr-defined]
    n_trials = len(trials)
    for _ in range(3):
        swap(call).wake()  # as SIGHUP does
        call.wait(0.2)
    assert (live(call), len(trials)) == ("v1", n_trials)
    assert json.loads((root / "current").read_text())["version"] == "v2"
    point_to(root, read_bundle(root / "daian/v2"))  # the same bundle, and somebody wants it
    wait_for(call, "v2")
    assert (gauge(call, "went_back"), states(call)) == (0, {"v2": "live", "v1": "previous"})


def wait_for(call: Client, version: str) -> None:
    for _ in range(600):
        if live(call) == version:
            return
        call.wait(0.05)
    raise AssertionError(f"{version} never came")


def test_c5_if_it_were_forgotten_the_failed_bundle_would_come_back(
    call: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(call)
    promote(call, "v2")
    fail(call, K)
    monkeypatch.setattr(swap(call), "left", None)
    wait_for(call, "v2")


def test_rolling_back_moves_the_pointer_to_what_answers(call: Client, root: Path) -> None:
    succeed(call)
    promote(call, "v2")
    fail(call, K)
    call._loop.run_until_complete(swap(call).rollback(if_live="v1"))
    assert json.loads((root / "current").read_text())["version"] == "v1"
    assert (live(call), states(call), gauge(call, "went_back")) == ("v1", {"v1": "live"}, 0)


def test_the_next_bundle_takes_over_and_may_fail_too(call: Client, root: Path) -> None:
    succeed(call)
    promote(call, "v2")
    fail(call, K)
    point_to(root, read_bundle(root / "daian/v3"))
    wait_for(call, "v3")
    assert gauge(call, "went_back") == 0
    fail(call, K)
    assert (live(call), states(call)) == ("v1", {"v1": "live", "v3": "failed"})


@pytest.mark.parametrize("is_asked_before", [False, True])
def test_without_a_proved_bundle_before_it_goes_on_by_the_prior_and_says_so_once(
    root: Path, caplog: pytest.LogCaptureFixture, is_asked_before: bool
) -> None:
    """Neither a first bundle nor one behind another that has never answered may go back."""
    point_to(root, read_bundle(root / "daian/v2"))
    with opened(Settings(bundle_root=root, bundle_poll_s=0.05, bundle_failures=K, deadline_ms=2000)) as call:
        swap(call)._trial = Tried()
        if is_asked_before:
            promote(call, "v3")
        assert fail(call, 3 * K) == [["scores"]] * 3 * K
        assert live(call) == ("v3" if is_asked_before else "v2")
        assert (gauge(call, "went_back"), gauge(call, "stayed")) == (0, 1)
        assert said(caplog) == ["bundle fails and none before has proved itself: it stays"]
        with caplog.at_level(logging.WARNING):
            succeed(call)
        assert (gauge(call, "stayed"), said(caplog)[1:]) == (0, ["bundle gives numbers again"])


def rolled_back_to_what_failed(call: Client) -> None:
    """v2 has failed with nothing before it; v1 came and proved itself, and somebody goes back to v2."""
    swap(call)._trial = Tried()
    promote(call, "v3")
    promote(call, "v2")
    fail(call, K + 2)
    assert (live(call), gauge(call, "stayed")) == ("v2", 1)
    promote(call, "v1")
    succeed(call)
    assert gauge(call, "stayed") == 0
    call._loop.run_until_complete(swap(call).rollback())
    assert (live(call), gauge(call, "stayed")) == ("v2", 0)


@pytest.mark.parametrize("is_fresh", [True, False])
def test_what_failed_and_is_wanted_again_may_fail_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch, is_fresh: bool
) -> None:
    if not is_fresh:
        monkeypatch.setattr(BundleSwap, "_with_fresh_tally", lambda _, runtime: runtime)
    with opened(Settings(bundle_root=root, bundle_poll_s=0.05, bundle_failures=K, deadline_ms=2000)) as call:
        rolled_back_to_what_failed(call)
        fail(call, K - 1)
        assert live(call) == "v2"
        fail(call, 1)
        assert (live(call), gauge(call, "went_back")) == (("v1", 1) if is_fresh else ("v2", 0))


def test_what_failed_and_never_gave_numbers_since_is_no_way_back(root: Path) -> None:
    with opened(Settings(bundle_root=root, bundle_poll_s=0.05, bundle_failures=K, deadline_ms=2000)) as call:
        rolled_back_to_what_failed(call)
        promote(call, "v3")
        fail(call, K)
        assert (live(call), gauge(call, "stayed")) == ("v3", 1)


def test_a_bundle_that_fails_while_it_is_promoted_again_may_fail_anew(
    call: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promotion found it live; when it comes to its turn, the one before answers."""
    succeed(call)
    promote(call, "v2")
    found = swap(call)._made_live

    def and_meanwhile(target: object) -> Runtime:
        runtime = found(target)  # type: ignore[arg-type]
        runtime.soundness.n_failed = K
        swap(call)._give_up(runtime)
        assert live(call) == "v1"
        return runtime

    with monkeypatch.context() as patch:
        patch.setattr(swap(call), "_made_live", and_meanwhile)
        promote(call, "v2")
    assert (live(call), gauge(call, "went_back")) == ("v2", 0)
    fail(call, K)
    assert (live(call), gauge(call, "went_back")) == ("v1", 1)


@pytest.mark.parametrize("is_by_pointer", [True, False])
def test_what_fails_at_once_is_left_for_the_pointer_that_named_it(
    call: Client, root: Path, monkeypatch: pytest.MonkeyPatch, is_by_pointer: bool
) -> None:
    """Its answers may fail before the thread that put it live has run on."""
    succeed(call)
    seen_with: list[str] = []

    def and_meanwhile() -> None:
        runtime = swap(call)._switch.live
        if runtime.bundle.version == "v2" and not seen_with:
            seen_with.append("v2")
            for _ in range(K):
                swap(call).saw(runtime, ranking_of(0.0))

    monkeypatch.setattr("service.bundle_swap.give_memory_back", and_meanwhile)
    if is_by_pointer:
        point_to(root, read_bundle(root / "daian/v2"))
        call.wait(0.5)
    else:
        promote(call, "v2")
    assert (seen_with, live(call), gauge(call, "went_back")) == (["v2"], "v1", 1)
    trials = swap(call)._trial.paths  # type: ignore[attr-defined]
    n_trials = len(trials)
    call.wait(0.3)
    assert (live(call), len(trials), gauge(call, "went_back"), gauge(call, "stayed")) == ("v1", n_trials, 1, 0)


def test_what_is_told_of_the_bundle_that_answers_is_not_wiped_by_the_swap_that_brought_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(Settings(bundle_root=root, bundle_poll_s=0, bundle_failures=K, deadline_ms=2000)) as call:
        swap(call)._trial = Tried()
        switch = swap(call)._switch
        put = switch.replace

        def and_at_once(runtime: Runtime) -> None:
            put(runtime)
            for _ in range(K):
                swap(call).saw(runtime, ranking_of(0.0))

        monkeypatch.setattr(switch, "replace", and_at_once)
        promote(call, "v2")
        assert (live(call), gauge(call, "stayed")) == ("v2", 1)


def test_it_says_so_when_the_bundle_before_is_let_go_meanwhile(
    call: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    succeed(call)
    promote(call, "v2")
    monkeypatch.setattr(swap(call)._switch, "go_back", lambda _: False)
    fail(call, K)
    assert (live(call), gauge(call, "stayed"), swap(call).left) == ("v2", 1, None)
    assert said(caplog) == ["bundle fails and none before has proved itself: it stays"]


def ranking_of(finite_share: float | None) -> Ranking:
    return Ranking((), 1.0, finite_share, None, 0, 0, None, 500, 0, [], {})


@pytest.mark.parametrize(("n_good", "is_left"), [(1, True), (2, False), (20, False)])
def test_c5_one_row_without_numbers_in_a_page_does_not_end_a_bundle(call: Client, n_good: int, is_left: bool) -> None:
    succeed(call)
    promote(call, "v2")
    page = [BAD_ITEM, *[item for item in item_ids() if item != BAD_ITEM][10 : 10 + n_good]]
    for _ in range(2 * K):
        expected = ["scores"] if live(call) == "v2" else []
        assert call.rank(trigger="i0", candidates=page).json()["degraded"] == expected
    assert live(call) == ("v1" if is_left else "v2")


@pytest.mark.parametrize(("share", "n_failed"), [(0.0, 2), (0.5, 2), (0.501, 0), (1.0, 0), (None, 1)])
def test_an_answer_fails_when_half_of_its_scores_are_no_numbers(
    call: Client, share: float | None, n_failed: int
) -> None:
    runtime = swap(call)._switch.live
    runtime.soundness.n_failed = 1
    swap(call).saw(runtime, ranking_of(share))
    assert runtime.soundness.n_failed == n_failed
    assert runtime.soundness.has_scored == (n_failed == 0)


def test_an_answer_that_cannot_be_counted_is_an_answer(
    call: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    succeed(call)
    promote(call, "v2")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(call.app.state.parts.metrics.bundle_failed, "labels", full)
    assert fail(call, K) == [["scores"]] * K
    assert [one.getMessage() for one in caplog.records if one.exc_info] == [
        "an answer could not be counted for its bundle"
    ]


def test_a_bundle_that_fails_itself_is_no_way_back() -> None:
    assert not Soundness().is_proved(K)
    assert Soundness(n_failed=K - 1, has_scored=True).is_proved(K)
    assert not Soundness(n_failed=K, has_scored=True).is_proved(K)


def test_answers_under_way_do_not_end_the_bundle_that_came_meanwhile(call: Client) -> None:
    """They began on the failed one, end after it was left, and count for it alone."""
    succeed(call)
    promote(call, "v2")

    async def at_once() -> None:
        client = call._client
        body = {"trigger": "i0", "candidates": [BAD_ITEM]}
        await asyncio.gather(*(client.post("/v1/rank", json=body) for _ in range(6 * K)))

    call._loop.run_until_complete(at_once())
    assert (live(call), gauge(call, "went_back"), gauge(call, "stayed")) == ("v1", 1, 0)

"""The endpoints over ASGI: shapes, statuses, headers, and that nothing of the input comes back in an error."""

import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ConfigDict

from service import app as app_module
from service import errors, store_fullness
from service.api import bodies
from service.api.schemas import RankRequest
from service.contract.bundle import Bundle
from service.deadline import Deadline
from service.errors import Overloaded
from service.settings import Settings
from tests.asgi_client import Client, opened

CANARY = "canary-7f3"


@pytest.fixture(scope="module")
def call(bundle: Bundle) -> Iterator[Client]:
    with opened(
        Settings(bundle_root=bundle.path, max_candidates=600, max_body_bytes=20_000, deadline_ms=2000)
    ) as client:
        yield client


def test_an_answer_has_the_fields_and_headers_of_the_interface(call: Client) -> None:
    answer = call.rank(user="u1", trigger="i0", candidates=["i7", "i9"], context={"surface": "item_detail"})
    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {
        "request_id", "model", "degraded", "coverage", "intent", "behaviours", "items", "timing_ms"
    }  # fmt: skip
    assert body["model"] == {"name": "daian", "version": "v1", "variant": "live"}
    assert [item["rank"] for item in body["items"]] == [1, 2]
    assert sum(body["intent"]["predicted"]) == pytest.approx(1, abs=1e-5)
    assert len(body["intent"]["edges"]) == len(body["intent"]["predicted"]) + 1
    assert answer.headers["daian-model"] == "daian@v1;variant=live"
    assert answer.headers["cache-control"] == "no-store"
    assert "candidate_graph;dur=" in answer.headers["server-timing"]
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", body["request_id"])
    assert "daian-degraded" not in answer.headers


def test_the_aliases_answer_the_same(call: Client) -> None:
    asked = {"user": "u1", "trigger": "i0", "candidates": ["i7", "i9"]}
    assert call("POST", "/rank", json=asked).json()["items"] == call("POST", "/v1/rank", json=asked).json()["items"]


def test_request_ids_are_kept_and_the_body_wins(call: Client) -> None:
    given = {"x-request-id": "from-header"}
    assert call("GET", "/livez", headers=given).headers["x-request-id"] == "from-header"
    answer = call("POST", "/rank", headers=given, json={"trigger": "i0", "request_id": "from-body"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "from-body"


@pytest.mark.parametrize(
    ("given", "header"), [("日本", "%E6%97%A5%E6%9C%AC"), ("a b", "a%20b"), ("é", "%C3%A9"), ("a/b%", "a/b%")]
)
def test_a_request_id_that_no_header_can_hold_is_percent_encoded_there(call: Client, given: str, header: str) -> None:
    answer = call.rank(trigger="i0", top_k=1, request_id=given)
    assert (answer.status_code, answer.json()["request_id"]) == (200, given)
    assert answer.headers["x-request-id"] == header


def test_degraded_answers_say_so_in_body_and_header(call: Client) -> None:
    answer = call.rank(user="u1", trigger="never seen", candidates=["also unknown"])
    assert answer.json()["degraded"] == ["trigger_unknown", "candidates_unknown"]
    assert answer.headers["daian-degraded"] == "trigger_unknown, candidates_unknown"


def test_clicks_are_seen_by_the_next_ranking(call: Client) -> None:
    now = int(time.time() * 1000)
    event = {"event_id": "e1", "type": "click", "user": "u-new", "item": "i8", "time": now - 5000}
    first = call("POST", "/v1/events", json={"events": [event]}).json()
    again = call("POST", "/events", json={"events": [event, {**event, "type": "impression"}, {"no": CANARY}]})
    assert (first["accepted"], first["duplicates"]) == (1, 0)
    assert (again.json()["accepted"], again.json()["duplicates"]) == (0, 1)
    assert [(one["index"], one["code"]) for one in again.json()["rejected"]] == [(1, "not_stored"), (2, "malformed")]
    assert CANARY not in again.text
    ranked = call.rank(user="u-new", trigger="i0").json()
    assert ranked["behaviours"]["used"] == 1
    assert 4 <= ranked["behaviours"]["newest_age_s"] < 60


def test_events_come_as_lines_too(call: Client) -> None:
    now = int(time.time() * 1000)
    carts = [
        {"event_id": str(n), "type": "cart", "user": "u-lines", "item": f"i{n}", "time": now - n} for n in range(3)
    ]
    lines = [json.dumps(cart) for cart in carts]
    body = "\n".join([lines[0], "{broken", *lines[1:], ""])
    answer = call("POST", "/events", content=body, headers={"content-type": "application/x-ndjson"}).json()
    assert (answer["accepted"], [one["index"] for one in answer["rejected"]]) == (3, [1])


def test_a_time_needs_its_zone_and_may_be_text(call: Client) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - 60))
    for text, accepted in ((stamp + "Z", 1), (stamp + "+00:00", 0), (stamp, 0)):
        event = {"event_id": "e", "type": "click", "user": "u-zone", "item": "i1", "time": text}
        answer = call("POST", "/events", json={"events": [event]}).json()
        assert answer["accepted"] == accepted
        assert bool(answer["rejected"]) == (text == stamp)


BAD_BODIES = [
    (b"", 400, "malformed_json"),
    (b"{", 400, "malformed_json"),
    (b'{"trigger": NaN}', 422, "validation_failed"),
    (b'{"trigger": "\\ud800"}', 400, "malformed_json"),
    (b'{"trigger": "\xff"}', 400, "malformed_json"),
    (b'{"trigger": ' + b"[" * 9000, 400, "malformed_json"),
    (b'{"trigger": "i0", "top_k": ' + b"9" * 5000 + b"}", 400, "malformed_json"),
    (b'{"trigger": "i0", "deadline_ms": 1e999}', 422, "validation_failed"),
    (b"[]", 422, "validation_failed"),
    (b"{}", 422, "validation_failed"),
    (b'{"trigger": "i0", "top_k": 0}', 422, "validation_failed"),
    (b'{"trigger": "i0", "top_k": 601}', 422, "validation_failed"),
    (b'{"trigger": "i0", "deadline_ms": 4}', 422, "validation_failed"),
    (b'{"trigger": "i0", "deadline_ms": 2001}', 422, "validation_failed"),
    (b'{"trigger": "a\\u0000b"}', 422, "validation_failed"),
    (b'{"trigger": "a\\r\\nb"}', 422, "validation_failed"),
    (b'{"trigger": 7}', 422, "validation_failed"),
    ('{"trigger": "' + "ü" * 65 + '"}', 422, "validation_failed"),
    (b'{"trigger": "i0", "candidates": [""]}', 422, "validation_failed"),
    (b'{"trigger": "i0", "topk": 3}', 422, "unknown_field"),
    (b'{"trigger": "i0", "context": {"' + CANARY.encode() + b'": 1}}', 422, "unknown_field"),
    (json.dumps({"trigger": "i0", "candidates": [str(n) for n in range(601)]}), 422, "candidates_limit"),
    (b'{"trigger": "' + b"x" * 30_000 + b'"}', 413, "body_too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES)
def test_b6_b11_b12_bad_bodies_have_a_status_and_a_code(
    call: Client, body: bytes | str, status: int, code: str
) -> None:
    answer = call("POST", "/v1/rank", content=body, headers={"content-type": "application/json"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [
        {"trigger": CANARY * 40},
        {"trigger": "i0", CANARY: 1},
        {"trigger": "i0", "candidates": [CANARY, 7]},
        {"trigger": "i0", "candidates": [f"{CANARY}{n}" for n in range(601)]},
        {"trigger": "i0", "behaviours": [{"item": CANARY, "time": CANARY}]},
        {"trigger": "i0", "context": {CANARY: CANARY}},
    ],
)
def test_g14_errors_never_repeat_the_input(call: Client, body: dict[str, object]) -> None:
    answer = call("POST", "/v1/rank", json=body)
    assert answer.status_code == 422
    assert CANARY not in answer.text + str(answer.headers)


def test_g14_pydantic_alone_would_repeat_it(call: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "service_error", lambda error, _: bodies.ValidationFailed(str(error)))
    assert CANARY in call.rank(trigger="i0", candidates=[{CANARY: 1}]).text


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data", "application/xml"])
def test_b7_other_media_types_are_415(call: Client, media_type: str) -> None:
    answer = call("POST", "/v1/rank", content=b"{}", headers={"content-type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_b7_compressed_bodies_are_415(call: Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = call("POST", "/v1/rank", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


CURL: list[dict[str, str]] = [{}, {"content-type": "application/x-www-form-urlencoded"}]


def what_curl_sends(number: int) -> dict[str, bytes]:
    """Bodies by path; each number is another event."""
    event = {"event_id": "c", "type": "click", "user": "u-curl", "item": f"i{number}", "time": int(time.time() * 1000)}
    return {"/rank": b'{"trigger": "i0"}', "/events": json.dumps({"events": [event]}).encode()}


@pytest.mark.parametrize("headers", CURL)
def test_curl_needs_no_media_type(call: Client, headers: dict[str, str]) -> None:
    answers = {
        path: call("POST", path, content=body, headers=headers)
        for path, body in what_curl_sends(CURL.index(headers)).items()
    }
    assert {answer.status_code for answer in answers.values()} == {200}
    assert answers["/events"].json()["accepted"] == 1


@pytest.mark.parametrize("headers", CURL)
def test_a_page_of_another_site_cannot_send_without_being_asked(
    call: Client, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With these a browser does not ask the service first (CORS preflight); with JSON it does, and gets no leave."""
    bodies_of = what_curl_sends(2 + CURL.index(headers))
    from_a_page = {**headers, "origin": "https://elsewhere.example"}

    def statuses() -> set[int]:
        return {call("POST", path, content=body, headers=from_a_page).status_code for path, body in bodies_of.items()}

    assert statuses() == {415}
    json_from_a_page = {"content-type": "application/json", "origin": "http://localhost:8000"}
    assert call("POST", "/rank", content=bodies_of["/rank"], headers=json_from_a_page).status_code == 200
    monkeypatch.setattr(bodies, "_is_from_a_page", lambda _: False)
    assert statuses() == {200}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", f"/{CANARY}", 404, "not_found"), ("GET", "/v1/rank", 405, "method_not_allowed"),
     ("GET", f"/v1/models/daian/versions/{CANARY}", 404, "not_found"),
     ("DELETE", f"/v1/models/daian/versions/{CANARY}", 405, "method_not_allowed")],
)  # fmt: skip
def test_unknown_paths_and_methods_are_problems_too(
    call: Client, method: str, path: str, status: int, code: str
) -> None:
    answer = call(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert CANARY not in answer.text
    assert status != 405 or answer.headers["allow"] in ("GET", "POST")
    assert "server-timing" in answer.headers


def test_what_has_no_route_is_counted_and_told_to_leave_while_draining(call: Client) -> None:
    health = call.app.state.parts.health
    health.draining = True
    try:
        assert call("GET", f"/{CANARY}").headers["connection"] == "close"
    finally:
        health.draining = False
    assert 'daian_requests_total{route="none",status="404"' in call("GET", "/metrics").text


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_deadline_header_that_is_no_number_is_refused(call: Client, value: str) -> None:
    answer = call("POST", "/v1/rank", json={"trigger": "i0"}, headers={"x-timeout-ms": value})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("header", "body", "expected_ms"),
    [({}, {}, 1000), ({}, {"deadline_ms": 18000}, 18000), ({}, {"deadline_ms": 400}, 400),
     ({"x-timeout-ms": "14000"}, {}, 14000), ({"x-timeout-ms": "14000"}, {"deadline_ms": 18000}, 14000),
     ({"x-timeout-ms": "18000"}, {"deadline_ms": 14000}, 14000), ({"x-timeout-ms": "50000"}, {}, 20000)],
)  # fmt: skip
def test_the_deadline_is_the_smaller_of_what_was_asked_for_else_the_setting(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, header: dict[str, str], body: dict[str, int], expected_ms: int
) -> None:
    left_ms: list[float] = []

    async def refuse(_: object, deadline: Deadline, __: object) -> None:
        left_ms.append(deadline.left_s() * 1000)
        raise Overloaded("enough seen")

    with opened(Settings(bundle_root=bundle.path, deadline_ms=1000, max_deadline_ms=20_000)) as client:
        monkeypatch.setattr(client.app.state.parts.switch.live.ranker, "rank", refuse)
        client("POST", "/v1/rank", json={"trigger": "i0", **body}, headers=header)
    assert expected_ms - 3000 < left_ms[0] <= expected_ms


def test_b9_a_body_that_is_slow_to_come_holds_no_place_in_the_queue(call: Client) -> None:
    admission, seen = call.app.state.parts.admission, []

    async def dripping() -> AsyncIterator[bytes]:
        for part in (b'{"trigger"', b': "i0"}'):
            seen.append(admission._in_flight)
            yield part

    answer = call("POST", "/v1/rank", content=dripping(), headers={"content-type": "application/json"})
    assert (answer.status_code, seen) == (200, [0, 0])
    assert admission._in_flight == 0


def test_a_bug_is_a_500_that_says_nothing_but_its_id(
    call: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError(f"{CANARY} was in my hands")

    monkeypatch.setattr(call.app.state.parts.switch.live.ranker, "rank", bug)
    answer = call.rank(trigger=CANARY)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "detail" not in answer.json()
    assert CANARY not in answer.text
    assert "bug" in [record.getMessage() for record in caplog.records]


def test_overload_is_a_503_before_any_json_work(call: Client) -> None:
    admission = call.app.state.parts.admission
    admission._service_s, before = 10.0, admission._service_s
    admission._in_flight += 5
    try:
        answer = call("POST", "/v1/rank", content=b"{broken")
    finally:
        admission._service_s = before
        admission._in_flight -= 5
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["retry_after_ms"] > 0


def out_of_memory(call: Client, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(call.app.state.parts.switch.live.ranker, "rank", full)
    return call.rank(trigger="i0")


def test_d2_out_of_memory_is_a_503_that_may_be_repeated(call: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = out_of_memory(call, monkeypatch)
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


def test_d2_without_its_line_it_would_be_a_bug(call: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(errors._VERDICTS, MemoryError)
    assert out_of_memory(call, monkeypatch).status_code == 500


def test_d9_probes_answer_while_every_worker_is_taken(bundle: Bundle) -> None:
    with opened(Settings(bundle_root=bundle.path, scorer_concurrency=2)) as client:
        client.catch_up()
        admission, freed = client.app.state.parts.admission, threading.Event()
        jobs = [admission._threads.submit(freed.wait, 60) for _ in range(45)]
        try:
            probes = [client("GET", path).status_code for path in ("/livez", "/readyz", "/v2/health/live", "/metrics")]
            assert probes == [200] * 4
            assert not any(job.done() for job in jobs)
            # what needs a worker waits for one: these really are taken
            threading.Timer(0.5, freed.set).start()
            answer = client.rank(trigger="i0", deadline_ms=50)
            assert (answer.status_code, answer.json()["code"]) == (503, "deadline_exceeded")
        finally:
            freed.set()


def ready_behind_a_block(client: Client) -> set[int]:
    """What /readyz says when the loop has stood still for 0.6 s, as behind a handler that blocks; some tries."""
    found = set()
    for _ in range(5):
        client.catch_up()
        time.sleep(0.6)
        client.wait(0)
        found.add(client("GET", "/readyz").status_code)
    return found


def test_d11_a_blocked_loop_is_not_ready_until_it_has_caught_up(bundle: Bundle) -> None:
    with opened(Settings(bundle_root=bundle.path)) as client:
        assert 503 in ready_behind_a_block(client)
        assert client("GET", "/livez").status_code == 200
        client.catch_up()
        assert client("GET", "/readyz").status_code == 200


def test_a_worker_that_stores_nothing_does_not_say_for_ever_how_full_the_store_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_fullness, "FRESH_S", 0.0)
    with opened(Settings(bundle_root=bundle.path)) as client:
        client.app.state.parts.metrics.saw_store_memory(0.97)
        client.wait(1.0)
        assert "daian_store_memory_share 0.0" in client("GET", "/metrics").text


def test_d11_without_the_heartbeat_nobody_would_know(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(_: object) -> None: ...

    monkeypatch.setattr(app_module, "_heartbeat", none)
    with opened(Settings(bundle_root=bundle.path)) as client:
        assert ready_behind_a_block(client) == {200}


def test_probes_models_and_limits(call: Client) -> None:
    call.catch_up()
    for path in ("/livez", "/v2/health/live", "/readyz", "/v2/health/ready"):
        assert call("GET", path).status_code == 200
    version = call("GET", "/v1/models").json()["models"][0]["versions"][0]
    assert (version["version"], version["state"]) == ("v1", "live")
    assert call("GET", "/v1/models/daian/versions/v1").json()["prior"] == 0.05
    assert call("GET", "/v1/limits").json()["candidates"] == 600


def test_draining_is_not_ready_but_still_serves(call: Client) -> None:
    health = call.app.state.parts.health
    health.draining = True
    try:
        assert call("GET", "/readyz").json()["code"] == "draining"
        answer = call.rank(trigger="i0")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    finally:
        health.draining = False


def test_metrics_count_rankings_by_route_and_hold_no_id(call: Client) -> None:
    call.rank(user=CANARY, trigger=CANARY)
    text = call("GET", "/metrics").text
    assert 'daian_requests_total{route="/v1/rank",status="200"' in text
    assert 'daian_degraded_total{reason="trigger_unknown"}' in text
    assert 'daian_stage_seconds_bucket{le="0.001",stage="encode"}' in text
    assert CANARY not in text


def test_log_lines_name_users_by_a_hash(call: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    call.rank(user=CANARY, trigger=CANARY)
    fields = next(vars(record)["fields"] for record in caplog.records if record.getMessage() == "request")
    assert re.fullmatch(r"[0-9a-f]{12}", fields["user"])
    assert CANARY not in str(fields)


def test_the_document_names_every_shape_and_the_page_needs_nothing_from_outside(call: Client) -> None:
    document = call("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    shapes = document["components"]["schemas"]
    for reference in re.findall(r"#/components/schemas/(\w+)", json.dumps(document)):
        assert reference in shapes
    assert shapes["RankRequest"]["examples"]
    page = call("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:""", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


SNAPSHOT = Path(__file__).with_name("openapi.json")


def test_the_document_is_the_committed_one(call: Client) -> None:
    document = call("GET", "/openapi.json").json()
    document["info"]["version"] = "any"
    assert document == json.loads(SNAPSHOT.read_text()), (
        f"the interface changed: if that is wanted, say so in CHANGELOG.md and write `daian openapi` to {SNAPSHOT.name}"
    )


def test_the_examples_of_the_document_are_valid(call: Client) -> None:
    for example in call("GET", "/openapi.json").json()["components"]["schemas"]["RankRequest"]["examples"]:
        assert call("POST", "/v1/rank", json=example).status_code == 200


def test_no_id_of_a_body_is_remembered() -> None:
    """The parser's own memory of texts is slow when it is cold, and outlives an erasure."""

    class Remembering(RankRequest):
        model_config = ConfigDict(cache_strings="all")

    def trigger(shape: type[RankRequest]) -> str:
        return shape.model_validate_json(b'{"trigger": "u_42"}').trigger

    assert trigger(RankRequest) is not trigger(RankRequest)
    assert trigger(Remembering) is trigger(Remembering)


def test_no_id_of_a_line_is_remembered() -> None:
    first, second = (bodies._line(b'{"user": "u_42"}') for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first == second == {"user": "u_42"}
    assert first["user"] is not second["user"]

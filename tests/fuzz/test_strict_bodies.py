"""Every field of every body, given what it may not hold: a documented 4xx (an event: a rejection) without the input.

B4 to B6, B11 to B13, G14, as a table. What is allowed and only looks hostile is accepted, and stays one user's own.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.api import routes, schemas
from service.app import create_admin_app
from service.contract.bundle import Bundle
from service.embedded_store import embedded_store
from service.settings import Settings
from tests.asgi_client import Client, opened
from tests.fuzz.verdicts import CANARY, check_answer

JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}
NOW = int(time.time() * 1000)

# As JSON text, so that it may say what no parser would write.
LONG = json.dumps(CANARY * 33)
BAD_JSON = {
    "lone surrogate": rf'"{CANARY}\ud800"', "surrogates the wrong way round": rf'"{CANARY}\udc00\ud800"',
    "half an escape": rf'"{CANARY}\u12"', "unknown escape": rf'"{CANARY}\x00"',
    "raw control character": f'"{CANARY}\x01"',
    "no quotes": CANARY, "single quotes": f"'{CANARY}'", "deep list": "[" * 100_000, "deep object": '{"a":' * 500,
    "deep and whole": "[" * 5000 + "]" * 5000, "5,000 digits": "9" * 5000,
    "comment": f"1 /* {CANARY} */",
}  # fmt: skip
BAD_ID = {
    "NUL": r'"a\u0000b"', "line break": r'"a\r\nb"', "escape": r'"\u001b[2J"', "DEL": '"\x7f"', "C1": r'"\u0085"',
    "empty": '""', "129 bytes": LONG, "130 bytes of ü": json.dumps("ü" * 65),
    "132 bytes of emoji": json.dumps("😀" * 33),
    "number": "7", "true": "true", "list": f'["{CANARY}"]', "object": f'{{"{CANARY}": "{CANARY}"}}', "NaN": "NaN",
    "1e999": "1e999", "-Infinity": "-Infinity",
}  # fmt: skip
BAD_COUNT = {
    "text": f'"{CANARY}"', "digits as text": '"3"', "fraction": "1.5", "true": "true", "negative": "-1",
    "NaN": "NaN", "1e999": "1e999", "-Infinity": "-Infinity", "30 digits": "9" * 30, "list": "[1]", "object": "{}",
}  # fmt: skip
BAD_TIME = {
    **{name: text for name, text in BAD_COUNT.items() if name not in ("digits as text",)},
    "no zone": '"2026-11-21T10:00:04"', "no such day": '"2026-13-45T99:99:99Z"',
    "before all": '"0001-01-01T00:00:00+23:59"',
    "after all": '"9999-12-31T23:59:59-23:59"', "long": LONG, "empty": '""', "null": "null",
}  # fmt: skip
BAD_NUMBER = {"text": f'"{CANARY}"', "NaN": "NaN", "1e999": "1e999", "-Infinity": "-Infinity", "list": "[1]"}
NULL = {"null": "null"}

RANK = '{"trigger": "i0", %s}'
RANK_FIELDS: list[tuple[str, str, dict[str, str]]] = [
    ("trigger", '{"trigger": %s}', BAD_ID | NULL),
    ("user", RANK % '"user": %s', BAD_ID),
    ("request_id", RANK % '"request_id": %s', BAD_ID),
    ("candidates", RANK % '"candidates": %s', BAD_COUNT),
    ("a candidate", RANK % '"candidates": ["i1", %s]', BAD_ID | NULL),
    ("exclude", RANK % '"exclude": %s', BAD_COUNT | NULL),
    ("an excluded one", RANK % '"exclude": [%s]', BAD_ID | NULL),
    ("top_k", RANK % '"top_k": %s', BAD_COUNT | {"0": "0", "1001": "1001"}),
    ("deadline_ms", RANK % '"deadline_ms": %s', BAD_COUNT | {"4": "4", "2001": "2001"}),
    ("context", RANK % '"context": %s', BAD_NUMBER | NULL | {"number": "1"}),
    ("a context value", RANK % '"context": {"surface": %s}', {"list": "[1]", "object": "{}", "NaN": "NaN",
     "1e999": "1e999", "long": json.dumps(CANARY * 300)}),
    ("a context name", RANK % '"context": {%s: 1}', {"unknown": f'"{CANARY}"', "NUL": r'"\u0000"', "empty": '""'}),
    ("behaviours", RANK % '"behaviours": %s', BAD_NUMBER | {"number": "1"}),
    ("a behaviour", RANK % '"behaviours": [%s]', BAD_NUMBER | NULL),
    ("a behaviour's item", RANK % '"behaviours": [{"item": %s, "time": 1}]', BAD_ID | NULL),
    ("a behaviour's type", RANK % '"behaviours": [{"item": "i1", "type": %s, "time": 1}]', BAD_ID | NULL),
    ("a behaviour's time", RANK % '"behaviours": [{"item": "i1", "time": %s}]', BAD_TIME),
    ("a field", RANK % '%s: 1', {"unknown": f'"{CANARY}"', "misspelt": '"topk"', "prototype": '"__proto__"'}),
    ("the body", "%s", BAD_NUMBER | NULL | {"number": "1", "events": '{"events": []}'}),
]  # fmt: skip
EVENT = f'{{"event_id": "e", "type": "click", "user": "u", "item": "i1", "time": {NOW}, %s}}'


def event(field: str) -> str:
    """An event with one field open."""
    values = {"event_id": '"e"', "type": '"click"', "user": '"u"', "item": '"i1"', "time": str(NOW), field: "%s"}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"


EVENT_FIELDS: list[tuple[str, str, dict[str, str]]] = [
    *((name, event(name), BAD_ID | NULL) for name in ("event_id", "type", "user", "item")),
    *((name, event(name), BAD_ID) for name in ("surface", "trigger")),
    ("time", event("time"), BAD_TIME),
    ("position", event("position"), BAD_COUNT),
    ("value", event("value"), BAD_NUMBER),
    ("impression_token", event("impression_token"), {"long": json.dumps(CANARY * 1025), "number": "1"}),
    ("a field", EVENT % "%s: 1", {"unknown": f'"{CANARY}"'}),
    ("an event", "%s", BAD_NUMBER | NULL | {"number": "1", "empty": "{}", "deep": "[" * 150 + "]" * 150}),
]  # fmt: skip
ADMIN_FIELDS: list[tuple[str, str, dict[str, str]]] = [
    ("promote", '{"version": %s}', BAD_ID | NULL),
    ("promote", '{"version": "v9", "if_live": %s}', BAD_ID),
    ("promote", '{"version": "v9", %s: 1}', {"unknown": f'"{CANARY}"'}),
    ("promote", "%s", BAD_NUMBER | NULL | {"empty": "{}"}),
    ("rollback", '{"if_live": %s}', BAD_ID),
    ("rollback", '{%s: 1}', {"unknown": f'"{CANARY}"'}),
    ("rollback", "%s", BAD_NUMBER | NULL),
]  # fmt: skip


def rows(fields: list[tuple[str, str, dict[str, str]]]) -> list[pytest.ParameterSet]:  # type: ignore[name-defined]
    """One row for each field: all its values share a row, or the table would have a thousand."""
    return [pytest.param(shape, values, id=f"{name} {n}") for n, (name, shape, values) in enumerate(fields)]


@pytest.fixture(scope="module")
def call(bundle: Bundle) -> Iterator[Client]:
    with opened(Settings(bundle_root=bundle.path, deadline_ms=2000, bundle_poll_s=0)) as client:
        yield client


def refused(call: Client, path: str, text: str, headers: dict[str, str] = JSON) -> tuple[int, str]:
    """Status and code of a refusal that keeps the promises."""
    answer = call("POST", path, content=text.encode(), headers=headers)
    check_answer(answer.status_code, answer.headers, answer.content)
    return answer.status_code, answer.json().get("code", "")


@pytest.mark.parametrize(("shape", "values"), rows(RANK_FIELDS))
def test_b6_b12_rank_refuses_what_a_field_may_not_hold(call: Client, shape: str, values: dict[str, str]) -> None:
    for name, text in values.items():
        expected = {(422, "validation_failed"), (422, "unknown_field")}
        assert refused(call, "/v1/rank", shape % text) in expected, name
    for name, text in BAD_JSON.items():
        assert refused(call, "/rank", shape % text) == (400, "malformed_json"), name


@pytest.mark.parametrize(("shape", "values"), rows(EVENT_FIELDS))
def test_b6_b12_events_are_rejected_one_by_one(call: Client, shape: str, values: dict[str, str]) -> None:
    good = event("surface") % "null"
    bad = [shape % text for text in values.values()]
    answers = [call("POST", "/v1/events", content=f'{{"events": [{", ".join([*bad, good])}]}}'.encode(), headers=JSON)]
    lines = [text.replace("\x7f", r"\u007f") for text in [*bad, good]]
    answers.append(call("POST", "/v1/events", content="\n".join(lines).encode(), headers=LINES))
    for answer in answers:
        assert answer.status_code == 200
        rejected = {one["index"]: one["code"] for one in answer.json()["rejected"]}
        assert rejected == dict.fromkeys(range(len(bad)), "malformed"), [*values]
        assert answer.json()["accepted"] + answer.json()["duplicates"] == 1
        assert CANARY not in answer.text
    for name, text in BAD_JSON.items():
        assert refused(call, "/events", f'{{"events": [{shape % text}]}}') == (400, "malformed_json"), name
        answer = call("POST", "/events", content=(shape % text).encode(), headers=LINES)
        assert answer.status_code == 200, name
        assert {one["code"] for one in answer.json()["rejected"]} in ({"malformed"}, set()), name
        assert answer.json()["accepted"] == 0, name
        assert CANARY not in answer.text, name


@pytest.mark.parametrize(("shape", "values"), rows(ADMIN_FIELDS))
def test_b6_b12_admin_calls_refuse_too(
    call: Client, request: pytest.FixtureRequest, shape: str, values: dict[str, str]
) -> None:
    admin = Client(create_admin_app(call.app.state.parts), call._loop)
    path = f"/v1/admin/models/daian:{request.node.callspec.id.split()[0]}"
    for name, text in values.items():
        expected = {(422, "validation_failed"), (422, "unknown_field")}
        assert refused(admin, path, shape % text) in expected, name
    for name, text in BAD_JSON.items():
        assert refused(admin, path, shape % text) in {(400, "malformed_json"), (413, "body_too_large")}, name


def many(n: int, text: str) -> str:
    return ", ".join([text] * n)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/rank", RANK % f'"candidates": [{many(10_000, LONG[:30] + chr(34))}]', (422, "candidates_limit")),
        ("/v1/rank", RANK % f'"candidates": [{many(1001, chr(34) + CANARY + chr(34))}]', (422, "candidates_limit")),
        ("/v1/rank", RANK % f'"exclude": [{many(10_001, chr(34) + CANARY + chr(34))}]', (422, "validation_failed")),
        ("/v1/rank", RANK % ('"behaviours": [' + many(501, '{"item": "i1", "time": 1}') + "]"),
         (422, "validation_failed")),
        ("/v1/rank", RANK % ('"context": {' + ", ".join(f'"{CANARY}{n}": 1' for n in range(65)) + "}"),
         (422, "validation_failed")),
        ("/v1/events", f'{{"events": [{many(1001, "1")}]}}', (422, "validation_failed")),
        ("/v1/events", f'{{"events": "{CANARY}"}}', (422, "validation_failed")),
        ("/v1/events", f'{{"{CANARY}": []}}', (422, "unknown_field")),
        ("/v1/events", "[]", (422, "validation_failed")),
    ],
)  # fmt: skip
def test_b5_too_many_of_anything(call: Client, path: str, body: str, expected: tuple[int, str]) -> None:
    assert refused(call, path, body) == expected


def test_b5_too_many_lines(call: Client) -> None:
    assert refused(call, "/v1/events", "1\n" * 1001, LINES) == (422, "validation_failed")


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/events"])
def test_b6_no_body_at_all(call: Client, path: str) -> None:
    assert refused(call, path, "") == (400, "malformed_json")


def test_b4_repeated_ids_are_answered_once(call: Client) -> None:
    answer = call.rank(trigger="i0", candidates=["i7", "i9", "i7", "i7", "e\u0301", "\u00e9"])
    assert sorted(item["id"] for item in answer.json()["items"]) == ["e\u0301", "i7", "i9"]


def test_b6_without_strict_fields_the_table_would_fail(call: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loose(schemas.RankRequest):
        model_config = {"extra": "ignore", "frozen": True}  # noqa: RUF012

    monkeypatch.setattr(routes, "parse", lambda _, body: Loose.model_validate_json(body))
    assert call.rank(trigger="i0", topk=1).status_code == 200


HOSTILE = ["{}:", "}{", "a}:b", "*", "%7B", "daian:1:main:{a}:b", "a b", "\u202e", "..", "' OR 1=1", "\\u0000", "a{b}c"]


def test_b13_ids_that_look_like_keys_stay_apart(bundle: Bundle, tmp_path: Path) -> None:
    """Each hostile user clicks another number of items, in a real store; each finds its own clicks and no other."""
    with embedded_store(tmp_path) as url:
        kept = Settings(
            bundle_root=bundle.path, deadline_ms=2000, redis_url=url,  # type: ignore[arg-type]
            redis_read_budget_ms=1000, redis_timeout_ms=5000, redis_pool_wait_ms=1000,
        )  # fmt: skip
        with opened(kept) as call:
            for n, user in enumerate(HOSTILE, start=1):
                clicks = [
                    {"event_id": f"{k}", "type": "click", "user": user, "item": f"i{k}", "time": NOW - 5000 - k}
                    for k in range(n)
                ]
                assert call("POST", "/v1/events", json={"events": clicks}).json()["accepted"] == n, user
            used = [call.rank(user=user, trigger="i99", top_k=1).json()["behaviours"]["used"] for user in HOSTILE]
            assert used == list(range(1, len(HOSTILE) + 1))

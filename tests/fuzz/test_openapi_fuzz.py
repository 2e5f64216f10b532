"""The committed OpenAPI document against the running service, by schemathesis: no status, body or header that it omits.

G6. Cases are made from the document, valid and invalid ones; the byte fuzz beside it finds what a schema cannot say.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.failures import FailureGroup

from service.api import routes
from service.contract.bundle import Bundle
from service.errors import ServiceError
from service.settings import Settings
from tests.fuzz.live_server import Live, live_server
from tests.fuzz.verdicts import Record, Tally, check_answer

DOCUMENT = json.loads((Path(__file__).parents[1] / "unit/service/api/openapi.json").read_text())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
NAMES = ("status_code_conformance", "content_type_conformance", "response_schema_conformance",
         "response_headers_conformance")  # fmt: skip
PROMISED = CHECKS.get_by_names(NAMES)
N_EXAMPLES = 25


@pytest.fixture(scope="module")
def live(bundle: Bundle) -> Iterator[Live]:
    settings = Settings(bundle_root=bundle.path, deadline_ms=2000, receive_timeout_s=5)
    with live_server(settings) as found:
        yield found


def ask(live: Live, operation: Any, mode: GenerationMode, tally: Tally) -> None:
    """Sends made-up cases of one operation. Raises what the first answer outside the document deserves."""

    @hypothesis_settings(
        max_examples=N_EXAMPLES, database=None, derandomize=True, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        answer = case.call(base_url=live.url)
        tally.n_sent += 1
        tally.statuses[answer.status_code] += 1
        try:
            case.validate_response(answer, checks=PROMISED)
            headers = {name.lower(): values[0] for name, values in answer.headers.items()}
            check_answer(answer.status_code, headers, answer.content, canary="\0none")
        except BaseException:
            tally.n_broken += 1
            raise

    each()


every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
# In a GET of ours nothing can be wrong.
every_operation_with_input = pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.method.upper() != "GET"], ids=lambda operation: operation.label
)


@pytest.fixture
def tally(record_property: Record) -> Iterator[Tally]:
    found = Tally()
    yield found
    found.tell(record_property, "cases made from the OpenAPI document")


@every_operation
def test_g6_valid_requests_get_answers_of_the_document(live: Live, operation: Any, tally: Tally) -> None:
    ask(live, operation, GenerationMode.POSITIVE, tally)


@every_operation_with_input
def test_g6_invalid_requests_get_answers_of_the_document(live: Live, operation: Any, tally: Tally) -> None:
    ask(live, operation, GenerationMode.NEGATIVE, tally)


def test_every_public_route_with_a_body_is_in_the_document() -> None:
    assert {"POST /v1/rank", "POST /v1/events", "DELETE /v1/users/{id}"} <= {one.label for one in OPERATIONS}


def failures(live: Live, operation: Any) -> str:
    """What is found wrong with valid cases; an error of its own when nothing is."""
    with pytest.raises(FailureGroup) as found:
        ask(live, operation, GenerationMode.POSITIVE, Tally())
    return "\n".join(str(one) for one in found.value.exceptions)


def test_g6_an_answer_outside_the_document_is_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "rank_answer", lambda *_: {"items": "none"})
    operation = next(one for one in OPERATIONS if one.label == "POST /v1/rank")
    assert "violates schema" in failures(live, operation)


def test_g6_a_status_outside_the_document_is_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    class TeapotError(ServiceError):
        """A bug: nobody gave it a verdict."""

    def refuse(*_: object) -> None:
        raise TeapotError("brewing")

    monkeypatch.setattr(routes, "_check_limits", refuse)
    operation = next(one for one in OPERATIONS if one.label == "POST /v1/rank")
    assert "Received: 500" in failures(live, operation)

"""What every answer to any bytes must be: a status and a code of docs/api.md, in the one shape, without the input.

Read by all tests of this folder. The list is taken from the page itself: what is not documented is not allowed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
CANARY = "zQ7x"  # begins every value that a test makes up: no answer that refuses may hold it
ALWAYS = {"type", "title", "status", "code", "instance", "request_id"}
SOMETIMES = {"detail", "errors", "retry_after_ms"}


class BrokenPromiseError(AssertionError):
    """An answer that is not what docs/api.md promises."""


def documented() -> frozenset[tuple[int, str]]:
    """(status, code) of every error on the page, without the bug."""
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset((int(status), code) for status, code in rows if int(status) != 500)


DOCUMENTED = documented()


def check_answer(status: int, headers: Mapping[str, str], body: bytes, canary: str = CANARY) -> None:
    """Raises BrokenPromiseError, with what is wrong."""
    if status == 200:
        return
    if headers.get("content-type") != "application/problem+json":
        raise BrokenPromiseError(f"{status} as {headers.get('content-type')}")
    problem = json.loads(body)
    found = status, problem.get("code")
    if found not in DOCUMENTED or (status >= 500 and status != 503):
        raise BrokenPromiseError(f"{found} is not documented")
    if not ALWAYS <= set(problem) <= ALWAYS | SOMETIMES or problem["status"] != status:
        raise BrokenPromiseError(f"{status} in the shape {sorted(problem)}")
    if status in (429, 503) and not int(headers.get("retry-after", "0")):
        raise BrokenPromiseError(f"{status} without Retry-After")
    if canary in body.decode() + str(dict(headers)):
        raise BrokenPromiseError(f"{found} repeats its input")

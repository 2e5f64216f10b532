"""What every answer to any bytes must be: a status and a code of docs/api.md, in the one shape, without the input.

Read by all tests of this folder. The list is taken from the page itself: what is not documented is not allowed.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
CANARY = "zQ7x"  # begins every value that a test makes up: no answer that refuses may hold it
ALWAYS = {"type", "title", "status", "code", "instance", "request_id"}
SOMETIMES = {"detail", "errors", "retry_after_ms"}
Record = Callable[[str, object], None]  # pytest's record_property, by which `make chaos` hears what was found


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


@dataclass
class Tally:
    """What came back for what was sent. 503 counts apart: `check_answer` takes it with Retry-After alone."""

    n_sent: int = 0
    n_broken: int = 0  # promises, whatever the status
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def n_5xx(self) -> int:
        """Those that docs/api.md has not promised."""
        return sum(n for status, n in self.statuses.items() if status >= 500 and status != 503)

    def tell(self, record: Record, where: str) -> None:
        """Says it to the table of goals."""
        record("G6", f"5xx answers other than 503 with Retry-After, {where}: {self.n_5xx} of {self.n_sent}")
        record("G6", f"broken promises of docs/api.md, {where}: {self.n_broken} of {self.n_sent}")
        if self.statuses[503]:
            record("G6", f"note: {where}, {self.statuses[503]} of {self.n_sent} were answered 503 with Retry-After")

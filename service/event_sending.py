"""Lines of a file to a running service in calls of so many events, and what it would not take, by reason and line.

Called by `daian events send`. Knows of a call only its status and its answer; whoever calls makes it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

MAX_BATCH = 1000
N_LINES_SHOWN = 5

Line = tuple[int, bytes]
Call = Callable[[bytes], tuple[int, dict[str, Any]]]


@dataclass
class Reason:
    """Why events were not taken: the service's code, its words for the first of them, how many, the first lines."""

    code: str
    detail: str
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """One more event."""
        self.count += 1
        if len(self.lines) < N_LINES_SHOWN:
            self.lines.append(line)


@dataclass
class Sent:
    """What became of a file. `refusal` is the service's answer to the call that ended it before its end."""

    accepted: int = 0
    duplicates: int = 0
    erased: int = 0
    rejected: int = 0
    reasons: list[Reason] = field(default_factory=list)
    refusal: dict[str, Any] | None = None
    refused_from_line: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the service took every event, or held it already."""
        return self.refusal is None and not self.rejected

    def reason(self, code: str, detail: str) -> Reason:
        """The reason of this code; malformed events have one for each fault, other details name spans of time."""
        for known in self.reasons:
            if known.code == code and (code != "malformed" or known.detail == detail):
                return known
        self.reasons.append(Reason(code, detail))
        return self.reasons[-1]


def shown(sent: Sent) -> dict[str, Any]:
    """The same for JSON, without what did not happen."""
    return {name: value for name, value in asdict(sent).items() if value not in (None, [])}


def send_events(lines: Iterable[bytes], call: Call, batch: int) -> Sent:
    """Sends NDJSON, `batch` events a call, up to the first call that is refused as a whole.

    Args:
        lines: of a file; blank ones count as lines and are no events.
        call: posts a body to the events' address; gives status and answer.
        batch: events a call, 1 to `MAX_BATCH`.

    Raises:
        ValueError: a batch of no events.
    """
    if batch < 1:
        raise ValueError(f"--batch is {batch}: send 1 to {MAX_BATCH} events a call")
    sent = Sent()
    numbered = _numbered(lines)
    while events := list(islice(numbered, min(batch, MAX_BATCH))):
        status, answer = call(b"".join(line + b"\n" for _, line in events))
        if status != 200:
            sent.refusal, sent.refused_from_line = answer, events[0][0]
            break
        _count(sent, answer, [number for number, _ in events])
    return sent


def _numbered(lines: Iterable[bytes]) -> Iterator[Line]:
    """Events and their lines in the file, from 1, as an editor counts them."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.strip()


def _count(sent: Sent, answer: dict[str, Any], numbers: list[int]) -> None:
    sent.accepted += answer["accepted"]
    sent.duplicates += answer["duplicates"]
    sent.erased += answer["erased"]
    sent.rejected += len(answer["rejected"])
    for one in answer["rejected"]:
        sent.reason(one["code"], one["detail"]).add(numbers[one["index"]])

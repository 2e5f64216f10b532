"""The second half of `daian demo`: a real store, a real service, one visitor, and the page explained.

`models_export.demo` opens a `Tour` on a bundle. The service runs as its own process (`daian serve`) and is spoken to
over HTTP alone; behaviours come in through `daian store load` and `POST /events`, as in a shop. Times of the data set
are moved so that the visitor's page view is now.

Never here: anything that makes data, models or bundles.
"""

import json
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import urlencode

import httpx
import numpy as np

from models_export.demo_service import Service, ServiceError
from service.contract.bundle import Bundle
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from training.data.dataset import split_files
from training.data.request_files import read_requests

N_SHOWN = 10
N_BEHAVIOURS_SHOWN = 8
_BAR = 40
_TELLING_HISTORY = 8
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # the second is what a terminal that closes sends
_REASONS = {
    "explicit_intent": "like the trigger, and so were earlier clicks",
    "similar": "like the trigger",
    "implicit_intent": "further away, fits the earlier clicks",
    "popular": "no history: what others click",
    "prior": "not scored",
}

Row = dict[str, Any]


@runtime_checkable
class Teller(Protocol):
    """Where the tour's steps are announced (`models_export.demo.Steps`)."""

    def step(self, title: str) -> Any:
        """A step as a `with` block; what it yields is called with one line at a time."""
        ...


class Visit(NamedTuple):
    """The page view that is shown: its row, moved to now, and what its visitor clicked in the log."""

    row: Row
    clicked: tuple[str, ...]


class Tour:
    """A running service over a bundle; use it in a `with` block, which ends with the service stopped.

    In the block a signal to end is an interrupt, as Ctrl-C is: else the service and its store would outlive the demo.
    A signal that was ignored before, as under `nohup`, stays so. The main thread alone may do this.
    """

    def __init__(self, bundle: Bundle, data: Path, teller: Teller, port: int) -> None:
        self._bundle = bundle
        self._data = data
        self._teller = teller
        self._service = Service(bundle.path.parent.parent, port)
        self._asked = ""  # the query that opens the page on the visitor who was shown
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Tour":
        found = {number: signal.getsignal(number) for number in _ENDINGS}
        self._handlers = {n: handler for n, handler in found.items() if handler not in (signal.SIG_IGN, None)}
        for number in self._handlers:
            signal.signal(number, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)  # we are ending: a second one must not leave half of it behind
        try:
            self._service.stop()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def show(self) -> None:
        """Start the service, bring the users in, rank a visitor's page, click, and rank again. Prints all of it."""
        encoder = self._bundle.open_encoder()
        with self._teller.step("Serve: a real store, the service, the users' behaviours") as tell:
            now_ms = time.time_ns() // 1_000_000
            visit, users = _cast(self._data, encoder, now_ms)
            self._service.start()
            tell(f"{self._service.address} is ready: model {self._bundle.name}@{self._bundle.version}")
            tell(self._service.load_users(_lines(users)))
            self._asked = "?" + urlencode({"user": visit.row["user"]["user"], "trigger": visit.row["trigger"]})
        with self._teller.step("POST /rank: one page view, explained") as tell, self._client() as client:
            Page(client, visit, encoder, tell).show()

    def print_farewell(self, seconds: float) -> None:
        """Where to go on, with the times it took."""
        print(
            f"\nAll of it took {seconds:.0f} s and is kept under {self._data.parent}: a second demo starts from there."
            f"\nThe service's own page, with this visitor: {self._service.address}/docs{self._asked}"
            "\n(while it runs: `make demo ARGS=--serve` keeps it)"
        )

    def serve_until_interrupted(self) -> None:
        """Keep the service until Ctrl-C, or a signal to end."""
        print(f"Serving on {self._service.address}; Ctrl-C stops it.", flush=True)
        try:
            self._service.wait()
        except KeyboardInterrupt:
            print("\nstopping")

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._service.address, timeout=10.0)


class Page:
    """One page view over HTTP: asked, explained, clicked on, asked again."""

    def __init__(self, client: httpx.Client, visit: Visit, encoder: Encoder, tell: Any) -> None:
        self._client = client
        self._visit = visit
        self._encoder = encoder
        self._tell = tell

    def show(self) -> None:
        """The whole scene."""
        self._show_visitor()
        before = self._rank(self._visit.row["candidates"])
        self._show_intent(before)
        self._show_items(before)
        clicked = self._visit.clicked[0]
        self._click(clicked)
        after = self._rank(self._visit.row["candidates"])
        self._show_change(clicked, before, after)
        self._show_recall(self._rank(None))

    def _rank(self, candidates: list[str] | None) -> Row:
        row = self._visit.row
        body = {"user": row["user"]["user"], "trigger": row["trigger"], "context": row["context"], "deadline_ms": 2000}
        answer = self._client.post("/rank", json=body if candidates is None else body | {"candidates": candidates})
        return _checked(answer)

    def _click(self, item: str) -> None:
        user, at = self._visit.row["user"]["user"], time.time_ns() // 1_000_000
        event = {"event_id": f"demo-{at}", "type": "click", "user": user, "item": item, "time": at}
        answer = _checked(self._client.post("/events", json={"events": [event]}))
        self._tell("")
        self._tell(f"{user} clicks {item}: POST /events answers {json.dumps(answer)}")

    def _show_visitor(self) -> None:
        row, now = self._visit.row, self._visit.row["requested_at"]
        about = ", ".join(f"{name} {value}" for name, value in row["user"].items() if name != "user")
        self._tell(f"visitor    {row['user']['user']}{f' ({about})' if about else ''}")
        self._tell(f"trigger    {self._about(row['trigger'])}   <- the item just opened")
        newest = sorted(row["behaviours"], key=lambda b: -b["at"])[:N_BEHAVIOURS_SHOWN]
        n_all = len(row["behaviours"])
        self._tell(f"behaviours the last {len(newest)} of {n_all}, with their similarity to the trigger:")
        similar = self._similarity([b["item"] for b in newest])
        for behaviour, value in zip(newest, similar, strict=True):
            ago = _ago((now - behaviour["at"]) / 1000)
            opened = "   <- opened this page: not counted" if self._opened_page(behaviour, now) else ""
            self._tell(
                f"  {ago:>9} ago  {_number(value)}  {behaviour['type']:9} {self._about(behaviour['item'])}{opened}"
            )

    def _opened_page(self, behaviour: Row, now: int) -> bool:
        recent = now - behaviour["at"] <= self._encoder.rules.opening_window_s * 1000
        return recent and bool(behaviour["item"] == self._visit.row["trigger"])

    def _show_intent(self, answer: Row) -> None:
        if answer["intent"] is None:
            return
        self._tell("")
        self._tell("intent     how similar to the trigger the next click will be, predicted:")
        edges, predicted = answer["intent"]["edges"], answer["intent"]["predicted"]
        for level in reversed(range(len(predicted))):
            bar = "█" * round(_BAR * predicted[level])
            self._tell(f"  {edges[level]:5.2f} to {edges[level + 1]:4.2f}  {predicted[level]:4.0%} {bar}")

    def _show_items(self, answer: Row) -> None:
        used = answer["behaviours"]
        n_given = len(self._visit.row["candidates"])
        self._tell("")
        self._tell(
            f"page       {n_given} candidates ranked in {answer['timing_ms']['total']:.1f} ms with {used['used']} "
            f"behaviours, {used['similar']} of them like the trigger"
        )
        for item in answer["items"][:N_SHOWN]:
            self._tell(self._line(item) + ("   <- clicked in the log" if item["id"] in self._visit.clicked else ""))
        if answer["degraded"]:
            self._tell(f"degraded: {', '.join(answer['degraded'])}")

    def _show_change(self, clicked: str, before: Row, after: Row) -> None:
        ranks = {item["id"]: item["rank"] for item in before["items"]}
        moved = sorted(after["items"], key=lambda item: -abs(ranks[item["id"]] - item["rank"]))
        n_moved = sum(ranks[item["id"]] != item["rank"] for item in moved)
        used = [answer["behaviours"]["used"] for answer in (before, after)]
        similarity = _number(self._similarity([clicked])[0])
        self._tell(f"ranked again: {used[0]} -> {used[1]} behaviours (similarity of the click {similarity.strip()})")
        if after["intent"] is not None:
            edges = after["intent"]["edges"]
            change = np.subtract(after["intent"]["predicted"], before["intent"]["predicted"])
            most = int(np.abs(change).argmax())
            span = f"{edges[most]:.2f} to {edges[most + 1]:.2f}"
            self._tell(f"  intent moved most at level {span}: {change[most] * 100:+.1f} points")
        self._tell(f"  {n_moved} of {len(moved)} items changed places")
        for item in (item for item in moved[:3] if ranks[item["id"]] != item["rank"]):
            self._tell(f"  {ranks[item['id']]:>3} -> {item['rank']:<3} {self._about(item['id'])}")

    def _show_recall(self, answer: Row) -> None:
        self._tell("")
        self._tell("the same without candidates: recalled by FAISS, by level in proportion to the intent")
        for item in answer["items"][:5]:
            self._tell(self._line(item))

    def _line(self, item: Row) -> str:
        reason = _REASONS.get(item["reason"], item["reason"])
        place = f"{item['rank']:>3}. {item['ctr']:6.2%}  level {item['level']}"
        return f"  {place}  {self._about(item['id']):44.44}  {reason}"

    def _about(self, item: str) -> str:
        """An item's id with its first raw fields."""
        row = int(self._encoder.catalogue.rows([item])[0])
        values = [value for value in self._encoder.catalogue.raw(row).values() if value is not None][:3]
        shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"{item} ({shown})" if shown else item

    def _similarity(self, items: list[str]) -> list[float]:
        catalogue = self._encoder.catalogue
        trigger = catalogue.rows([self._visit.row["trigger"]])
        return [float(value) for value in catalogue.similarity(trigger, catalogue.rows(items))]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# --- who is shown ----------------------------------------------------------------------------------------------------


def _cast(data: Path, encoder: Encoder, now_ms: int) -> tuple[Visit, list[Row]]:
    """The visit to show and one row for each user of the first test file, all moved to now."""
    batch, clicks = next(iter(read_requests(split_files(data, "test")[0])))
    rows: list[Row] = [dict(row) for row in batch.to_rows()]
    chosen = _most_telling(batch, clicks, encoder)
    own = clicks[batch.candidate_offsets[chosen] : batch.candidate_offsets[chosen + 1]]
    clicked = tuple(item for item, click in zip(rows[chosen]["candidates"], own, strict=True) if click)
    users = {row["user"]["user"]: row for row in rows if row["user"]["user"] is not None}
    users[rows[chosen]["user"]["user"]] = rows[chosen]
    moved = {user: _moved_to(row, now_ms) for user, row in users.items()}
    return Visit(moved[rows[chosen]["user"]["user"]], clicked), list(moved.values())


def _most_telling(batch: RequestBatch, clicks: np.ndarray, encoder: Encoder) -> int:
    """The request with a click whose visitor has a history short enough for one more click to count.

    Related behaviours count most, then a history of about `_TELLING_HISTORY`, then a full page.
    """
    inputs = encoder.encode(batch)
    n_clicks = np.bincount(batch.candidate_request, clicks, batch.n_requests)
    history, related = (inputs.history_age > 0).sum(-1), (inputs.related_age > 0).sum(-1)
    worth = 4 * np.minimum(related, 3) - np.abs(history - _TELLING_HISTORY) + np.diff(batch.candidate_offsets) / 10
    known = np.array([user is not None for user in batch.user["user"]])
    known &= encoder.catalogue.rows(batch.trigger.tolist()) > 0
    return int(np.argmax(np.where(known & (n_clicks > 0), worth, -np.inf)))


def _moved_to(row: Row, now_ms: int) -> Row:
    shift = now_ms - row["requested_at"]
    behaviours = [{**behaviour, "at": behaviour["at"] + shift} for behaviour in row["behaviours"]]
    return {**row, "requested_at": now_ms, "behaviours": behaviours}


def _lines(rows: list[Row]) -> Iterator[str]:
    """The users as `daian store load` reads them."""
    for row in rows:
        attributes = {name: value for name, value in row["user"].items() if name != "user"}
        yield json.dumps({"user": row["user"]["user"], "behaviours": row["behaviours"], "attributes": attributes})


# --- words -----------------------------------------------------------------------------------------------------------


def _checked(answer: httpx.Response) -> Row:
    if answer.status_code != httpx.codes.OK:
        raise ServiceError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:400]}")
    body: Mapping[str, Any] = answer.json()
    return dict(body)


def _number(similarity: float) -> str:
    return "    -" if similarity < -1 else f"{similarity:5.2f}"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

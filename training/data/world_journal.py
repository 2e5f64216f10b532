"""What the simulated shop's log shows: each user's newest events, requests in file form, and the truth beside them.

Called by `training.data.synthetic`; docs/world.md states every distribution. A request shows the events strictly before
it; reading times decide what that is. Of each user only the newest events are kept, so that memory does not grow with
the days.

An event is one number, time · item · kind, whose order is the order of time.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from training.data.request_files import ROW_GROUP_REQUESTS
from training.data.world_shop import Shop, names
from training.data.world_users import POPULATIONS, Users
from training.data.world_visits import DEVICE_NAMES, N_LEVELS, SHOWN, Chance, Visits, draws

HISTORY = HistoryRules().kept
DAY_MS = 86_400_000
_KINDS = np.array(["click", "cart", "purchase"], dtype=object)
_CART, _PURCHASE = 0.08, 0.03  # shares of the clicks
_CART_MS, _PURCHASE_MS = 20_000, 60_000  # how long after its click
_SHORTEST_MS, _READING_MS = 1_000, 9_000  # from one click of a page to the next: at least, and the mean of the rest
_OPENED_MS = 1_500  # the trigger was clicked this long before its page was requested
_ITEM_BITS, _KIND_BITS = 31, 2
_EPOCH_MS = DAY_MS  # packed times count from the day before the first: the opening click may fall there

TRUTH = pa.schema(
    [
        ("request_id", pa.string()),
        ("population", pa.string()),
        ("wish", pa.list_(pa.float32())),  # shares of the wishes of this visit
        ("intent", pa.list_(pa.float32())),  # the wish as weights over similarity levels
        ("click_share", pa.list_(pa.float32())),  # expected share of the page's clicks by level: what labels estimate
        ("candidate", pa.list_(pa.string())),
        ("attractiveness", pa.list_(pa.float32())),
        ("foreseeable", pa.list_(pa.float32())),
        ("probability", pa.list_(pa.float32())),
    ]
)


class Journal:
    """The newest events of every user."""

    def __init__(self, n_users: int) -> None:
        # a page's own events are later than its request: room for them beside what a request shows
        self._events = np.full((n_users, HISTORY + 3 * SHOWN), -1, dtype=np.int64)

    def record(
        self,
        at: Int64[np.ndarray, " C"],
        user: Int64[np.ndarray, " C"],
        trigger: Int64[np.ndarray, " C"],
        shown: Int64[np.ndarray, "C P"],
        clicked: Bool[np.ndarray, "C P"],
        chance: Chance,
    ) -> Int64[np.ndarray, "C H"]:
        """The histories that these pages' requests show, oldest first; then the pages' own events happen.

        `at` in world ms. No user may be in `user` twice.
        """
        opened = _pack(at - _OPENED_MS, trigger, 0)
        events = np.sort(np.concatenate([self._events[user], opened[:, None]], axis=1), axis=1)[:, 1:]
        n_before = (events < _pack(at, np.zeros_like(trigger), 0)[:, None]).sum(axis=1)
        place = n_before[:, None] - HISTORY + np.arange(HISTORY)
        history = np.where(place >= 0, np.take_along_axis(events, np.maximum(place, 0), axis=1), -1)
        new = _page_events(at, shown, clicked, chance)
        kept = np.sort(np.concatenate([events, new], axis=1), axis=1)[:, new.shape[1] :]
        self._events[user] = kept
        return history


class TruthWriter:
    """Writes truth.parquet in row groups of a fixed size, however many pages are made at once."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetWriter(path, TRUTH, compression="zstd", compression_level=1, write_page_checksum=True)
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "TruthWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush(1)
        self._file.close()

    def write(self, visits: Visits, batch: RequestBatch, users: Users) -> None:
        """Appends the truth of a chunk of pages."""
        self._waiting.append(_truth(visits, batch, users))
        self._flush(ROW_GROUP_REQUESTS)

    def _flush(self, at_least: int) -> None:
        table = pa.concat_tables(self._waiting)
        while table.num_rows >= at_least:
            self._file.write_table(table.slice(0, ROW_GROUP_REQUESTS), row_group_size=ROW_GROUP_REQUESTS)
            table = table.slice(ROW_GROUP_REQUESTS)
        self._waiting = [table]


def requests_of(visits: Visits, shop: Shop, users: Users, n_before: int, first_day_ms: int) -> RequestBatch:
    """A chunk of page views as requests; `n_before` requests came earlier."""
    is_shown, is_event = visits.shown >= 0, visits.history >= 0
    at, item, kind = _unpack(visits.history[is_event])
    known = visits.is_known
    hour = visits.at % DAY_MS // 3_600_000
    return RequestBatch(
        request_id=names("r", len(known), n_before),
        requested_at=first_day_ms + visits.at,
        user={
            "user": _where(known, users.ids[visits.user]),
            "age_band": _where(known & users.has_age[visits.user], users.age_band[visits.user]),
            "orders": _where(known, users.orders[visits.user].astype(object)),
        },
        context={"hour": hour.astype(str).astype(object), "device": DEVICE_NAMES[visits.device]},
        trigger=shop.ids[visits.trigger],
        behaviour_item=shop.ids[item],
        behaviour_at=first_day_ms + at,
        behaviour_type=_KINDS[kind],
        behaviour_offsets=_offsets(is_event),
        candidate=shop.ids[visits.shown[is_shown]],
        candidate_offsets=_offsets(is_shown),
    )


def _page_events(
    at: Int64[np.ndarray, " C"], shown: Int64[np.ndarray, "C P"], clicked: Bool[np.ndarray, "C P"], chance: Chance
) -> Int64[np.ndarray, "C E"]:
    """Clicks down the page, one after another; some are followed by a cart or a purchase. -1 where nothing happened."""
    pause = _SHORTEST_MS + (-_READING_MS * np.log1p(-draws(chance, "reading"))).astype(np.int64)
    when = at[:, None] + np.where(clicked, pause, 0).cumsum(axis=1)
    carted = clicked & (draws(chance, "cart") < _CART)
    bought = clicked & (draws(chance, "purchase") < _PURCHASE)
    kinds = ((clicked, 0, 0), (carted, _CART_MS, 1), (bought, _PURCHASE_MS, 2))
    return np.concatenate(
        [np.where(happened, _pack(when + later, shown, kind), -1) for happened, later, kind in kinds], 1
    )


def _pack(at: np.ndarray, item: np.ndarray, kind: int) -> np.ndarray:
    return np.asarray(((at + _EPOCH_MS) << (_ITEM_BITS + _KIND_BITS)) | (item << _KIND_BITS) | kind)


def _unpack(
    event: Int64[np.ndarray, " B"],
) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
    at = (event >> (_ITEM_BITS + _KIND_BITS)) - _EPOCH_MS
    return at, (event >> _KIND_BITS) & ((1 << _ITEM_BITS) - 1), event & ((1 << _KIND_BITS) - 1)


def _truth(visits: Visits, batch: RequestBatch, users: Users) -> pa.Table:
    expected = np.stack(
        [np.einsum("cp->c", visits.probability * (visits.level == j + 1)) for j in range(N_LEVELS)], axis=1
    )
    total = np.einsum("cs->c", expected)[:, None]
    share = np.divide(expected, total, out=np.zeros_like(expected), where=total > 0)
    shown = visits.shown >= 0

    def listed(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(batch.candidate_offsets, pa.int32()), pa.array(values))

    columns = [
        pa.array(batch.request_id, pa.string()),
        pa.array(np.array(POPULATIONS, dtype=object)[users.population[visits.user]], pa.string()),
        *(
            pa.array(list(values.astype(np.float32)), pa.list_(pa.float32()))
            for values in (visits.wish, visits.intent, share)
        ),
        listed(batch.candidate),
        *(
            listed(values[shown].astype(np.float32))
            for values in (visits.attractiveness, visits.foreseeable, visits.probability)
        ),
    ]
    return pa.table(columns, schema=TRUTH)


def _offsets(is_there: Bool[np.ndarray, "C N"]) -> Int64[np.ndarray, " C1"]:
    return np.concatenate([[0], np.cumsum(is_there.sum(axis=1))])


def _where(known: Bool[np.ndarray, " C"], values: np.ndarray) -> np.ndarray:
    """The values where they are known, None elsewhere."""
    masked = values.astype(object)
    masked[~known] = None
    return masked

"""`daian data prepare alimama`: the four public files of Tianchi data set 56 -> a prepared data set.

The files log impressions, not pages below a trigger; triggers are made by DIHN's rule (section 4.1 there): the
trigger of an impression is the user's latest ad click strictly before it and at most 4 hours old, of several at that
time the largest ad id; impressions without one are left out. The split is DAIAN's: 7 days to train, the last day to
test.

- A request is a user's impressions at one time (`by="time"`) or below one trigger click (`by="trigger"`).
- Behaviours are the user's ad clicks strictly before the request. The trigger click is kept in the file and dropped by
  the history rules (`opening_window_s` is the 4 hours here), so that trainer and service drop it alike.
- `validation_share` of the users give their day 7 to the validation; with 0 training has all 7 days, as in the paper.
- There are no texts or images: vectors are stand-ins, see `alimama_proxy`; the report says so.

Called by the command line. Streams: the disk holds the impressions once more, in parts by user; memory holds the ads,
the profiles and one part.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Int8, Int64, Shaped
from rich.console import Console
from rich.progress import track

from service.contract.requests import RequestBatch, objects
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from training.data.alimama_files import (
    PROFILE_TEXTS,
    Ads,
    LogPart,
    Part,
    Profiles,
    deal_by_user,
    part_of,
    read_ads,
    read_log_part,
    read_part,
    read_profiles,
    stream_log,
    stream_samples,
)
from training.data.alimama_proxy import DEVIATION, proxy_vectors
from training.data.alimama_rules import (
    TRIGGER_WINDOW_S,
    By,
    Impressions,
    count_log,
)
from training.data.dataset import Dataset, Items, PreparedWriter
from training.data.triggered_requests import TriggeredRequests, by_split
from training.data.whole_files import folders_above

DAY_S = 86_400
BEIJING_S = 8 * 3_600  # the days of the set are days of Beijing
N_PARTS = 64


def prepare_alimama(
    source: Path,
    out: Path,
    by: By = "time",
    *,
    with_behaviour_log: bool = False,
    validation_share: float = 0.1,
    n_parts: int = N_PARTS,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Dataset:
    """Prepares `raw_sample.csv`, `ad_feature.csv`, `user_profile.csv` (and `behavior_log.csv`) of `source` in `out`.

    `with_behaviour_log` adds two context fields: how often the user viewed, and acted on (cart, favourite, purchase),
    the trigger's category in the 14 days before the request. Raises DataError naming file, row and column.
    """
    if by not in get_args(By) or not 0 <= validation_share < 1:
        raise ValueError(
            f"by={by!r} must be one of {get_args(By)}, validation_share={validation_share} from 0 to below 1."
        )
    ads = read_ads(source / "ad_feature.csv")
    profiles = read_profiles(source / "user_profile.csv")
    with folders_above(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.parts-", dir=out.parent) as folder:
        parts, logs = _deal(source, Path(folder), with_behaviour_log, n_parts, show_progress)
        days = _Days.of(parts, validation_share)
        clicks = _training_clicks(parts, days)
        dataset = Dataset("alimama", schema_of(with_behaviour_log), HistoryRules(opening_window_s=TRIGGER_WINDOW_S))
        items = Items(ads.ids.astype(str).tolist(), _item_fields(ads), vectors=proxy_vectors(ads, *clicks))
        counts: Counter[str] = Counter()
        with PreparedWriter(out, dataset, items, overwrite) as writer:
            for path in track(parts, "alimama: requests", disable=not show_progress, console=Console(stderr=True)):
                log = read_log_part(logs / path.name) if with_behaviour_log else None
                _write_part(writer, read_part(path), log, ads, profiles, days, by, counts)
            for name, value in counts.items():
                writer.note(name, value)
            writer.note("source", "Alimama display advertising, Tianchi data set 56")
            writer.note("request", f"a user's impressions by {by}")
            writer.note("deviation", DEVIATION)
    return writer.dataset


def schema_of(with_behaviour_log: bool) -> FeatureSchema:
    """The fields of the data set."""
    log = (
        Field("category_views", "context", "number", n_bins=8),
        Field("category_actions", "context", "number", n_bins=8),
    )
    return FeatureSchema(
        user=(Field("user", "user", "id", min_count=2), *(Field(name, "user", "category") for name in PROFILE_TEXTS)),
        context=(
            Field("pid", "context", "category"),
            Field("hour", "context", "category"),
            *(log if with_behaviour_log else ()),
        ),
        item=(
            Field("item", "item", "id", min_count=2),
            Field("leaf_category", "item", "category"),
            Field("campaign", "item", "id", min_count=2),
            Field("advertiser", "item", "id", min_count=2),
            Field("brand", "item", "id", min_count=2),
            Field("price", "item", "number"),
        ),
        leaf_category="leaf_category",
    )


@dataclass(frozen=True)
class _Days:
    """Which split a request belongs to."""

    test_from_s: int
    validation_share: float

    @classmethod
    def of(cls, parts: list[Path], validation_share: float) -> "_Days":
        last_s = max(int(read_part(path).at_s.max()) for path in parts)
        return cls((last_s + BEIJING_S) // DAY_S * DAY_S - BEIJING_S, validation_share)

    @property
    def borders_s(self) -> tuple[int, ...]:
        """Where one split ends and another begins: a request lies on one side of each."""
        validation = (self.test_from_s - DAY_S,) if self.validation_share else ()
        return (*validation, self.test_from_s)

    def split(self, user: Int64[np.ndarray, " R"], at_s: Int64[np.ndarray, " R"]) -> Shaped[np.ndarray, " R"]:
        held_out = part_of(user, 10_000) < self.validation_share * 10_000
        is_last_train_day = (at_s >= self.test_from_s - DAY_S) & (at_s < self.test_from_s)
        split = np.where(held_out & is_last_train_day, "validation", "train")
        split[at_s >= self.test_from_s] = "test"
        return split


def _deal(source: Path, folder: Path, with_log: bool, n_parts: int, show: bool) -> tuple[list[Path], Path]:
    """Impressions, and the behaviour log when wanted, in parts by user."""
    off, console = not show, Console(stderr=True)
    columns = ("user", "time_stamp", "adgroup_id", "pid", "clk")
    samples = track(
        stream_samples(source / "raw_sample.csv"), "alimama: impressions", None, disable=off, console=console
    )
    parts = deal_by_user(iter(samples), folder / "samples", columns, n_parts)
    logs = folder / "log"
    if with_log:
        rows = track(stream_log(source / "behavior_log.csv"), "alimama: behaviours", None, disable=off, console=console)
        deal_by_user(iter(rows), logs, ("user", "time_stamp", "btag", "cate"), n_parts)
    return [path for path in parts if len(read_part(path).user)], logs


def _training_clicks(parts: list[Path], days: _Days) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"]]:
    """(user, ad) of every click that is neither of the test day nor of the validation."""
    users, ads = [], []
    for part in map(read_part, parts):
        counted = (part.clicked == 1) & (days.split(part.user, part.at_s) == "train")
        users.append(part.user[counted])
        ads.append(part.ad[counted])
    return np.concatenate(users), np.concatenate(ads)


def _write_part(
    writer: PreparedWriter,
    part: Part,
    log: LogPart | None,
    ads: Ads,
    profiles: Profiles,
    days: _Days,
    by: By,
    counts: Counter[str],
) -> None:
    impressions = Impressions.of(part)
    requests = TriggeredRequests.of(impressions, by, days.borders_s)
    n_shown = len(requests.shown.user)
    counts["impressions"] += len(part.user)
    counts["impressions_repeated"] += impressions.n_repeated
    counts["impressions_without_trigger"] += len(impressions.user) - n_shown
    counts["impressions_of_unknown_ads"] += int((ads.places(impressions.ad) < 0).sum())
    if not len(requests.starts):
        return
    requests = requests.each_ad_once()
    counts["impressions_repeated_in_a_request"] += n_shown - len(requests.shown.user)
    named = _Named(requests, log, ads, profiles, by)
    user, at_s = requests.shown.user[requests.starts], requests.shown.at_s[requests.starts]
    for split, some in by_split(days.split(user, at_s)):
        writer.write(split, *named.batch(some))


@dataclass(frozen=True)
class _Named:
    """The requests of one part with their names and fields."""

    requests: TriggeredRequests
    log: LogPart | None
    ads: Ads
    profiles: Profiles
    by: By

    def batch(self, some: Int64[np.ndarray, " R"]) -> tuple[RequestBatch, Int8[np.ndarray, " N"]]:
        requests = self.requests
        first = requests.starts[some]
        user, at_s, trigger = requests.shown.user[first], requests.shown.at_s[first], requests.trigger[first]
        context = self._context(first, at_s, trigger)
        return requests.batch(some, self._names(user, at_s, trigger), self.profiles.columns(user), context)

    def _context(
        self, first: Int64[np.ndarray, " R"], at_s: Int64[np.ndarray, " R"], trigger: Int64[np.ndarray, " R"]
    ) -> dict[str, Shaped[np.ndarray, " R"]]:
        hours = np.array([f"{hour:02d}" for hour in range(24)], dtype=object)
        context = {"pid": self.requests.shown.pid[first], "hour": hours[(at_s + BEIJING_S) // 3_600 % 24]}
        if self.log is None:
            return context
        category = self._category_of(trigger)
        views = count_log(self.log, self.log.is_view, self.requests.shown.user[first], category, at_s)
        actions = count_log(self.log, ~self.log.is_view, self.requests.shown.user[first], category, at_s)
        return context | {"category_views": _floats(views), "category_actions": _floats(actions)}

    def _category_of(self, trigger: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """The trigger's category as the log writes it, -1 where it is not known."""
        texts = np.append(self.ads.texts["cate_id"], [None])[self.ads.places(self.requests.impressions.ad[trigger])]
        return np.array([-1 if text is None else int(text) for text in texts], dtype=np.int64)

    def _names(
        self, user: Int64[np.ndarray, " R"], at_s: Int64[np.ndarray, " R"], trigger: Int64[np.ndarray, " R"]
    ) -> Shaped[np.ndarray, " R"]:
        if self.by == "time":
            return objects(f"{u}-{t}" for u, t in zip(user, at_s, strict=True))
        clicked_at, ad = self.requests.impressions.at_s[trigger], self.requests.impressions.ad[trigger]
        parts = zip(user, clicked_at, ad, at_s, strict=True)
        return objects("-".join(str(number) for number in some) for some in parts)


def _item_fields(ads: Ads) -> dict[str, list[str | float | None]]:
    names = {"leaf_category": "cate_id", "campaign": "campaign_id", "advertiser": "customer", "brand": "brand"}
    fields: dict[str, list[str | float | None]] = {name: ads.texts[column].tolist() for name, column in names.items()}
    fields["price"] = [float(price) if np.isfinite(price) else None for price in ads.price]
    return fields


def _floats(values: Int64[np.ndarray, " R"]) -> Shaped[np.ndarray, " R"]:
    return objects(float(value) for value in values)

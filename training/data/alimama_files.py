"""The public files of Alimama's display advertising set (Tianchi 56), read in streams of bounded memory.

`raw_sample.csv` (26.6 M impressions) and `behavior_log.csv` (723 M rows) are dealt into parts by a hash of the user, on
disk: a user's rows are all in one part, and a part fits into memory. `ad_feature.csv` and `user_profile.csv` are read
whole. Used by `prepare_alimama` alone, which says what a request is. Errors name file, row and column.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
from jaxtyping import Float64, Int64, Shaped

from training.data.errors import DataError

RAW_SAMPLE = MappingProxyType(
    {
        "user": pa.int64(),
        "time_stamp": pa.int64(),
        "adgroup_id": pa.int64(),
        "pid": pa.string(),
        "nonclk": pa.int8(),
        "clk": pa.int8(),
    }
)
BEHAVIOR_LOG = MappingProxyType({"user": pa.int64(), "time_stamp": pa.int64(), "btag": pa.string(), "cate": pa.int64()})
AD_TEXTS = ("cate_id", "campaign_id", "customer", "brand")
PROFILE_TEXTS = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
BLOCK_BYTES = 8 << 20
_MIX = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing: consecutive user ids fall into different parts


@dataclass(frozen=True)
class Ads:
    """`ad_feature.csv`, sorted by ad id. Texts are objects, None where the file says NULL."""

    ids: Int64[np.ndarray, " M"]
    texts: dict[str, Shaped[np.ndarray, " M"]]
    price: Float64[np.ndarray, " M"]

    def places(self, ids: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """The place of each ad, -1 for one that is not in the file."""
        return _places(self.ids, ids)


@dataclass(frozen=True)
class Profiles:
    """`user_profile.csv`, sorted by user."""

    users: Int64[np.ndarray, " V"]
    texts: dict[str, Shaped[np.ndarray, " V"]]

    def columns(self, users: Int64[np.ndarray, " R"]) -> dict[str, Shaped[np.ndarray, " R"]]:
        """Each field for each of `users`, None where the user has no profile."""
        places = _places(self.users, users)
        found = {}
        for name, values in self.texts.items():
            with_none = np.append(values, [None])
            found[name] = with_none[places]
        return found


@dataclass(frozen=True)
class Part:
    """The impressions of some users, in file order."""

    user: Int64[np.ndarray, " N"]
    at_s: Int64[np.ndarray, " N"]
    ad: Int64[np.ndarray, " N"]
    pid: Shaped[np.ndarray, " N"]
    clicked: Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class LogPart:
    """The category behaviours of some users, in file order."""

    user: Int64[np.ndarray, " N"]
    at_s: Int64[np.ndarray, " N"]
    category: Int64[np.ndarray, " N"]
    is_view: Shaped[np.ndarray, " N"]


def read_ads(path: Path) -> Ads:
    """Reads `ad_feature.csv`. Raises DataError for a repeated ad."""
    types = {"adgroup_id": pa.int64(), **dict.fromkeys(AD_TEXTS, pa.string()), "price": pa.float64()}
    table = pa.Table.from_batches([batch for _, batch in stream_csv(path, types, required=("adgroup_id",))])
    ids = _integers(table, "adgroup_id")
    order = _sorted_unique(ids, path, "adgroup_id")
    price = table.column("price").to_numpy(zero_copy_only=False).astype(np.float64)
    return Ads(ids[order], {name: _texts(table, name)[order] for name in AD_TEXTS}, price[order])


def read_profiles(path: Path) -> Profiles:
    """Reads `user_profile.csv`. Raises DataError for a repeated user."""
    types = {"userid": pa.int64(), **dict.fromkeys(PROFILE_TEXTS, pa.string())}
    table = pa.Table.from_batches([batch for _, batch in stream_csv(path, types, required=("userid",))])
    users = _integers(table, "userid")
    order = _sorted_unique(users, path, "userid")
    return Profiles(users[order], {name: _texts(table, name)[order] for name in PROFILE_TEXTS})


def deal_by_user(
    batches: Iterator[tuple[int, pa.RecordBatch]], folder: Path, columns: Sequence[str], n_parts: int
) -> list[Path]:
    """Writes the rows of each user into one of `n_parts` Arrow files; memory is one batch."""
    folder.mkdir(parents=True)
    paths = [folder / f"{part:04d}.arrow" for part in range(n_parts)]
    with ExitStack() as stack:
        writers: list[pa.RecordBatchFileWriter] = []
        for _, batch in batches:
            kept = batch.select(list(columns))
            if not writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                writers += [stack.enter_context(pa.ipc.new_file(p, kept.schema, options=options)) for p in paths]
            part = part_of(kept.column("user").to_numpy(), n_parts)
            order = np.argsort(part, kind="stable")
            ends = np.cumsum(np.bincount(part, minlength=n_parts))
            dealt = kept.take(pa.array(order))
            for number, end in enumerate(ends):
                start = ends[number - 1] if number else 0
                if end > start:
                    writers[number].write_batch(dealt.slice(start, end - start))
    return [path for path in paths if path.is_file()]


def part_of(users: Int64[np.ndarray, " N"], n_parts: int) -> Int64[np.ndarray, " N"]:
    """The part of each user."""
    return ((users.astype(np.uint64) * _MIX >> np.uint64(32)) % np.uint64(n_parts)).astype(np.int64)


def read_part(path: Path) -> Part:
    """All impressions of one part."""
    table = _read_arrow(path)
    return Part(
        _integers(table, "user"),
        _integers(table, "time_stamp"),
        _integers(table, "adgroup_id"),
        _texts(table, "pid"),
        _integers(table, "clk"),
    )


def read_log_part(path: Path) -> LogPart:
    """All category behaviours of one part."""
    table = _read_arrow(path)
    is_view = np.asarray(pa.compute.equal(table.column("btag"), "pv").to_numpy(zero_copy_only=False), dtype=bool)
    return LogPart(_integers(table, "user"), _integers(table, "time_stamp"), _integers(table, "cate"), is_view)


def stream_samples(path: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """`raw_sample.csv` in batches with the number of their first row; clicks are checked against `nonclk`."""
    for first, batch in stream_csv(path, dict(RAW_SAMPLE), required=tuple(RAW_SAMPLE)):
        clicked, not_clicked = batch.column("clk").to_numpy(), batch.column("nonclk").to_numpy()
        wrong = np.flatnonzero((clicked < 0) | (clicked > 1) | (clicked + not_clicked != 1))
        if len(wrong):
            at = int(wrong[0])
            raise DataError(
                f"{path}, row {first + at}, columns nonclk and clk: {not_clicked[at]} and {clicked[at]}; "
                "one must be 0 and the other 1."
            )
        yield first, batch


def stream_log(path: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """`behavior_log.csv` in batches with the number of their first row."""
    return stream_csv(path, dict(BEHAVIOR_LOG), required=tuple(BEHAVIOR_LOG))


def stream_csv(
    path: Path, types: dict[str, pa.DataType], required: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The columns of `types` in batches, with the number of the first row of each (the first after the header is 1).

    Raises DataError naming file, row and column for a missing column, a value of another type, an empty required cell.
    """
    convert = pcsv.ConvertOptions(
        column_types={name: types[key] for key, name in _header(path, types).items()},
        include_columns=list(_header(path, types).values()),
        null_values=["", "NULL", "null"],
        strings_can_be_null=True,
    )
    read = pcsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    first = 1
    try:
        with pcsv.open_csv(path, read_options=read, convert_options=convert) as reader:
            for batch in reader:
                named = pa.RecordBatch.from_arrays(batch.columns, names=list(types))
                _refuse_empty(path, named, required, first)
                yield first, named
                first += batch.num_rows
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}, after row {first - 1}: {_place(error)}; correct the file, then run again.") from error
    if first == 1:
        raise DataError(f"{path}: no rows.")


def _header(path: Path, types: dict[str, pa.DataType]) -> dict[str, str]:
    """The file's own name of each wanted column: the public files have one with a space at its end."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; download the four files of Tianchi data set 56 into one folder.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    found = {name.strip(): name for name in names}
    missing = [name for name in types if name not in found]
    if missing:
        raise DataError(f"{path}, row 0 (header): no columns {missing}; it has {sorted(found)}.")
    return {name: found[name] for name in types}


def _refuse_empty(path: Path, batch: pa.RecordBatch, required: Sequence[str], first: int) -> None:
    for name in required:
        column = batch.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{path}, row {first + row}, column {name}: empty, but every row needs one.")


def _place(error: pa.ArrowInvalid) -> str:
    """Arrow's message counts the header as row 1: said, so that nobody looks one row off."""
    text = str(error).strip()
    return f"{text} (rows counted with the header as 1)" if "Row #" in text else text


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def _integers(table: pa.Table, name: str) -> Int64[np.ndarray, " N"]:
    values: np.ndarray = table.column(name).to_numpy().astype(np.int64)
    return values


def _texts(table: pa.Table, name: str) -> Shaped[np.ndarray, " N"]:
    """Objects that share one string for equal values."""
    codes = table.column(name).combine_chunks().dictionary_encode()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    distinct = np.array([*codes.dictionary.to_pylist(), None], dtype=object)
    indices: np.ndarray = codes.indices.fill_null(len(codes.dictionary)).to_numpy(zero_copy_only=False)
    texts: np.ndarray = distinct[indices]
    return texts


def _sorted_unique(ids: Int64[np.ndarray, " N"], path: Path, column: str) -> Int64[np.ndarray, " N"]:
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(repeated):
        row = int(order[repeated[0] + 1])
        raise DataError(f"{path}, row {row + 1}, column {column}: {ids[row]} came before; it must be unique.")
    return order


def _places(known: Int64[np.ndarray, " M"], wanted: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    if not len(known):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, place, -1)

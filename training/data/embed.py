"""`daian embed`: an item file -> one vector per item, in a folder that `daian data prepare logs` takes as it is.

`embed` streams items (parquet, CSV or NDJSON with an id, texts, an image path), runs a content encoder in shards and
joins them. A shard is named by the hash of what is in it and appears complete or not at all: a rerun after a crash,
or after rows were appended, does only what is missing. The int8 codes of the contract are not made here:
`Catalogue.build` quantises, in one place for every source of vectors.

    <out>/vectors.npy   float32 [M, D], row i of item i, L2-normalised; a row of zeros is an item without content
    <out>/ids.json      the M item ids, in the same order
    <out>/meta.json     encoder, its fingerprint, dimensions, what was cut or centred, notes; written last
    <out>/shards/       finished parts, before centring; may be deleted once meta.json is there
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.data.content_encoders import AUTO, Content, ContentEncoder, open_encoder
from training.data.errors import DataError
from training.data.item_files import ItemColumns, ItemRow, read_items
from training.data.whole_files import take_name, write_whole

MAX_DIMENSIONS = 1024  # a product of int8 codes stays below 2^24, where float32 counts exactly (house.md, promise 3)
SHARD_ITEMS = 2048
PROJECTION_SEED = 20260213
FORMAT = 1


@dataclass(frozen=True)
class EmbedReport:
    """What `embed` did; meta.json holds the same."""

    items: int
    without_content: int
    images_unread: int  # items with an image that a text encoder could not look at
    encoder: str
    encoder_fingerprint: str
    encoder_dimensions: int
    dimensions: int
    cut: str  # "none", "matryoshka truncation" or "seeded random projection"
    centred: bool
    shards_reused: int
    shards_made: int
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def __str__(self) -> str:
        cut = "" if self.cut == "none" else f" (cut from {self.encoder_dimensions} by {self.cut})"
        lines = [
            f"{self.items:,} items, {self.without_content:,} without content, encoder {self.encoder}",
            f"{self.dimensions} dimensions{cut}, {'centred, ' if self.centred else ''}L2-normalised",
            f"{self.shards_made} shards made, {self.shards_reused} found finished",
        ]
        return "\n".join(lines + [f"! {note}" for note in self.notes])


@dataclass(frozen=True)
class Vectors:
    """A finished folder, opened: `vectors` is a memory map."""

    ids: list[str]
    vectors: Float32[np.ndarray, "M D"]
    meta: dict[str, object]


@dataclass
class _Tally:
    ids: list[str] = field(default_factory=list)
    without_content: int = 0
    images_unread: int = 0
    reused: int = 0
    made: int = 0


def embed(
    items: Path,
    out: Path,
    encoder: str | ContentEncoder = AUTO,
    columns: ItemColumns | None = None,
    *,
    batch_size: int = 64,
    centre: bool = False,
    max_dimensions: int = MAX_DIMENSIONS,
    device: str | None = None,
    show_progress: bool = True,
) -> EmbedReport:
    """Embeds every row of `items` into the folder `out` and returns what was done; `encoder` as in `open_encoder`.

    Vectors longer than `max_dimensions` (at most 1,024) are cut: to their first places when the encoder was trained
    for it (Matryoshka), else by a seeded Gaussian projection (Johnson-Lindenstrauss), which keeps cosines to about
    1/sqrt(D). `centre` subtracts the mean over the items, which image encoders need: their cosines sit in a narrow
    cone otherwise. Raises DataError naming file, row and column.
    """
    if not 1 <= max_dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"max_dimensions is {max_dimensions}; it must be 1 to {MAX_DIMENSIONS}.")
    # The first rows are read before anything is made: a wrong file leaves no folder, and a finished one as it is.
    chunks = _chunks(read_items(items, columns or ItemColumns()), SHARD_ITEMS)
    first = next(chunks, None)
    if first is None:
        raise DataError(f"{items}: no items in it; there is nothing to embed.")
    opened = open_encoder(encoder, device) if isinstance(encoder, str) else encoder
    cut = _choose_cut(opened, max_dimensions)
    (out / "meta.json").unlink(missing_ok=True)  # its absence says that the folder is not finished
    tally = _Tally()
    shown = _with_progress(chain([first], chunks), f"embed {opened.name}", show_progress)
    paths = [
        _finish_shard(out / "shards", index, chunk, opened, cut, batch_size, tally) for index, chunk in enumerate(shown)
    ]
    dimensions = _join(paths, out / "vectors.npy", len(tally.ids), centre)
    _write_json(out / "ids.json", tally.ids)
    report = _report(opened, cut, centre, dimensions, tally)
    _write_json(out / "meta.json", asdict(report))
    return report


def open_vectors(folder: Path) -> Vectors:
    """Opens what `embed` wrote. Raises DataError when the folder is not finished or its parts do not fit together."""
    meta_path = folder / "meta.json"
    if not meta_path.is_file():
        raise DataError(f"{folder}: no meta.json, so `daian embed` has not finished here; run it again, it continues.")
    meta = json.loads(meta_path.read_text())
    if meta.get("format") != FORMAT:
        raise DataError(f"{meta_path}: format {meta.get('format')!r}, this version reads {FORMAT}; embed again.")
    ids = json.loads((folder / "ids.json").read_text())
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    if vectors.dtype != np.float32 or vectors.shape != (len(ids), meta["dimensions"]):
        raise DataError(
            f"{folder}: vectors.npy is {vectors.dtype} {vectors.shape}, but ids.json and meta.json say float32 "
            f"({len(ids)}, {meta['dimensions']}); embed again."
        )
    return Vectors(ids, vectors, meta)


def normalise(vectors: Float32[np.ndarray, "M D"]) -> Float32[np.ndarray, "M D"]:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1).astype(np.float32)


@dataclass(frozen=True)
class _Cut:
    name: str
    dimensions: int

    def apply(self, vectors: Float32[np.ndarray, "M D"]) -> Float32[np.ndarray, "M D2"]:
        if self.name == "none":
            return vectors
        if self.name == "matryoshka truncation":
            return vectors[:, : self.dimensions]
        shape = (vectors.shape[1], self.dimensions)
        gaussian = np.random.default_rng(PROJECTION_SEED).standard_normal(shape, dtype=np.float32)
        projected: np.ndarray = vectors @ (gaussian / np.float32(np.sqrt(self.dimensions)))
        return projected


def _choose_cut(encoder: ContentEncoder, max_dimensions: int) -> _Cut:
    if encoder.dimensions <= max_dimensions:
        return _Cut("none", encoder.dimensions)
    return _Cut("matryoshka truncation" if encoder.is_matryoshka else "seeded random projection", max_dimensions)


def _chunks(rows: Iterable[ItemRow], size: int) -> Iterator[list[ItemRow]]:
    chunk: list[ItemRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _finish_shard(
    shards: Path, index: int, rows: list[ItemRow], encoder: ContentEncoder, cut: _Cut, batch_size: int, tally: _Tally
) -> Path:
    """The shard's file, made now unless an earlier run finished it."""
    has_image = np.array([row.content.image is not None for row in rows])
    has_text = np.array([bool(row.content.text) for row in rows])
    readable = has_text | has_image if encoder.reads_images else has_text
    tally.ids += [row.item_id for row in rows]
    tally.without_content += int((~readable).sum())
    tally.images_unread += 0 if encoder.reads_images else int(has_image.sum())
    path = shards / f"{index:06d}-{_content_hash(rows, encoder, cut)}.npy"
    if path.is_file():
        tally.reused += 1
        return path
    tally.made += 1
    vectors = np.zeros((len(rows), encoder.dimensions), dtype=np.float32)
    if readable.any():
        vectors[readable] = encoder.encode([rows[i].content for i in np.flatnonzero(readable)], batch_size)
    _refuse_broken(vectors, rows, encoder)
    shards.mkdir(parents=True, exist_ok=True)
    _save_array(path, cut.apply(normalise(vectors)))
    return path


def _refuse_broken(vectors: Float32[np.ndarray, "M D"], rows: list[ItemRow], encoder: ContentEncoder) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise DataError(
            f"encoder {encoder.name!r} gave a vector that is not finite for item {rows[broken[0]].item_id!r} and "
            f"{len(broken) - 1} more; look at their content, or choose another precision or device."
        )


def _content_hash(rows: list[ItemRow], encoder: ContentEncoder, cut: _Cut) -> str:
    """Of everything that the shard's vectors depend on; an image counts by path, size and time of change."""
    digest = hashlib.sha256(json.dumps([FORMAT, encoder.fingerprint, cut.name, cut.dimensions]).encode())
    for row in rows:
        digest.update(json.dumps([row.item_id, row.content.text, _image_stamp(row.content)]).encode())
    return digest.hexdigest()[:20]


def _image_stamp(content: Content) -> tuple[str, int, int] | None:
    if content.image is None:
        return None
    status = content.image.stat()
    return str(content.image), status.st_size, status.st_mtime_ns


def _join(paths: list[Path], path: Path, n_items: int, centre: bool) -> int:
    """All shards as one array, centred on request and normalised; memory stays that of one shard."""
    dimensions = int(np.load(paths[0], mmap_mode="r").shape[1])
    mean = _mean(paths, dimensions) if centre else np.zeros(dimensions, dtype=np.float32)
    partial = path.with_name(f".{path.name}.partial")
    joined = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(n_items, dimensions))
    start = 0
    for shard in map(np.load, paths):
        known = np.abs(shard).max(axis=1, keepdims=True) > 0
        joined[start : start + len(shard)] = normalise(np.where(known, shard - mean, np.float32(0)))
        start += len(shard)
    joined.flush()
    del joined
    take_name(partial, path)
    return dimensions


def _mean(paths: list[Path], dimensions: int) -> Float32[np.ndarray, " D"]:
    total, count = np.zeros(dimensions), 0
    for shard in map(np.load, paths):
        known = np.abs(shard).max(axis=1) > 0
        total += shard[known].sum(axis=0, dtype=np.float64)
        count += int(known.sum())
    return (total / max(count, 1)).astype(np.float32)


def _report(encoder: ContentEncoder, cut: _Cut, centre: bool, dimensions: int, tally: _Tally) -> EmbedReport:
    notes = [encoder.note] if encoder.note else []
    if tally.images_unread:
        notes.append(f"{tally.images_unread:,} items have an image, but {encoder.name} reads text alone: not used.")
    return EmbedReport(
        items=len(tally.ids),
        without_content=tally.without_content,
        images_unread=tally.images_unread,
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        encoder_dimensions=encoder.dimensions,
        dimensions=dimensions,
        cut=cut.name,
        centred=centre,
        shards_reused=tally.reused,
        shards_made=tally.made,
        notes=tuple(notes),
    )


def _save_array(path: Path, array: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
    take_name(partial, path)


def _write_json(path: Path, value: object) -> None:
    write_whole(path, json.dumps(value, ensure_ascii=False).encode())


def _with_progress(chunks: Iterator[list[ItemRow]], label: str, show: bool) -> Iterator[list[ItemRow]]:
    """Shows how many items have been handed on; files are streamed, so there is no total to promise."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) if show else nullcontext() as progress:
        task = progress.add_task(label, total=None) if progress else None
        for chunk in chunks:
            yield chunk
            if progress and task is not None:
                progress.advance(task, len(chunk))

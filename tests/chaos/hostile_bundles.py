"""Hostile bundles: ways to spoil a good one, each with what its refusal must say. Used by test_hostile_bundles.py.

What is spoilt has fitting hashes where the hashes are not what is tried: the manifest of a careful attacker.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.contract.manifest import with_digest
from tests.small_bundle import candidate_graph

TABLE = "tables/table.item.npy"
INDEX = "catalogue/recall.faiss"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Hostile:
    """What is done to a good bundle's folder, and a pattern that the refusal has behind the folder's path, if any."""

    name: str
    spoil: Callable[[Path], None]
    said: str


def rehash(path: Path, **changes: Any) -> None:
    """The manifest with the hashes of what lies there now, and `changes`."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(with_digest(manifest | changes)))


def mutate(file: Path, dice: random.Random) -> None:
    """One to eight bytes of a file become others."""
    content = bytearray(file.read_bytes())
    for place in dice.sample(range(len(content)), min(len(content), dice.choice((1, 1, 2, 8)))):
        content[place] ^= dice.randrange(1, 256)
    file.write_bytes(content)


def _flip(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)

    return spoil


def _cut(name: str, is_rehashed: bool = False) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])
        if is_rehashed:
            rehash(path)

    return spoil


def _swap(one: str, other: str, is_rehashed: bool = False) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        first, second = (path / one).read_bytes(), (path / other).read_bytes()
        (path / one).write_bytes(second)
        (path / other).write_bytes(first)
        if is_rehashed:
            rehash(path)

    return spoil


def _put(name: str, content: bytes, is_rehashed: bool = True) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        (path / name).write_bytes(content)
        if is_rehashed:
            rehash(path)

    return spoil


def _say(**changes: Any) -> Callable[[Path], None]:
    return lambda path: rehash(path, **changes)


def _list(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A change to the list of files of the manifest."""

    def spoil(path: Path) -> None:
        manifest = json.loads((path / MANIFEST).read_text())
        change(manifest["files"])
        (path / MANIFEST).write_text(json.dumps(with_digest(manifest)))

    return spoil


def _edited(path: Path) -> None:
    """What somebody does who only wants another prior."""
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"prior": 0.05', '"prior": 0.06'))


def _deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def _linked(path: Path) -> None:
    outside = path.parent / f"outside-{path.name}.npy"
    (path / TABLE).rename(outside)
    (path / TABLE).symlink_to(outside)


def _piped(path: Path) -> None:
    (path / TABLE).unlink()
    os.mkfifo(path / TABLE)


def _missing(path: Path) -> None:
    (path / "golden.jsonl").unlink()


def _graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        model = onnx.load_from_string((path / "candidates.onnx").read_bytes())
        change(model)
        (path / "candidates.onnx").write_bytes(model.SerializeToString())
        rehash(path)

    return spoil


def _forbid(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Loop"


def _outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def _lie(model: onnx.ModelProto) -> None:
    """A tensor that says it has more numbers than the machine has bytes, and holds one."""
    model.graph.initializer[0].dims[:] = [1 << 40]


def _grow(model: onnx.ModelProto) -> None:
    """A few bytes that become a terabyte when they are run."""
    shape = numpy_helper.from_array(np.array([1_000_000_000, 1]), "shape")
    model.graph.initializer.append(shape)
    for node in model.graph.node:
        if node.output[0] == "logits":
            node.output[0] = "small"
    model.graph.node.extend(
        [
            helper.make_node("Expand", ["small", "shape"], ["huge"]),
            helper.make_node("ReduceSum", ["huge", "first_axis"], ["logits"], keepdims=0),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first_axis"))


def _table(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


HUGE = _table(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1), }\n")
PICKLE = _table(b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }\n")


def _long_index(path: Path) -> None:
    """An index that says it holds 2**40 vectors, and holds none of them."""
    content = bytearray((path / INDEX).read_bytes())
    for head in (4, 41):  # of the wrapper, and of what is inside
        content[head + 4 : head + 12] = (1 << 40).to_bytes(8, "little")
    (path / INDEX).write_bytes(content)
    rehash(path)


def _bad_json(text: bytes) -> Callable[[Path], None]:
    return _put(MANIFEST, text, is_rehashed=False)


BY_HASH = [
    *(Hostile(f"a bit of {name}", _flip(name), f"/{name}: SHA-256")
      for name in ("request.onnx", TABLE, INDEX, "encoder/encoder.json", "golden.jsonl")),
    Hostile("a graph cut short", _cut("candidates.onnx"), "/candidates.onnx: SHA-256"),
    Hostile("an empty file", _put("golden.jsonl", b"", False), "/golden.jsonl: SHA-256"),
    Hostile("two files swapped", _swap("request.onnx", "candidates.onnx"), "/(request|candidates).onnx: SHA-256"),
    Hostile("a wrong hash", _list(lambda files: files.update({TABLE: "0" * 64})), f"/{TABLE}: SHA-256"),
    Hostile("a hash that is none", _list(lambda files: files.update({TABLE: None})), f"/{TABLE}: SHA-256"),
    Hostile("a missing file", _missing, "/golden.jsonl is missing"),
    Hostile("an extra file", _put("encoder/extra.bin", b"x", False), "/encoder/extra.bin is not in the manifest"),
    Hostile("a file elsewhere", _list(lambda files: files.update({"../v1/golden.jsonl": "0" * 64})),
            "/../v1/golden.jsonl is missing"),
    Hostile("a link", _linked, f"/{TABLE} is a link"),
    Hostile("a pipe", _piped, f"/{TABLE} is no regular file"),
]  # fmt: skip
BY_MANIFEST = [
    Hostile("bytes", _bad_json(bytes(range(256))), "/manifest.json is not JSON"),
    Hostile("nothing", _bad_json(b""), "/manifest.json is not JSON"),
    Hostile("a list", _bad_json(b"[]"), "/manifest.json holds list"),
    Hostile("brackets", _bad_json(b"[" * 100_000), "/manifest.json is not JSON"),
    Hostile("17 MB", _bad_json(b" " * (17 << 20)), "/manifest.json has 17825792 bytes"),
    Hostile("no files", lambda path: rehash(path, files=[]), "/manifest.json lists no files"),
    Hostile("an older contract", _say(contract_version=0), ": contract_version is 0"),
    Hostile("an older fingerprint", _say(fingerprint="0" * 64), ": the encoder's fingerprint is"),
    Hostile("a prior that is no rate", _say(prior=7), "/manifest.json: prior is 7"),
    Hostile("a prior that is not a number", _say(prior=float("nan")), "/manifest.json: prior is nan"),
    Hostile("a prior that is gone", _say(prior=None), "/manifest.json: prior is None"),
    Hostile(
        "graphs that are none", _say(graphs={"request": {"inputs": 5}}), "/manifest.json: graphs.request.inputs is 5"
    ),
    Hostile("half a character", _say(model={"name": "\ud800"}), "/manifest.json: model.name is"),
    Hostile("a number too large for a reader", _say(metrics=[2**63]), r"/manifest.json: metrics\[0\] is 922"),
    Hostile("levels without an end", _say(metrics=_deep(500)), "/manifest.json: metrics"),
    Hostile("an edit by hand", _edited, "/manifest.json: self_sha256 is not that of the rest"),
    Hostile("another version", _say(version="v1"), "/manifest.json is that of daian@v1"),
]
BY_CONTENT = [
    Hostile("not a number", _put("candidates.onnx", candidate_graph(nan_for_item=3)), "/golden.jsonl, line 1"),
    Hostile("a forbidden operator", _graph(_forbid), "/candidates.onnx uses the operator 'Loop'"),
    Hostile("weights elsewhere", _graph(_outside), "/candidates.onnx holds weights outside"),
    Hostile("a tensor that lies about its size", _graph(_lie), "candidates.onnx cannot be opened"),
    Hostile("a graph that wants a terabyte", _graph(_grow), "/golden.jsonl, line 1: candidates.onnx failed"),
    Hostile("two graphs swapped", _swap("request.onnx", "candidates.onnx", True), "request.onnx asks for"),
    Hostile("a graph cut short", _cut("candidates.onnx", True), "/candidates.onnx is not an ONNX graph"),
    Hostile("a table of a trillion rows", _put(TABLE, HUGE), f"/{TABLE} is not a table"),
    Hostile("a table of pickles", _put(TABLE, PICKLE), f"/{TABLE} is not a table"),
    Hostile("a table cut short", _cut(TABLE, True), f"/{TABLE} is not a table"),
    Hostile(
        "a catalogue of a trillion rows",
        _put("catalogue/codes.npy", HUGE),
        "/catalogue/codes.npy holds no readable array",
    ),
    Hostile("an index of 2**40 vectors", _long_index, f"/{INDEX} is not"),
    Hostile("an index of another kind", _put(INDEX, b"IxFl" + bytes(64)), f"/{INDEX} is a FAISS index of kind"),
    Hostile("no golden request", _put("golden.jsonl", b""), "/golden.jsonl holds no golden request"),
    Hostile("a golden request of words", _put("golden.jsonl", b'{"request": "x"}'), "/golden.jsonl, line 1"),
]
EVERY = [("hash", BY_HASH), ("manifest", BY_MANIFEST), ("content", BY_CONTENT)]

"""A small but whole bundle for tests of the service: real contract, real ONNX, real FAISS, a model one can do by hand.

logit(candidate) = table[item] + 2 * similarity + 0.5 * (number of behaviours > 0)
intent           = (0, .., 0, 1) shifted by the user's history: all on the top level with a history, uniform without
"""

import json
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import onnx
from onnx import TensorProto, helper

from service.contract.bundle import Bundle, point_to, write_bundle
from service.contract.catalogue import Catalogue
from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules, SimilarityScale
from service.contract.schema import FeatureSchema, Field
from service.contract.vocabulary import Vocabulary

N_ITEMS = 600
DIMENSIONS = 16
NOW = 1_790_000_000_000
PRIOR = 0.05
SCALE = SimilarityScale(-1.0, 1.0, 4)


def item_ids(n_items: int = N_ITEMS) -> list[str]:
    return [f"i{number}" for number in range(n_items)]


def make_encoder(n_items: int = N_ITEMS, related_threshold: float = 0.5) -> Encoder:
    """Items around eight centres; the last ten have no vector; popularity falls along the ids."""
    rng = np.random.default_rng(7)
    ids = item_ids(n_items)
    centres = rng.normal(size=(8, DIMENSIONS))
    vectors = (centres[np.arange(n_items) % 8] + 0.4 * rng.normal(size=(n_items, DIMENSIONS))).astype(np.float32)
    catalogue = Catalogue.build(
        ids,
        {"category": [f"c{number % 8}" for number in range(n_items)]},
        vectors=vectors,
        popularity=np.linspace(1.0, 0.1, n_items).astype(np.float32),
    )
    has_vector = np.arange(n_items) < n_items - 10
    catalogue = Catalogue.build(
        ids,
        {"category": [f"c{number % 8}" for number in range(n_items)]},
        codes=np.asarray(catalogue.codes[1:]),
        has_vector=has_vector,
        popularity=np.linspace(1.0, 0.1, n_items).astype(np.float32),
    )
    schema = FeatureSchema(
        user=(Field("user", "user", "id"), Field("city", "user", "category")),
        context=(Field("surface", "context", "category"),),
        item=(Field("item", "item", "id"), Field("category", "item", "category")),
    )
    vocabularies = {
        "user.user": Vocabulary.from_values(["u1", "u2"]),
        "user.city": Vocabulary.from_values(["hz", "bj"]),
        "context.surface": Vocabulary.from_values(["home"]),
        "item.item": Vocabulary.from_values(ids),
        "item.category": Vocabulary.from_values([f"c{number}" for number in range(8)]),
    }
    return Encoder(schema, vocabularies, HistoryRules(related_threshold=related_threshold), SCALE, catalogue)


@dataclass(frozen=True)
class HandMade:
    """The model's numbers, and the same arithmetic in numpy: what ONNX Runtime must give."""

    table: np.ndarray

    @classmethod
    def for_encoder(cls, encoder: Encoder) -> "HandMade":
        rng = np.random.default_rng(11)
        return cls(rng.normal(size=(encoder.sizes.item[0], 1)).astype(np.float32))

    @classmethod
    def preranker(cls, encoder: Encoder) -> "HandMade":
        """Other numbers than the ranker's: what it leaves is not what the ranker would."""
        rng = np.random.default_rng(12)
        return cls(rng.normal(size=(encoder.sizes.item[0], 1)).astype(np.float32) * 3)

    def logits(self, encoder: Encoder, row: dict[str, object]) -> np.ndarray:
        inputs = encoder.encode(RequestBatch.from_rows([row]))
        used = np.float32(0.5 * float((inputs.history_age > 0).any()))
        return self.table[inputs.candidate_fields[:, 0], 0] + np.float32(2) * inputs.candidate_similarity + used


def request_graph(n_levels: int, with_intent: bool = True) -> bytes:
    """history_age -> state.used [1, 1] and intent [1, S]."""
    nodes = [
        helper.make_node("Greater", ["history_age", "zero"], ["is_there"]),
        helper.make_node("Cast", ["is_there"], ["there"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["there", "axis"], ["any"], keepdims=1),
        helper.make_node("Mul", ["any", "half"], ["state.used"]),
    ]
    outputs = [helper.make_tensor_value_info("state.used", TensorProto.FLOAT, [1, 1])]
    if with_intent:
        nodes += [
            helper.make_node("Mul", ["any", "tilt"], ["tilted"]),
            helper.make_node("Softmax", ["tilted"], ["intent"], axis=1),
        ]
        outputs.append(helper.make_tensor_value_info("intent", TensorProto.FLOAT, [1, n_levels]))
    tilt = np.zeros((1, n_levels), np.float32)
    tilt[0, -1] = 20.0
    constants = {"zero": np.array(0, np.int64), "axis": np.array([1]), "half": np.array(0.5, np.float32), "tilt": tilt}
    return _model(nodes, [("history_age", TensorProto.INT64, [1, "L"])], outputs, constants)


def candidate_graph(nan_for_item: int | None = None) -> bytes:
    """table[item] + 2 * similarity + state.used; optionally NaN for one encoded item id."""
    nodes = [
        helper.make_node("Gather", ["candidate_fields", "first"], ["items"], axis=1),
        helper.make_node("Gather", ["table.item", "items"], ["rows"], axis=0),
        helper.make_node("Squeeze", ["rows", "last"], ["own"]),
        helper.make_node("Mul", ["candidate_similarity", "two"], ["near"]),
        helper.make_node("Squeeze", ["state.used", "both"], ["used"]),
        helper.make_node("Add", ["own", "near"], ["sum"]),
        helper.make_node("Add", ["sum", "used"], ["plain"]),
    ]
    constants = {
        "first": np.array(0, np.int64), "last": np.array([1]), "both": np.array([0, 1]), "two": np.array(2, np.float32)
    }  # fmt: skip
    if nan_for_item is None:
        nodes.append(helper.make_node("Identity", ["plain"], ["logits"]))
    else:
        constants |= {"bad": np.array(nan_for_item, np.int64), "nan": np.array(np.nan, np.float32)}
        nodes += [
            helper.make_node("Equal", ["items", "bad"], ["is_bad"]),
            helper.make_node("Where", ["is_bad", "nan", "plain"], ["logits"]),
        ]
    inputs = [
        ("candidate_fields", TensorProto.INT64, ["N", 2]),
        ("candidate_similarity", TensorProto.FLOAT, ["N"]),
        ("state.used", TensorProto.FLOAT, [1, 1]),
        ("table.item", TensorProto.FLOAT, ["V", 1]),
    ]
    return _model(nodes, inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N"])], constants)


def row(
    candidates: list[str], trigger: str = "i0", user: str | None = "u1", behaviours: list[tuple[str, int]] | None = None
) -> dict[str, object]:
    """A request row at NOW; behaviours as (item, seconds ago)."""
    return {
        "request_id": "r",
        "requested_at": NOW,
        "user": {"user": user},
        "context": {},
        "trigger": trigger,
        "behaviours": [{"item": i, "at": NOW - ago * 1000, "type": "click"} for i, ago in behaviours or []],
        "candidates": candidates,
    }


def golden_lines(encoder: Encoder, model: HandMade) -> list[dict[str, object]]:
    """Requests with the logits of numpy, not of ONNX Runtime: the replay compares two arithmetics."""
    rows = [
        row(item_ids()[:300], behaviours=[("i8", 60), ("i3", 7200)]),
        row(["i5"], user=None),
        row(["nowhere", "i9"], trigger="nobody knows"),
    ]
    return [
        {"case": "hand", "request": one, "logits": model.logits(encoder, one).tolist(), "intent": None} for one in rows
    ]


def write_small_bundle(
    root: Path,
    version: str = "v1",
    candidates: bytes | None = None,
    request: bytes | None = None,
    golden: list[dict[str, object]] | None = None,
    with_index: bool = True,
    prerank: bool = False,
    prerank_candidates: bytes | None = None,
) -> Bundle:
    """Writes and promotes a bundle; parts may be replaced to make a bad one."""
    encoder = make_encoder()
    model = HandMade.for_encoder(encoder)

    def fill(folder: Path) -> None:
        (folder / "tables").mkdir()
        np.save(folder / "tables" / "table.item.npy", model.table)
        encoder.save(folder / "encoder")
        encoder.catalogue.save(folder / "catalogue")
        (folder / "request.onnx").write_bytes(request or request_graph(SCALE.n_levels))
        (folder / "candidates.onnx").write_bytes(candidates or candidate_graph())
        lines = golden_lines(encoder, model) if golden is None else golden
        (folder / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if with_index:
            faiss.write_index(_index(encoder.catalogue), str(folder / "catalogue" / "recall.faiss"))
        if prerank:
            _fill_prerank(folder / "prerank", encoder, prerank_candidates)

    manifest = {"fingerprint": encoder.fingerprint, "prior": PRIOR}
    bundle = write_bundle(root, "daian", version, manifest, fill)
    point_to(root, bundle)
    return bundle


def _fill_prerank(folder: Path, encoder: Encoder, candidates: bytes | None) -> None:
    """The optional part: the same two graphs over a table of its own, and golden requests of its own."""
    (folder / "tables").mkdir(parents=True)
    model = HandMade.preranker(encoder)
    np.save(folder / "tables" / "table.item.npy", model.table)
    (folder / "request.onnx").write_bytes(request_graph(SCALE.n_levels))
    (folder / "candidates.onnx").write_bytes(candidates or candidate_graph())
    lines = golden_lines(encoder, model)[1:]
    (folder / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _index(catalogue: Catalogue) -> faiss.Index:
    rows = np.flatnonzero(catalogue.norms > 0).astype(np.int64)
    units = catalogue.codes[rows].astype(np.float32) / catalogue.norms[rows, None]
    flat = faiss.IndexScalarQuantizer(
        catalogue.dimensions, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
    )
    stored = np.rint(units * (127.0 / np.abs(units).max()))
    flat.train(stored)
    index = faiss.IndexIDMap(flat)
    index.add_with_ids(stored, rows)
    return index


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[int | str]]],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info(*one) for one in inputs],
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())

"""A bundle that is not exactly what was exported is refused, by the name of the file, and never served.

Each protection has its saboteur: the same bundle with the protection off is accepted.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import pytest

import service.contract.bundle
import service.runtime
from service.contract.bundle import Bundle, read_bundle
from service.contract.errors import BundleError
from service.contract.manifest import with_digest
from service.runtime import open_index, open_scorer, self_check


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(bundle.path, tmp_path / bundle.version)


def opened(path: Path) -> int:
    """What the service does before it takes traffic: hashes, encoder, graphs, golden requests."""
    found = read_bundle(path)
    encoder = found.open_encoder()
    return self_check(found, encoder, open_scorer(found, chunk=256, ort_threads=1))


def flip_bit(path: Path) -> None:
    """One bit in the middle, where no format keeps a magic number."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def rehash(path: Path, **changes: Any) -> None:
    """Write the manifest as a careful attacker would: with the hashes of what lies there now, and `changes`."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(with_digest(manifest | changes)))


def test_the_untouched_copy_opens(copy: Path) -> None:
    assert opened(copy) >= 64


def test_every_flipped_file_is_named(copy: Path) -> None:
    names = [name for name in read_bundle(copy).files if (copy / name).stat().st_size]
    assert {"request.onnx", "candidates.onnx", "golden.jsonl", "catalogue/recall.faiss"} <= set(names)
    assert any(name.startswith("tables/") for name in names)
    assert any(name.startswith("encoder/") for name in names)
    for name in names:
        before = (copy / name).read_bytes()
        flip_bit(copy / name)
        with pytest.raises(BundleError, match=Path(name).name.replace(".", r"\.") + ".*SHA-256"):
            read_bundle(copy)
        (copy / name).write_bytes(before)
    assert opened(copy) >= 64


def test_with_the_hash_check_off_a_flipped_weight_loads(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = next(iter(sorted((copy / "tables").glob("*.npy"))))
    flip_bit(table)
    with pytest.raises(BundleError):
        read_bundle(copy)
    monkeypatch.setattr(service.contract.bundle, "compare", lambda *_: None)
    assert open_scorer(read_bundle(copy), chunk=256, ort_threads=1) is not None


@pytest.mark.parametrize("name", ["notes.txt", "tables/table.extra.npy", "encoder/extra.bin"])
def test_an_extra_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"stranger")
    with pytest.raises(BundleError, match="not in the manifest"):
        read_bundle(copy)


@pytest.mark.parametrize("name", ["request.onnx", "golden.jsonl", "manifest.json", "encoder/encoder.json"])
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=Path(name).name):
        opened(copy)


def test_another_fingerprint_is_refused(copy: Path) -> None:
    rehash(copy, fingerprint="0" * 64)
    with pytest.raises(BundleError, match="fingerprint"):
        opened(copy)


def test_another_contract_version_is_refused(copy: Path) -> None:
    rehash(copy, contract_version=99)
    with pytest.raises(BundleError, match="contract_version is 99"):
        opened(copy)


def test_weights_that_are_not_numbers_are_refused(copy: Path) -> None:
    poison(copy)
    with pytest.raises(BundleError, match=r"golden\.jsonl, line 1"):
        opened(copy)


def test_without_golden_requests_the_poisoned_model_would_open(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(copy)
    monkeypatch.setattr(service.runtime, "_replayed", lambda bundle, number, *_: recorded(bundle, number))
    assert opened(copy) >= 64


def poison(path: Path) -> None:
    """NaN in every row of the item table, with hashes that fit."""
    table = next(table for table in sorted((path / "tables").glob("*.npy")) if "items" in table.name)
    np.save(table, np.full_like(np.load(table), np.nan))
    rehash(path)


def recorded(found: Bundle, number: int) -> np.ndarray:
    """What line `number` of the golden requests says, in the place of what the model gives."""
    line = found.read("golden.jsonl").splitlines()[number - 1]
    return np.array(json.loads(line)["logits"], np.float32)


def test_slightly_other_weights_are_refused(copy: Path) -> None:
    """Hashes are right, numbers finite, only the scores are not those of PyTorch."""
    path = next(path for path in sorted((copy / "tables").glob("*.npy")) if "items" in path.name)
    np.save(path, np.load(path) * np.float32(1.01))
    rehash(copy)
    with pytest.raises(BundleError, match="logits differ by"):
        opened(copy)


def test_a_graph_with_another_input_is_refused(copy: Path) -> None:
    model = onnx.load(copy / "candidates.onnx")
    old = model.graph.input[0].name
    model.graph.input[0].name = "stranger"
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = "stranger"
    onnx.save(model, copy / "candidates.onnx")
    rehash(copy)
    with pytest.raises(BundleError, match="stranger"):
        opened(copy)


def test_c4_a_graph_whose_inputs_are_not_the_declared_ones_is_refused(copy: Path) -> None:
    graphs = json.loads((copy / "manifest.json").read_text())["graphs"]
    graphs["candidates"]["inputs"][0]["dtype"] = "float64"
    rehash(copy, graphs=graphs)
    with pytest.raises(BundleError, match=r"candidates\.onnx: inputs differ from the manifest's"):
        opened(copy)


def test_c4_with_the_comparison_off_it_would_open(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = json.loads((copy / "manifest.json").read_text())["graphs"]
    graphs["candidates"]["inputs"][0]["dtype"] = "float64"
    rehash(copy, graphs=graphs)
    monkeypatch.setattr(service.runtime, "check_signature", lambda *_: None)
    assert opened(copy) >= 64


def test_c6_an_operator_of_another_domain_is_refused_before_it_is_parsed(copy: Path) -> None:
    model = onnx.load(copy / "request.onnx")
    model.graph.node[0].domain = "com.stranger"
    onnx.save(model, copy / "request.onnx")
    rehash(copy)
    with pytest.raises(BundleError, match=r"request\.onnx uses the domain 'com\.stranger'"):
        opened(copy)


@pytest.mark.parametrize("row", [0, -1, 10_000])
def test_an_index_of_another_catalogue_is_refused(copy: Path, row: int) -> None:
    found = read_bundle(copy)
    index = faiss.read_index(str(copy / "catalogue" / "recall.faiss"))
    rows = faiss.vector_to_array(index.id_map)
    rows[0] = row
    faiss.copy_array_to_vector(rows, index.id_map)
    faiss.write_index(index, str(copy / "catalogue" / "recall.faiss"))
    rehash(copy)
    with pytest.raises(BundleError, match=r"recall\.faiss is not of this catalogue"):
        open_index(read_bundle(copy), found.open_encoder())


def test_a_link_is_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.npy"
    table = next(iter(sorted((copy / "tables").glob("*.npy"))))
    shutil.move(table, outside)
    table.symlink_to(outside)
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(copy)

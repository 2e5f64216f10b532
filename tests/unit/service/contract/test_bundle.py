"""Bundles: published whole or not at all, and nothing altered is opened."""

import json
from pathlib import Path

import pytest

from service.contract import bundle as bundle_module
from service.contract.bundle import Bundle, current_path, list_bundles, point_to, read_bundle, write_bundle
from service.contract.errors import BundleError
from tests.property.worlds import catalogue, encoder


def fill(folder: Path) -> None:
    (folder / "request.onnx").write_bytes(b"graph")
    encoder().save(folder / "encoder")
    catalogue().save(folder / "catalogue")


def published(root: Path, version: str = "v1") -> Bundle:
    return write_bundle(root, "daian", version, {"fingerprint": encoder().fingerprint}, fill)


def test_what_is_published_is_what_is_opened(tmp_path: Path) -> None:
    point_to(tmp_path, published(tmp_path))
    opened = read_bundle(current_path(tmp_path))
    assert (opened.name, opened.version, opened.read("request.onnx")) == ("daian", "v1", b"graph")
    assert opened.open_encoder().fingerprint == encoder().fingerprint
    assert list_bundles(tmp_path) == [opened.path]


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    published(tmp_path)
    with pytest.raises(BundleError, match="immutable"):
        published(tmp_path)


def test_a_failing_publisher_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "request.onnx").write_bytes(b"gr")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_bundle(tmp_path, "daian", "v1", {"fingerprint": "f"}, half)
    assert list((tmp_path / "daian").iterdir()) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["request.onnx", "catalogue/codes.npy", "encoder/encoder.json"])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    path = published(tmp_path).path
    flip(path / name)
    with pytest.raises(BundleError, match=f"{name}: SHA-256"):
        read_bundle(path)


def test_a_flipped_bit_passes_without_the_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur: it is the comparison that finds it."""
    path = published(tmp_path).path
    flip(path / "request.onnx")
    monkeypatch.setattr(bundle_module, "compare", lambda *_: None)
    assert read_bundle(path).read("request.onnx") != b"graph"


def test_extra_missing_and_linked_files_are_refused(tmp_path: Path) -> None:
    path = published(tmp_path).path
    (path / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.bin is not in the manifest"):
        read_bundle(path)
    (path / "extra.bin").unlink()
    (path / "request.onnx").rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"request\.onnx is missing"):
        read_bundle(path)
    (path / "request.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("contract_version", 99, "contract_version is 99, this version reads 1"),
        ("manifest_schema", 0, "manifest_schema"),
    ],
)
def test_other_versions_are_refused(tmp_path: Path, key: str, value: int, said: str) -> None:
    path = published(tmp_path).path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(BundleError, match=said):
        read_bundle(path)


def test_the_manifest_is_json_for_any_reader(tmp_path: Path) -> None:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    content = {"fingerprint": "f", "metrics": {"test": {"auc": float("nan"), "shares": [0.5, float("nan")]}}}
    bundle = write_bundle(tmp_path, "daian", "v1", content, fill)
    manifest = json.loads((bundle.path / "manifest.json").read_text(), parse_constant=refuse)
    assert manifest["metrics"] == {"test": {"auc": None, "shares": [0.5, None]}} == bundle.manifest["metrics"]
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(tmp_path, "daian", "v2", {"fingerprint": "f", "prior": float("inf")}, fill)
    assert [path.name for path in (tmp_path / "daian").iterdir()] == ["v1"]


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "daian", "v1", {"fingerprint": "0" * 64}, fill)
    with pytest.raises(BundleError, match="the graphs were made for 000000000000"):
        bundle.open_encoder()


@pytest.mark.parametrize(
    "pointer", [b"", b"[]", b'{"name": "../..", "version": "x"}', b"{" * 5000, b'{"name": "daian", "version": "v9"}']
)
def test_a_bad_pointer_is_named(tmp_path: Path, pointer: bytes) -> None:
    published(tmp_path)
    (tmp_path / "current").write_bytes(pointer)
    with pytest.raises(BundleError, match=str(tmp_path)):
        current_path(tmp_path)


def test_a_pointer_to_another_manifest_is_refused(tmp_path: Path) -> None:
    bundle = published(tmp_path)
    point_to(tmp_path, bundle)
    manifest = bundle.path / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(BundleError, match="SHA-256"):
        current_path(tmp_path)

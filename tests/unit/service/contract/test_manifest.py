"""What a manifest may say: every field that is used has bounds, a refusal names file and field, an edit is found."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract import bundle as bundle_module
from service.contract import manifest as module
from service.contract.bundle import read_bundle, write_bundle
from service.contract.errors import BundleError
from service.contract.manifest import SELF_DIGEST, check_manifest, with_digest

FILE = Path("/bundles/daian/v1/manifest.json")
TENSOR = {"name": "x", "dtype": "float32", "shape": [1, "L"]}
GRAPHS = {"request": {"inputs": [TENSOR], "outputs": []}, "candidates": {}, "opset": 18}
GOOD: dict[str, Any] = {
    "name": "daian",
    "version": "20261120T030000Z-9f3c2a",
    "prior": 0.05,
    "graphs": GRAPHS,
    "index": {"recall": 0.99, "low_recall_allowed": False, "type": "flat"},
    "data": {"name": "shop", "windows": {"train": [1_700_000_000_000, 1_700_000_000_001]}},
    "prerank": {"model": {"name": "tarq"}, "graphs": GRAPHS},
    "metrics": {"test": {"auc": None, "n": 7}},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with another value at a.b.c."""
    found: dict[str, Any] = json.loads(json.dumps(GOOD))
    *folders, last = path.split(".")
    place = found
    for one in folders:
        place = place[one]
    place[last] = value
    return found


def test_a_manifest_of_every_kind_that_is_written_passes() -> None:
    check_manifest(FILE, GOOD)
    check_manifest(FILE, with_digest(GOOD))
    check_manifest(FILE, {"name": "daian", "version": "v1"})  # of the contract's tests: whoever serves asks for more
    for gone in ("index", "graphs", "data", "prerank"):
        check_manifest(FILE, changed(gone, None))


WRONG: dict[str, list[object]] = {
    "prior": [0, 1, -0.1, 1.1, 7, True, None, "0.05", [0.05], float("nan"), float("inf"), 10**400],
    "name": [None, 7, "", "../x", "a/b", "ö", "a\r\nb: c", "x" * 129],
    "version": [None, 7, "", "../x"],
    "index": [7, []],
    "index.recall": ["0.99", -0.1, 1.01, True, None, float("nan")],
    "index.low_recall_allowed": ["no", 1, None],
    "prerank": [7],
    "prerank.model": [None, 7],
    "data": [7],
    "data.windows": [[1, 2], None],
    "data.windows.train": [
        None, [], [1], [1, 2, 3], [2, 1], [1, "2"], [1.0, 2.0], [True, 2], [-1, 2], [0, 10**15], "12"
    ],
    "metrics.test.n": [float("nan"), float("-inf"), 2**63, -(2**63), "\ud800"],
}  # fmt: skip
for part in ("", "prerank."):
    WRONG |= {
        f"{part}graphs": [7, []],
        f"{part}graphs.request": [7, []],
        f"{part}graphs.candidates": ["x"],
        f"{part}graphs.request.inputs": [
            5, [5], [{"name": "x"}], [{"name": 5, "shape": []}], [{"name": "x", "shape": "L"}]
        ],
        f"{part}graphs.request.outputs": [{}, None],
    }  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_what_cannot_be_is_refused_by_file_and_field(field: str, value: object) -> None:
    with pytest.raises(BundleError) as refused:
        check_manifest(FILE, changed(field, value))
    assert str(refused.value).startswith(f"{FILE}: {field}")
    assert "need" in str(refused.value)
    assert len(str(refused.value)) < 400
    str(refused.value).encode()  # it goes to a log


def test_saboteur_without_the_bounds_a_nonsense_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path, "daian", "v1", {"fingerprint": "f", "prior": 0.05}, fill)
    file = bundle.path / "manifest.json"
    file.write_text(json.dumps(with_digest({**bundle.manifest, "prior": 7})))
    with pytest.raises(BundleError, match=r"manifest\.json: prior is 7"):
        read_bundle(bundle.path)
    monkeypatch.setattr(bundle_module, "check_manifest", lambda *_: None)
    assert read_bundle(bundle.path).manifest["prior"] == 7


def test_a_manifest_without_a_prior_is_no_manifest_to_serve(tmp_path: Path) -> None:
    assert write_bundle(tmp_path, "daian", "v1", {"fingerprint": "f", "prior": 0.05}, fill).read_prior() == 0.05
    bare = write_bundle(tmp_path, "daian", "v2", {"fingerprint": "f"}, fill)
    with pytest.raises(BundleError, match=r"v2/manifest\.json: prior is None"):
        bare.read_prior()


def test_what_is_nonsense_is_not_even_published(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"daian/v1/manifest\.json: prior is 0, need a click rate above 0"):
        write_bundle(tmp_path, "daian", "v1", {"fingerprint": "f", "prior": 0}, fill)
    assert list((tmp_path / "daian").iterdir()) == []


def fill(folder: Path) -> None:
    (folder / "request.onnx").write_bytes(b"graph")


def edited(tmp_path: Path) -> Path:
    """A bundle whose prior somebody has changed in an editor, to another that could be."""
    bundle = write_bundle(tmp_path, "daian", "v1", {"fingerprint": "f", "prior": 0.05}, fill)
    file = bundle.path / "manifest.json"
    text = file.read_text()
    assert text.count('"prior": 0.05') == 1
    file.write_text(text.replace('"prior": 0.05', '"prior": 0.5'))
    return bundle.path


def test_an_edit_by_hand_is_found(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: self_sha256 is not that of the rest"):
        read_bundle(edited(tmp_path))


def test_saboteur_without_the_digest_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = edited(tmp_path)
    recorded = json.loads((path / "manifest.json").read_text())[SELF_DIGEST]
    monkeypatch.setattr(module, "_digest", lambda _: recorded)
    assert read_bundle(path).read_prior() == 0.5


def test_the_digest_is_no_signature_an_edit_that_is_meant_passes(tmp_path: Path) -> None:
    """What docs/bundle.md says of it; with a signature asked for neither would be opened."""
    path = edited(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(with_digest(manifest)))
    assert read_bundle(path).read_prior() == 0.5
    del manifest[SELF_DIGEST]  # as bundles of older exporters
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert read_bundle(path).read_prior() == 0.5


def test_the_digest_does_not_mind_how_the_manifest_is_laid_out(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "daian", "v1", {"fingerprint": "f", "prior": 0.05, "metrics": {"a": 1e-7}}, fill)
    (bundle.path / "manifest.json").write_text(json.dumps(bundle.manifest, sort_keys=True, indent=7))
    assert read_bundle(bundle.path).manifest == bundle.manifest


def test_levels_without_an_end_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(BundleError, match=r"metrics\.test\.auc.* need at most 32 levels"):
        check_manifest(FILE, changed("metrics.test.auc", deep))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(field=st.sampled_from([*WRONG, SELF_DIGEST]), value=JSON)
def test_whatever_stands_in_a_field_it_passes_or_is_refused_in_words(field: str, value: object) -> None:
    said = None
    try:
        check_manifest(FILE, changed(field, value))
    except BundleError as error:
        said = str(error)
    if said is not None:
        assert said.startswith(f"{FILE}: ")
        said.encode()

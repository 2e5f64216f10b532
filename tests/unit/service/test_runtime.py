"""Opening a bundle: nothing that fails its golden requests ever answers, and the old one stays."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import runtime as module
from service.contract.bundle import Bundle, point_to, read_bundle
from service.contract.errors import BundleError
from service.contract.manifest import with_digest
from service.contract.pointer import bundle_to_open
from service.errors import NoModel
from service.runtime import Runtime, RuntimeSwitch, Shared
from tests.small_bundle import HandMade, candidate_graph, golden_lines, make_encoder, write_small_bundle

Open = Callable[[Path], Runtime]


def wrong_golden(by: float) -> list[dict[str, object]]:
    encoder = make_encoder()
    lines = golden_lines(encoder, HandMade.for_encoder(encoder))
    logits = lines[0]["logits"]
    assert isinstance(logits, list)
    lines[0]["logits"] = [logits[0] + by, *logits[1:]]
    return lines


def test_a_good_bundle_opens_and_has_warmed_admission(runtime: Runtime, shared: Shared) -> None:
    assert runtime.label == "daian@v1"
    assert shared.admission._service_s > 0


def test_tables_are_mapped_and_not_loaded(runtime: Runtime) -> None:
    table = module._mapped(runtime.bundle, "tables/table.item.npy")
    assert isinstance(table.base, np.memmap)


def test_c5_a_bundle_whose_scores_differ_from_the_recorded_is_refused(open_bundle: Open, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path, golden=wrong_golden(by=1e-3))
    with pytest.raises(BundleError, match=r"golden\.jsonl, line 1 \(hand\): logits differ by 0\.001"):
        open_bundle(bundle.path)


def test_c5_without_the_replay_it_would_be_served(
    open_bundle: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_small_bundle(tmp_path, golden=wrong_golden(by=1e-3))
    monkeypatch.setattr(module, "self_check", lambda *_: 1)
    assert open_bundle(bundle.path).label == "daian@v1"


def test_c5_not_a_number_is_refused(open_bundle: Open, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path, candidates=candidate_graph(nan_for_item=3))
    with pytest.raises(BundleError, match="differ by nan"):
        open_bundle(bundle.path)


def test_a_bundle_without_golden_requests_is_refused(open_bundle: Open, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no golden request"):
        open_bundle(write_small_bundle(tmp_path, golden=[]).path)


@pytest.mark.parametrize("name", ["candidates.onnx", "tables/table.item.npy", "catalogue/recall.faiss", "golden.jsonl"])
def test_c2_one_flipped_bit_is_refused_by_name(open_bundle: Open, tmp_path: Path, name: str) -> None:
    bundle = write_small_bundle(tmp_path)
    content = bytearray((bundle.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle.path / name).write_bytes(content)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        open_bundle(bundle.path)


def test_an_index_is_optional(open_bundle: Open, tmp_path: Path) -> None:
    open_bundle(write_small_bundle(tmp_path, with_index=False).path)


def saying(bundle: Bundle, index: object) -> Path:
    """The bundle with another word about its index in the manifest."""
    file = bundle.path / "manifest.json"
    file.write_text(json.dumps(with_digest({**json.loads(file.read_text()), "index": index})))
    return bundle.path


@pytest.mark.parametrize("recall", [0.9, 0])
def test_an_index_that_finds_too_little_is_refused(open_bundle: Open, tmp_path: Path, recall: float) -> None:
    with pytest.raises(BundleError, match=r"recall\.faiss finds .* of the nearest items, need 0\.95"):
        open_bundle(saying(write_small_bundle(tmp_path), {"recall": recall, "low_recall_allowed": False}))


@pytest.mark.parametrize("index", [{"recall": 0.95}, {"recall": 0.5, "low_recall_allowed": True}, {}, None])
def test_one_that_finds_enough_or_was_wanted_so_opens(open_bundle: Open, tmp_path: Path, index: object) -> None:
    open_bundle(saying(write_small_bundle(tmp_path), index))


def test_a_bad_line_is_named(open_bundle: Open, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path, golden=[{"case": "no request"}])
    with pytest.raises(BundleError, match=r"line 1 cannot be read"):
        open_bundle(bundle.path)


def test_the_switch_answers_nothing_before_and_the_newest_after(runtime: Runtime, shared: Shared) -> None:
    switch = RuntimeSwitch(shared.metrics)
    with pytest.raises(NoModel):
        _ = switch.live
    switch.replace(runtime)
    assert switch.live is runtime


def test_the_bundle_before_is_not_let_go_in_the_middle_of_a_swap(runtime: Runtime, shared: Shared) -> None:
    """`go_back` looks whether there is one, and then takes it."""
    switch = RuntimeSwitch(shared.metrics)
    switch.replace(runtime)
    switch.replace(replace(runtime))
    other = threading.Thread(target=switch.forget_previous)
    with switch._lock:
        other.start()
        other.join(0.1)
        assert switch.previous is runtime
    other.join(5)
    assert switch.previous is None


def test_the_pointer_or_a_bundle_itself_may_be_named(tmp_path: Path) -> None:
    first = write_small_bundle(tmp_path, version="v1")
    second = write_small_bundle(tmp_path, version="v2")
    assert bundle_to_open(tmp_path) == second.path
    assert bundle_to_open(first.path) == first.path
    point_to(tmp_path, read_bundle(first.path))
    assert bundle_to_open(tmp_path) == first.path

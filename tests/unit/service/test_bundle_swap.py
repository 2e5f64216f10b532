"""Swapping bundles in a running process: what is good takes over, what is not changes nothing."""

import asyncio
import gc
import hashlib
import json
import logging
import shutil
import sys
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from service import bundle_swap as module
from service.bundle_swap import BundleSwap
from service.bundle_trial import Trial, TrialPlan
from service.contract.bundle import point_to, read_bundle
from service.contract.errors import BundleError
from service.contract.manifest import with_digest
from service.errors import BundleRefused, BundleStoreReadOnly, NotFound, ServiceError, VersionConflict
from service.runtime import RuntimeSwitch, Shared, check_bundle
from service.settings import Settings
from tests.small_bundle import candidate_graph, write_small_bundle


class Tried(Trial):
    """Counts the trials and lets everything pass: for tests of what follows a trial."""

    def __init__(self) -> None:
        super().__init__(TrialPlan(256, 1, 60))
        self.paths: list[Path] = []

    def run(self, path: Path) -> None:
        self.paths.append(path)


class InProcess(Tried):
    """Tries without a child: quicker, where the child itself is not what is tested."""

    def run(self, path: Path) -> None:
        super().run(path)
        check_bundle(read_bundle(path), 256, 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """v1 is current, v2 lies beside it."""
    first = write_small_bundle(tmp_path, version="v1")
    write_small_bundle(tmp_path, version="v2")
    point_to(tmp_path, first)
    return tmp_path


@pytest.fixture
def make(root: Path, shared: Shared) -> Iterator[Callable[..., BundleSwap]]:
    made: list[BundleSwap] = []

    def one(trial: Trial | None = None, **settings: object) -> BundleSwap:
        given = Settings(**{"bundle_root": root, "bundle_poll_s": 0.05, **settings})
        made.append(BundleSwap(given, shared, RuntimeSwitch(shared.metrics), trial))
        made[-1].open_first()
        return made[-1]

    yield one
    for swap in made:
        swap.close()


def version(swap: BundleSwap) -> str:
    return swap._switch.live.bundle.version


@asynccontextmanager
async def following(swap: BundleSwap) -> AsyncIterator[None]:
    task = asyncio.create_task(swap.follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.02)


def test_a_stop_that_meets_a_wake_is_not_lost(make: Callable[..., BundleSwap]) -> None:
    swap = make(bundle_poll_s=60)

    async def main() -> None:
        task = asyncio.create_task(swap.follow())
        await asyncio.sleep(0.05)  # it waits
        swap.wake()
        await asyncio.sleep(0)  # the inner wait is over, who waits for it has not run since
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()

    asyncio.run(main())


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    asyncio.run(main())


# --- by the pointer ---------------------------------------------------------------------------------------------------


def test_a_moved_pointer_is_followed_after_a_trial_in_a_child(make: Callable[..., BundleSwap], root: Path) -> None:
    swap = make()

    async def work() -> None:
        async with following(swap):
            point_to(root, read_bundle(root / "daian/v2"))
            await until(lambda: version(swap) == "v2")

    run(work)
    assert swap._switch.previous is not None
    assert swap._switch.previous.bundle.version == "v1"


def test_without_a_poll_the_pointer_is_read_when_woken(make: Callable[..., BundleSwap], root: Path) -> None:
    swap = make(Tried(), bundle_poll_s=0)

    async def work() -> None:
        async with following(swap):
            point_to(root, read_bundle(root / "daian/v2"))
            await asyncio.sleep(0.3)
            assert version(swap) == "v1"
            swap.wake()
            await until(lambda: version(swap) == "v2")

    run(work)


def test_going_back_takes_the_open_bundle_without_a_trial(make: Callable[..., BundleSwap], root: Path) -> None:
    trial = Tried()
    swap = make(trial)
    old = swap._switch.live

    async def work() -> None:
        await swap.promote("v2")
        async with following(swap):
            point_to(root, read_bundle(root / "daian/v1"))
            await until(lambda: version(swap) == "v1")

    run(work)
    assert trial.paths == [root / "daian/v2"]
    assert swap._switch.live is old


def test_with_one_bundle_kept_going_back_opens_it_again(make: Callable[..., BundleSwap], root: Path) -> None:
    trial = Tried()
    swap = make(trial, bundle_keep_loaded=1)

    async def work() -> None:
        await swap.promote("v2")
        assert swap._switch.previous is None
        await swap.rollback()

    run(work)
    assert version(swap) == "v1"
    assert trial.paths == [root / "daian/v2", root / "daian/v1"]


def test_a_service_of_one_bundle_follows_nothing(make: Callable[..., BundleSwap], root: Path) -> None:
    swap = make(Tried(), bundle_root=root / "daian/v1")

    async def work() -> None:
        async with following(swap):
            swap.wake()
            await asyncio.sleep(0.3)
        with pytest.raises(BundleStoreReadOnly):
            await swap.promote("v2")

    run(work)
    assert version(swap) == "v1"


# --- what is refused --------------------------------------------------------------------------------------------------


def rehash(path: Path, **changes: object) -> None:
    """The manifest as a careful attacker would write it."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(with_digest(manifest | changes)))


def truncated(path: Path) -> None:
    graph = path / "candidates.onnx"
    graph.write_bytes(graph.read_bytes()[:-40])


def mutated(path: Path) -> None:
    table = path / "tables/table.item.npy"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)


def mutated_with_new_hashes(path: Path) -> None:
    table = path / "tables/table.item.npy"
    np.save(table, np.load(table) * np.float32(1.01))
    rehash(path)


def not_a_number(path: Path) -> None:
    (path / "candidates.onnx").write_bytes(candidate_graph(nan_for_item=3))
    rehash(path)


def older_contract(path: Path) -> None:
    rehash(path, contract_version=0)


def other_schema(path: Path) -> None:
    rehash(path, fingerprint="0" * 64)


def other_version(path: Path) -> None:
    rehash(path, version="v1")


def missing(path: Path) -> None:
    (path / "golden.jsonl").unlink()


def not_an_encoder(path: Path) -> None:
    (path / "encoder/encoder.json").write_text("{}")
    rehash(path)


BAD = {
    truncated: r"candidates\.onnx: SHA-256",
    mutated: r"table\.item\.npy: SHA-256",
    mutated_with_new_hashes: r"golden\.jsonl, line 1 .*logits differ by",
    not_a_number: r"golden\.jsonl, line 1 .*differ by nan",
    older_contract: "contract_version is 0",
    other_schema: "fingerprint is",
    other_version: r"manifest\.json is that of daian@v1: copy",
    missing: r"golden\.jsonl is missing",
    not_an_encoder: "v2",
}


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.fields["reason"] for record in caplog.records if record.getMessage() == "bundle refused"]  # type: ignore[attr-defined]


def repoint(root: Path) -> None:
    """The pointer as if v2, as it lies there, had been promoted."""
    digest = hashlib.sha256((root / "daian/v2/manifest.json").read_bytes()).hexdigest()
    (root / "current").write_text(json.dumps({"name": "daian", "version": "v2", "manifest_sha256": digest}))


@pytest.mark.parametrize("spoil", BAD, ids=lambda one: one.__name__)
def test_c1_c2_c3_c5_a_bad_bundle_is_refused_by_file_and_reason_and_the_old_one_answers(
    make: Callable[..., BundleSwap],
    root: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    swap = make(None if spoil in (not_a_number, not_an_encoder) else InProcess())
    spoil(root / "daian/v2")

    async def work() -> None:
        with pytest.raises(BundleRefused, match=BAD[spoil]):
            await swap.promote("v2")

    run(work)
    assert version(swap) == "v1"
    assert json.loads((root / "current").read_text())["version"] == "v1"
    assert len(refusals(caplog)) == 1
    assert str(root / "daian/v2") in refusals(caplog)[0]


def test_c5_without_trial_and_replay_not_a_number_would_answer(
    make: Callable[..., BundleSwap], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = make(Tried())
    not_a_number(root / "daian/v2")
    monkeypatch.setattr("service.runtime.self_check", lambda *_, **__: 1)
    run(lambda: _promoted(swap, "v2"))
    assert version(swap) == "v2"


async def _promoted(swap: BundleSwap, wanted: str) -> None:
    await swap.promote(wanted)


def test_c1_what_was_refused_is_told_once_and_taken_when_its_copy_is_whole(
    make: Callable[..., BundleSwap], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swap = make(InProcess())
    whole = (root / "daian/v2/candidates.onnx").read_bytes()
    truncated(root / "daian/v2")
    repoint(root)

    async def work() -> None:
        async with following(swap):
            await until(lambda: bool(refusals(caplog)))
            await asyncio.sleep(0.5)
            assert len(refusals(caplog)) == 1
            assert version(swap) == "v1"
            (root / "daian/v2/candidates.onnx").write_bytes(whole)
            await until(lambda: version(swap) == "v2")

    run(work)


def test_a_pointer_that_cannot_be_read_changes_nothing(
    make: Callable[..., BundleSwap], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swap = make(Tried())

    async def work() -> None:
        async with following(swap):
            (root / "current").write_text("{")
            await until(lambda: bool(refusals(caplog)))
            repoint(root)
            await until(lambda: version(swap) == "v2")

    run(work)
    assert "current is not JSON" in refusals(caplog)[0]


def test_an_error_that_nobody_foresaw_changes_nothing_and_ends_nothing(
    make: Callable[..., BundleSwap], root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = make(Tried())

    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    async def work() -> None:
        async with following(swap):
            with monkeypatch.context() as patched:
                patched.setattr(module, "open_runtime", fail)
                repoint(root)
                await until(lambda: bool(refusals(caplog)))
            assert version(swap) == "v1"
            swap.wake()
            await until(lambda: version(swap) == "v2")

    run(work)


def test_a_store_that_keeps_too_little_for_the_new_bundle_refuses_it(
    make: Callable[..., BundleSwap], monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = make(Tried())

    def want_more(*_: object) -> None:
        raise BundleError("set DAIAN_BEHAVIOURS_KEEP to 99")

    monkeypatch.setattr(module, "check_kept", want_more)

    async def work() -> None:
        with pytest.raises(BundleRefused, match="KEEP to 99"):
            await swap.promote("v2")

    run(work)


# --- by the admin calls -----------------------------------------------------------------------------------------------


def test_promote_and_rollback_move_the_pointer_too(make: Callable[..., BundleSwap], root: Path) -> None:
    swap, told = make(Tried()), []
    swap.tell_others = lambda: told.append(1)

    async def work() -> None:
        assert (await swap.promote("v2", if_live="v1")).bundle.version == "v2"
        assert json.loads((root / "current").read_text())["version"] == "v2"
        assert (await swap.rollback(if_live="v2")).bundle.version == "v1"
        assert json.loads((root / "current").read_text())["version"] == "v1"

    run(work)
    assert len(told) == 2


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda swap: swap.promote("v3"), NotFound),
        (lambda swap: swap.promote("../v2"), NotFound),
        (lambda swap: swap.promote("v2", if_live="v9"), VersionConflict),
        (lambda swap: swap.rollback(), NotFound),
        (lambda swap: swap.rollback(if_live="v9"), VersionConflict),
    ],
)
def test_what_cannot_be_promoted(
    make: Callable[..., BundleSwap],
    call: Callable[[BundleSwap], Awaitable[object]],
    error: type[ServiceError],
) -> None:
    swap = make(Tried())

    async def work() -> None:
        with pytest.raises(error):
            await call(swap)

    run(work)
    assert version(swap) == "v1"


def test_a_pointer_that_cannot_be_moved_changes_nothing(
    make: Callable[..., BundleSwap], monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = make(Tried())

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "point_to", read_only)

    async def work() -> None:
        with pytest.raises(BundleStoreReadOnly, match="Read-only"):
            await swap.promote("v2")

    run(work)
    assert version(swap) == "v1"


def test_rollback_of_a_fresh_process_goes_to_the_version_before_by_name(
    make: Callable[..., BundleSwap], root: Path
) -> None:
    point_to(root, read_bundle(root / "daian/v2"))
    swap = make(Tried())

    async def work() -> None:
        await swap.rollback()

    run(work)
    assert version(swap) == "v1"


# --- memory -----------------------------------------------------------------------------------------------------------


def test_c7_a_bundle_two_swaps_ago_is_gone_without_a_collection(make: Callable[..., BundleSwap], root: Path) -> None:
    shutil.copytree(root / "daian/v1", root / "daian/v3")
    rehash(root / "daian/v3", version="v3")
    swap = make(Tried())
    first = weakref.ref(swap._switch.live.scorer)

    async def work() -> None:
        await swap.promote("v2")
        assert first() is not None
        await swap.promote("v3")

    gc.disable()
    try:
        run(work)
        assert first() is None
    finally:
        gc.enable()


def test_c7_only_the_live_bundle_has_a_series(make: Callable[..., BundleSwap], shared: Shared) -> None:
    swap = make(Tried())
    run(lambda: _promoted(swap, "v2"))
    text = shared.metrics.text().decode()
    assert 'daian_bundle_info{name="daian",variant="live",version="v2"} 1.0' in text
    assert 'version="v1"' not in text


def test_c9_the_bundle_before_makes_room_for_a_third(
    make: Callable[..., BundleSwap], monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = make(Tried())
    run(lambda: _promoted(swap, "v2"))

    def no_room(_: Path) -> None:
        raise BundleError("no room")

    monkeypatch.setattr(module, "check_room", no_room)
    swap._make_room(Path("v3"))
    assert swap._switch.previous is None
    assert version(swap) == "v2"


def test_closing_ends_a_trial_and_tells_no_refusal(
    make: Callable[..., BundleSwap], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swap = make(Trial(TrialPlan(256, 1, 60), (sys.executable, "-c", "import time; time.sleep(60)")))
    repoint(root)

    async def work() -> None:
        async with following(swap):
            await until(lambda: swap._trial._child is not None)
            swap.close()
            await until(lambda: swap._trial._child is None)
            await asyncio.sleep(0.2)

    started_s = time.monotonic()
    with caplog.at_level(logging.ERROR):
        run(work)
    assert time.monotonic() - started_s < 50  # the child would take longer
    assert refusals(caplog) == []


def test_a_sound_bundle_that_does_not_fit_here_is_counted_as_refused(
    make: Callable[..., BundleSwap], shared: Shared
) -> None:
    with pytest.raises(BundleError, match="history rules"):
        make(behaviours_keep=1).open_first()
    text = shared.metrics.text().decode()
    assert 'daian_bundle_loads_total{outcome="refused"} 1.0' in text
    assert 'outcome="loaded"} 1.0' not in text

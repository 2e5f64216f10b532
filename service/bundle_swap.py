"""BundleSwap: keeps the bundle that answers in line with the pointer `current`, one swap at a time.

Made by `app.py`, which lets `follow` run and wakes it on SIGHUP; the admin endpoints call `promote` and `rollback`. A
new bundle is tried in a child process, opened beside the old one in a thread of its own, and only then takes its place.
Whatever goes wrong is logged with file and reason, and changes nothing: the old bundle serves on. What was refused is
not looked at again before it, or the pointer, has changed. A bundle half of whose scores are no numbers, answer after
answer, is left for the one before (`saw`, called by the routes), and not opened again before the pointer has moved.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.bundle_signature import check_folder, signed_check
from service.bundle_trial import Trial, TrialPlan, check_room
from service.contract.bundle import MANIFEST, Bundle, list_bundles, list_files, point_to
from service.contract.encoder import Encoder
from service.contract.errors import BundleError, DaianError
from service.contract.pointer import bundle_to_open, is_version, read_pointer
from service.contract.rules import HistoryRules
from service.errors import BundleRefused, BundleStoreReadOnly, NotFound, VersionConflict
from service.prerank import PrerankPlan
from service.ranker import Ranking
from service.retriever import prepare_worker
from service.runtime import Runtime, RuntimeSwitch, Shared, open_runtime
from service.settings import Settings, SettingsError, variable
from service.soundness import Soundness

MOST_FINITE_OF_FAILED = 0.5  # an answer with a larger share of finite scores is none that failed
Result = TypeVar("Result")
_log = logging.getLogger("daian.bundle")


@dataclass(frozen=True)
class _Target:
    """A bundle that somebody wants live: where it is, and the hash of its manifest."""

    path: Path
    digest: str

    def is_open_in(self, runtime: Runtime | None) -> bool:
        return runtime is not None and (runtime.bundle.path, runtime.bundle.digest) == (self.path, self.digest)


_Seen = tuple[_Target, tuple[object, ...]]  # what the pointer named, and the pointer's file


@dataclass(frozen=True)
class Left:
    """A bundle that was live and failed, and what the pointer was while it did; `loaded_at` in epoch seconds."""

    version: str
    loaded_at: float
    seen: _Seen | None


class BundleSwap:
    """Opens bundles behind one switch."""

    def __init__(self, settings: Settings, shared: Shared, switch: RuntimeSwitch, trial: Trial | None = None) -> None:
        plan = TrialPlan(settings.chunk, settings.ort_threads, settings.bundle_trial_s)
        self._settings = settings
        self._shared = shared
        self._switch = switch
        self._trial = trial or Trial(plan)
        self._check_signed = signed_check(settings)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daian-swap", initializer=prepare_worker)
        self._turn = asyncio.Lock()
        self._change = threading.RLock()  # what is live, seen, left and told of it changes together
        self._woken = asyncio.Event()
        self._refused: tuple[object, ...] | None = None
        self._seen: _Seen | None = None  # when pointer and live bundle were last found in line
        self._closed = False
        self.left: Left | None = None  # while the pointer still names it
        self.tell_others: Callable[[], None] = lambda: None  # other workers of this service, when the pointer has moved

    # --- from the event loop ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """`open_first` in the thread."""
        await self._run(self.open_first)

    async def follow(self) -> None:
        """Looks at the pointer every `DAIAN_BUNDLE_POLL_S` and when woken, until cancelled."""
        while True:
            was_woken = await self._next_look()
            async with self._turn:
                with contextlib.suppress(BundleError):  # already told
                    await self._run(partial(self._catch_up, was_woken))

    def wake(self) -> None:
        """Looks at the pointer now, and again at what was refused. For SIGHUP."""
        self._woken.set()

    async def promote(self, version: str, if_live: str | None = None) -> Runtime:
        """Makes a version of the folder live and current. Nothing changes unless all of it succeeds.

        Raises NotFound, VersionConflict when another version than `if_live` is live, BundleRefused with file and
        reason, BundleStoreReadOnly when the pointer cannot be moved.
        """
        async with self._turn:
            self._expect(if_live)
            runtime = await self._run(lambda: self._promote(self._named(version)))
        self.tell_others()
        return runtime

    async def rollback(self, if_live: str | None = None) -> Runtime:
        """As `promote`, to the bundle that was live before; else to the version before by name. Raises NotFound too."""
        async with self._turn:
            self._expect(if_live)
            runtime = await self._run(lambda: self._promote(self._before()))
        self.tell_others()
        return runtime

    def saw(self, runtime: Runtime, ranking: Ranking) -> None:
        """Takes note of one answer. Goes back after `DAIAN_BUNDLE_FAILURES` in a row that failed.

        One fails when at least half of the scores that the network gave are not finite. Where it gave none (no time, no
        candidates, a graph that failed), the answer counts as neither. Never raises: the answer is there already.
        """
        try:
            self._count(runtime, ranking.finite_share)
        except Exception:  # noqa: BLE001  (a full disk under the gauges, or our fault: the caller has no part in it)
            _log.exception("an answer could not be counted for its bundle")

    def _count(self, runtime: Runtime, finite_share: float | None) -> None:
        soundness = runtime.soundness
        if finite_share is None:
            return
        if finite_share <= MOST_FINITE_OF_FAILED:
            soundness.n_failed += 1
            if soundness.n_failed == self._settings.bundle_failures:
                self._give_up(runtime)
            return
        if soundness.n_failed:
            self._recover(runtime)
        soundness.has_scored = True

    def _give_up(self, failed: Runtime) -> None:
        """One assignment, at once: a trial that is under way in the thread goes on, and what it opens comes after."""
        fields = {"failed": failed.label, "n_answers": failed.soundness.n_failed}
        with self._change:
            if failed is not self._switch.live:
                return
            went_back = self._go_back(failed)
            self._shared.metrics.bundle_failed.labels("went_back" if went_back else "stayed").set(1)
        if not went_back:
            _log.error("bundle fails and none before has proved itself: it stays", extra={"fields": fields})
            return
        fields["model"] = self._switch.live.label
        _log.error("bundle failed, the one before answers", extra={"fields": fields})
        with contextlib.suppress(RuntimeError):  # closed: nobody needs the memory
            self._thread.submit(give_memory_back)

    def _go_back(self, failed: Runtime) -> bool:
        """False, and nothing done, without a bundle before that has proved itself."""
        before, was_left = self._switch.previous, self.left
        if before is None or not before.soundness.is_proved(failed.soundness.n_failed):
            return False
        self.left = Left(failed.bundle.version, failed.loaded_at, self._seen)  # first: the thread may look now
        if self._switch.go_back(failed):
            return True
        self.left = was_left  # its memory was wanted meanwhile
        return False

    def _recover(self, runtime: Runtime) -> None:
        n_failed, runtime.soundness.n_failed = runtime.soundness.n_failed, 0
        if not 0 < self._settings.bundle_failures <= n_failed:
            return
        with self._change:
            if runtime is not self._switch.live:
                return
            self._shared.metrics.bundle_failed.labels("stayed").set(0)
        _log.warning("bundle gives numbers again", extra={"fields": {"model": runtime.label}})

    def close(self) -> None:
        """Ends a trial under way and lets go of the thread. Idempotent."""
        self._closed = True
        self._trial.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _next_look(self) -> bool:
        """Waits for the next look at the pointer; True when somebody asked for it."""
        every_s = self._settings.bundle_poll_s or None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s):  # wait_for would lose a stop that comes with a wake
                await self._woken.wait()
        was_woken = self._woken.is_set()
        self._woken.clear()
        return was_woken

    def _expect(self, version: str | None) -> None:
        live = self._switch.live.bundle.version
        if version is not None and version != live:
            raise VersionConflict(f"the live version is {live}: look again before you change it")

    # --- in the thread ------------------------------------------------------------------------------------------------

    def open_first(self) -> None:
        """Opens the bundle that the settings name. Raises BundleError when it cannot: there is nothing to serve with.

        Not in a child: there is nothing to protect yet, and the service is to be ready soon.
        """
        runtime = self._opened(bundle_to_open(bundle_root(self._settings)), is_first=True)
        self._switch.replace(runtime)
        root = bundle_root(self._settings)
        with contextlib.suppress(BundleError):
            if _is_folder_of_bundles(root):
                self._note_in_line(_seen(root))
        _log.info("bundle live", extra={"fields": {"model": runtime.label}})

    def _note_in_line(self, seen: _Seen) -> None:
        """The pointer's bundle answers: what was refused or left before is past. But not what was left just now."""
        with self._change:
            if not seen[0].is_open_in(self._switch.live):
                return
            self._seen, self._refused = seen, None
            if self.left is not None and self.left.seen != seen:
                self.left = None
                self._shared.metrics.bundle_failed.labels("went_back").set(0)

    def _catch_up(self, again: bool) -> None:
        """Brings the pointer's bundle to life unless it lives, or was refused as it is and nobody asks again."""
        root = bundle_root(self._settings)
        if not _is_folder_of_bundles(root):
            return
        target = None
        try:
            seen = _seen(root)
            target = seen[0]
            if target.is_open_in(self._switch.live):
                self._note_in_line(seen)
                return
            if self.left is not None and self.left.seen == seen:
                return  # asking again does not mend it: the pointer must move
            if not again and self._refused == _state(root, target):
                return
            self._put_live(self._made_live(target), seen)
        except Exception as error:
            state = _state(root, target)
            if again or state != self._refused:
                self._refuse(error, target)
            self._refused = state
            raise BundleError(str(error)) from error

    def _promote(self, path: Path) -> Runtime:
        root = bundle_root(self._settings)
        if not path.is_dir():
            raise NotFound("no such version in the bundle root: `daian bundle list` shows them")
        try:
            runtime = self._made_live(self._target(path))
        except Exception as error:
            self._refuse(error, None)
            raise BundleRefused(str(error)) from error
        try:
            point_to(root, runtime.bundle)
        except OSError as error:
            raise BundleStoreReadOnly(
                f"the pointer cannot be moved from here ({error.strerror}): promote where bundles are written"
            ) from error
        seen = None
        with contextlib.suppress(BundleError):  # moved again meanwhile: the next look says so
            seen = _seen(root)
        self._put_live(runtime, seen)
        return runtime

    def _target(self, path: Path) -> _Target:
        for runtime in (self._switch.previous, self._switch.live):
            if runtime is not None and runtime.bundle.path == path:
                return _Target(path, runtime.bundle.digest)
        return _Target(path, "")

    def _made_live(self, target: _Target) -> Runtime:
        """A runtime of the target: one that is open already, or a new one after its trial."""
        for runtime in (self._switch.live, self._switch.previous):
            if runtime is not None and target.is_open_in(runtime):
                return runtime
        self._check_name(target.path)
        self._make_room(target.path)
        try:
            check_folder(self._check_signed, target.path)  # the child parses: nothing of a stranger's gets there
            self._trial.run(target.path)
        except BundleError:
            self._shared.metrics.count_bundle("refused")
            raise
        return self._opened(target.path, is_first=False)

    def _make_room(self, path: Path) -> None:
        """Lets go of the bundle before when a third one would be too much; whether that helps, the trial says."""
        try:
            check_room(path)
        except BundleError:
            self._switch.forget_previous()
            give_memory_back()

    def _put_live(self, runtime: Runtime, seen: _Seen | None) -> None:
        """`seen` led here, and is known before the first answer may fail: what fails is left for this very pointer."""
        with self._change:
            is_new = runtime is not self._switch.live
            if is_new:
                self._refused = None
                self._shared.metrics.bundle_failed.labels("stayed").set(0)
                self._switch.replace(self._with_fresh_tally(runtime))
                if self._settings.bundle_keep_loaded < 2:
                    self._switch.forget_previous()
            if seen is not None:
                self._note_in_line(seen)
        if not is_new:
            return
        give_memory_back()
        _log.info("bundle live", extra={"fields": {"model": runtime.label}})

    def _with_fresh_tally(self, runtime: Runtime) -> Runtime:
        """One that failed and is wanted again may fail anew; that it once gave numbers counts only if it had not."""
        if not runtime.soundness.n_failed:
            return runtime
        is_proved = runtime.soundness.is_proved(self._settings.bundle_failures)
        return replace(runtime, soundness=Soundness(has_scored=is_proved))

    def _refuse(self, error: Exception, target: _Target | None) -> None:
        if self._closed:  # the trial was ended, not the bundle's fault
            return
        fields = {"reason": str(error), "error": type(error).__name__, "live": self._switch.live.label}
        if target is not None:
            fields["refused"] = f"{target.path.parent.name}@{target.path.name}"
        _log.error("bundle refused", extra={"fields": fields})

    def _opened(self, path: Path, is_first: bool) -> Runtime:
        settings = self._settings
        self._check_name(path)
        opened = (path, self._shared, settings.chunk, settings.ort_threads, time.time(), prerank_plan(settings))
        return open_runtime(*opened, is_first, self._check_signed, self._check_fits)

    def _check_fits(self, bundle: Bundle, encoder: Encoder) -> None:
        """Raises BundleError for a sound bundle that this service cannot take."""
        if _is_folder_of_bundles(bundle_root(self._settings)):
            check_place(bundle)
        check_kept(encoder.rules, self._settings)

    def _check_name(self, path: Path) -> None:
        if path.parent.name != self._settings.bundle_name:
            raise BundleError(
                f"{path} is not a bundle of {self._settings.bundle_name!r}: set DAIAN_BUNDLE_NAME, or promote another"
            )

    def _named(self, version: str) -> Path:
        root = bundle_root(self._settings)
        if not _is_folder_of_bundles(root):
            raise BundleStoreReadOnly("this service was started on one bundle, not on a folder of bundles")
        if not is_version(version):
            raise NotFound("no such version in the bundle root: `daian bundle list` shows them")
        return root / self._settings.bundle_name / version

    def _before(self) -> Path:
        live, previous = self._switch.live.bundle, self._switch.previous
        if self.left is not None:  # this process went back already, and the pointer is to follow
            return self._named(live.version)
        if previous is not None:
            return self._named(previous.bundle.version)
        root = bundle_root(self._settings)
        older = [path for path in list_bundles(root) if path.parent == live.path.parent and path.name < live.version]
        if not older:
            raise NotFound("there is no version before the live one: promote another")
        return self._named(older[-1].name)


def bundle_root(settings: Settings) -> Path:
    """The folder that the settings name. Raises BundleError when they name none."""
    if settings.bundle_root is None:
        raise BundleError("DAIAN_BUNDLE_ROOT is not set: name a folder that `daian export` wrote")
    return settings.bundle_root


def prerank_plan(settings: Settings) -> PrerankPlan | None:
    """What the settings say of the pre-ranker; None when it is off. Raises SettingsError when it would cut nothing."""
    if settings.prerank == "off":
        return None
    if settings.prerank_keep >= settings.prerank_recall:
        raise SettingsError(
            f"{variable('prerank_keep')} is {settings.prerank_keep} of {settings.prerank_recall} recalled, so nothing "
            f"would be cut: keep less, or set {variable('prerank')} to off"
        )
    return PrerankPlan(settings.prerank_recall, settings.prerank_keep)


def check_kept(rules: HistoryRules, settings: Settings) -> None:
    """A store that keeps less than the history the network was trained on would change tensors without a word."""
    days = math.ceil(max(rules.window_s, rules.related_window_s) / 86_400)
    wanted = {"behaviours_keep": rules.kept, "behaviours_window_days": days}
    short = [
        f"{variable(name)} to {least} or more" for name, least in wanted.items() if getattr(settings, name) < least
    ]
    if short:
        raise BundleError(f"the bundle's history rules want more than the store keeps: set {' and '.join(short)}")


def give_memory_back() -> None:
    """Returns freed memory to the system where the C library can (glibc): else each swap would leave some behind.

    The collector is told to look (process_tuning.py makes it wait long), lest a circle keep a whole bundle.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def check_place(bundle: Bundle) -> None:
    """The pointer names name and version: of a copy under another one it would lead to the wrong folder."""
    if (bundle.name, bundle.version) != (bundle.path.parent.name, bundle.path.name):
        raise BundleError(
            f"{bundle.path / MANIFEST} is that of {bundle.name}@{bundle.version}: copy a bundle under its own name and "
            "version, or export it under the new one"
        )


def _is_folder_of_bundles(root: Path) -> bool:
    return not (root / "manifest.json").is_file()


def _seen(root: Path) -> _Seen:
    """What the pointer names now. Raises BundleError when it cannot be read."""
    file: tuple[object, ...] = ()
    with contextlib.suppress(OSError):
        stat = (root / "current").stat()
        file = (stat.st_mtime_ns, stat.st_ino)
    return _Target(*read_pointer(root)), file


def _state(root: Path, target: _Target | None) -> tuple[object, ...]:
    """What a refusal was about: pointer and files as they lay there. A copy that was half done is another one later."""
    files: tuple[object, ...] = ()
    with contextlib.suppress(OSError, DaianError):
        pointer = (root / "current").stat()
        files = (pointer.st_mtime_ns, pointer.st_ino)
        if target is not None:
            found = ((str(file), file.stat()) for file in list_files(target.path))
            files += tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
    return (target, *files)

"""Runtime: one opened bundle, verified and warm; RuntimeSwitch: the one reference to the bundle that answers.

`service/app.py` opens a runtime at start; promoting a bundle opens the next one beside it and replaces the reference
only after its golden requests scored as recorded. A failure anywhere leaves the old one serving. Nothing here is ever
changed in place: requests in flight end on the runtime they began with.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np

from service.admission import Admission
from service.contract.bundle import Bundle, read_bundle
from service.contract.encoder import Encoder
from service.contract.errors import BundleError, RequestError, SchemaError
from service.contract.mapped_array import open_array
from service.contract.requests import RequestBatch
from service.contract.rules import LEAST_RECALL
from service.deadline import Deadline
from service.errors import ModelFailed, NoModel
from service.file_guard import check_graph, check_index, check_signature
from service.label_values import LIVE, BundleOutcome
from service.metrics import Metrics
from service.prerank import FOLDER as PRERANK
from service.prerank import Preranker, PrerankPlan
from service.process_tuning import give_freed_memory_back
from service.ranker import Ranker
from service.request_log import RequestLog
from service.retriever import Retriever
from service.scorer import Graph, Scorer
from service.soundness import Soundness
from service.user_store import UserStore

TOLERANCE = 1e-5
GOLDEN = "golden.jsonl"
INDEX = "catalogue/recall.faiss"
INDEX_LIMIT_FACTOR = 2  # FAISS may allocate so many times the file's size; its own default is one terabyte


@dataclass(frozen=True)
class Shared:
    """What outlives a bundle: the parts that every runtime of a process works with."""

    store: UserStore
    admission: Admission
    request_log: RequestLog
    metrics: Metrics


@dataclass(frozen=True)
class Runtime:
    """One bundle, ready to rank. Immutable, but for the tally of its answers."""

    bundle: Bundle
    encoder: Encoder
    scorer: Scorer
    ranker: Ranker
    loaded_at: float  # epoch seconds, for people
    soundness: Soundness = field(default_factory=Soundness)

    @property
    def label(self) -> str:
        """`name@version`, as the Daian-Model header has it."""
        return f"{self.bundle.name}@{self.bundle.version}"


def open_runtime(
    path: Path,
    shared: Shared,
    chunk: int,
    ort_threads: int,
    loaded_at: float,
    prerank: PrerankPlan | None = None,
    is_first: bool = True,
    check_signed: Callable[[Path, bytes], None] | None = None,
    check_fits: Callable[[Bundle, Encoder], None] = lambda _bundle, _encoder: None,
) -> Runtime:
    """Opens, verifies and warms the bundle in `path`; its pre-ranker too, when there is a plan for it.

    The first one of a process gives admission its first service times; a later one is opened beside traffic, which has
    given truer ones. `check_signed` is that of `read_bundle`; `check_fits` refuses what is sound but not for here.

    Raises BundleError, naming the file, when a signature, a hash, the fingerprint, a graph or a golden request does not
    fit, or the pre-ranker that is asked for is not there.
    """
    started_s = time.perf_counter()
    outcome: BundleOutcome = "refused"
    try:
        bundle = read_bundle(path, check_signed)
        encoder = bundle.open_encoder()
        check_fits(bundle, encoder)
        scorer = open_scorer(bundle, chunk, ort_threads)
        self_check(bundle, encoder, scorer, shared.admission if is_first else None)
        retriever = Retriever(encoder, open_index(bundle, encoder))
        retriever.warm_up()
        preranker = None if prerank is None else open_preranker(bundle, encoder, prerank, chunk, ort_threads)
        ranker = Ranker(encoder, scorer, retriever, bundle.read_prior(), **vars(shared), preranker=preranker)
        give_freed_memory_back()
        outcome = "loaded"
        return Runtime(bundle, encoder, scorer, ranker, loaded_at)
    finally:
        shared.metrics.count_bundle(outcome)
        shared.metrics.bundle_load_seconds.labels(outcome).observe(time.perf_counter() - started_s)


def check_bundle(bundle: Bundle, chunk: int, ort_threads: int) -> int:
    """Opens every part of a bundle as `open_runtime` does, the pre-ranker included, and keeps nothing.

    Returns how many golden requests scored as recorded. Raises BundleError for the first fault.
    """
    encoder = bundle.open_encoder()
    Retriever(encoder, open_index(bundle, encoder)).warm_up()
    bundle.read_prior()
    parts = ["", PRERANK] if has_preranker(bundle) else [""]
    return sum(self_check(bundle, encoder, open_scorer(bundle, chunk, ort_threads, part), part=part) for part in parts)


def open_scorer(bundle: Bundle, chunk: int, ort_threads: int, part: str = "") -> Scorer:
    """Both graphs, from the very bytes that were hashed, over tables mapped from disk.

    `part` is the folder of the bundle that they are in: the ranker's are at the top, the pre-ranker's in `prerank/`.
    """
    folder = f"{part}tables/"
    tables = {Path(name).stem: _mapped(bundle, name) for name in bundle.files if name.startswith(folder)}
    request, candidates = (_open_graph(bundle, part, side, tables, ort_threads) for side in ("request", "candidates"))
    return Scorer(request, candidates, chunk)


def _open_graph(bundle: Bundle, part: str, side: str, tables: Mapping[str, np.ndarray], ort_threads: int) -> Graph:
    """One graph: looked through before it is parsed, compared with the manifest after."""
    name = f"{part}{side}.onnx"
    content, file = bundle.read(name), str(bundle.path / name)
    check_graph(file, content)
    graph = Graph(name, content, tables, ort_threads)
    check_signature(file, graph.describe(), _declared(bundle, part).get(side))
    return graph


def _declared(bundle: Bundle, part: str) -> Mapping[str, object]:
    """What the manifest says of the graphs of the ranker or the pre-ranker; nothing in bundles of older exporters."""
    about = bundle.manifest.get(PRERANK.rstrip("/")) if part else bundle.manifest
    graphs = about.get("graphs") if isinstance(about, Mapping) else None
    return graphs if isinstance(graphs, Mapping) else {}


def has_preranker(bundle: Bundle) -> bool:
    """True for a bundle that was exported with a pre-ranker."""
    return f"{PRERANK}request.onnx" in bundle.files


def open_preranker(bundle: Bundle, encoder: Encoder, plan: PrerankPlan, chunk: int, ort_threads: int) -> Preranker:
    """The bundle's pre-ranker, after its golden requests. Raises BundleError when there is none or it does not fit."""
    if not has_preranker(bundle):
        raise BundleError(
            f"{bundle.path} has no pre-ranker and DAIAN_PRERANK is on: export the bundle with --prerank, or turn it off"
        )
    scorer = open_scorer(bundle, chunk, ort_threads, PRERANK)
    self_check(bundle, encoder, scorer, part=PRERANK)
    return Preranker(scorer, plan)


def self_check(
    bundle: Bundle, encoder: Encoder, scorer: Scorer, admission: Admission | None = None, part: str = ""
) -> int:
    """Replays the golden requests; this is also the warm-up, and gives admission its first service times.

    Returns how many there were. Raises BundleError when there is none, or a logit differs by more than TOLERANCE.
    """
    n_checked, file = 0, bundle.path / part / GOLDEN
    for number, (case, batch, expected) in enumerate(_golden(bundle, part), start=1):
        started_s = time.perf_counter()
        logits = _replayed(bundle, number, encoder, scorer, batch, part)
        if logits.shape != expected.shape:
            raise BundleError(f"{file}, line {number}: {len(expected)} logits for {len(logits)} candidates")
        difference = float(np.abs(logits - expected).max(initial=0.0))
        if not difference <= TOLERANCE:  # also true for NaN
            raise BundleError(
                f"{file}, line {number} ({case}): logits differ by {difference:.3g} from the recorded, "
                f"{TOLERANCE:g} is allowed: export the bundle again"
            )
        if admission is not None and number > 1:  # the first one pays for memory that later ones find ready
            admission.observe(time.perf_counter() - started_s)
        n_checked += 1
    if n_checked == 0:
        raise BundleError(f"{file} holds no golden request: a bundle that cannot be checked is not served")
    return n_checked


def _replayed(
    bundle: Bundle, number: int, encoder: Encoder, scorer: Scorer, batch: RequestBatch, part: str
) -> np.ndarray:
    inputs = encoder.encode(batch)
    try:
        return scorer.score(scorer.encode_request(inputs), inputs, Deadline.after_ms(60_000)).logits
    except ModelFailed as error:
        raise BundleError(f"{bundle.path / part / GOLDEN}, line {number}: {error}") from error


def _golden(bundle: Bundle, part: str) -> Iterator[tuple[str, RequestBatch, np.ndarray]]:
    for number, line in enumerate(bundle.read(part + GOLDEN).splitlines(), start=1):
        try:
            record = json.loads(line)
            logits = np.array(record["logits"], np.float32)
            yield str(record.get("case", "")), RequestBatch.from_rows([record["request"]]), logits
        except (ValueError, KeyError, TypeError, RequestError) as error:
            raise BundleError(
                f"{bundle.path / part / GOLDEN}, line {number} cannot be read ({error}): export again"
            ) from error


def _mapped(bundle: Bundle, name: str) -> np.ndarray:
    try:
        return open_array(bundle.path / name)  # shared by all workers through the page cache
    except SchemaError as error:
        raise BundleError(
            f"{bundle.path / name} is not a table ({error.__cause__}): export the bundle again"
        ) from error


def open_index(bundle: Bundle, encoder: Encoder) -> faiss.Index | None:
    """The recall index, hashed and then mapped from disk; None when the catalogue has no vectors and so no index.

    Vectors and lists are shared by all workers through the page cache; only the links of an HNSW graph are not. Raises
    BundleError for an index of another kind or catalogue, and for one that finds less than its exporter should allow.
    """
    if INDEX not in bundle.files:
        return None
    check_index(str(bundle.path / INDEX), content := bundle.read(INDEX))
    _check_recall(bundle)
    limit = getattr(faiss, "set_deserialization_vector_byte_limit", None)
    if limit is not None:
        limit(max(1 << 20, INDEX_LIMIT_FACTOR * len(content)))
    try:
        index = faiss.read_index(str(bundle.path / INDEX), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise BundleError(f"{bundle.path / INDEX} is not a FAISS index ({error}): export the bundle again") from error
    rows, catalogue = faiss.vector_to_array(index.id_map), encoder.catalogue  # type: ignore[attr-defined]
    fits = index.d == catalogue.dimensions and len(rows) == index.ntotal
    if not fits or not len(rows) or rows.min() < 1 or rows.max() > catalogue.n_items:
        raise BundleError(f"{bundle.path / INDEX} is not of this catalogue: export the bundle again")
    return index


def _check_recall(bundle: Bundle) -> None:
    """A manifest that says nothing of recall passes; what it says is a share, for `manifest.py` has looked."""
    about = bundle.manifest.get("index")
    if not isinstance(about, Mapping) or about.get("low_recall_allowed"):
        return
    recall = float(about.get("recall", 1.0))
    if recall < LEAST_RECALL:
        raise BundleError(
            f"{bundle.path / INDEX} finds {recall:.3f} of the nearest items, need {LEAST_RECALL}: export again, with "
            "--allow-low-recall if that is wanted"
        )


class RuntimeSwitch:
    """Holds the runtime that answers. Replacing it is one assignment: whoever has the old one keeps it to the end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()  # swaps come from a thread, `go_back` from the event loop
        self._live: Runtime | None = None
        self._previous: Runtime | None = None

    @property
    def live(self) -> Runtime:
        """The runtime that answers. Raises NoModel before the first one passed its golden requests."""
        if self._live is None:
            raise NoModel("no bundle has passed its golden requests yet: come back in a moment")
        return self._live

    @property
    def previous(self) -> Runtime | None:
        """The runtime that answered before, kept open so that going back takes no time; None before the first swap."""
        return self._previous

    def forget_previous(self) -> None:
        """Lets go of the runtime before, when its memory is wanted."""
        with self._lock:
            self._previous = None

    @property
    def is_loaded(self) -> bool:
        """True once there is a runtime."""
        return self._live is not None

    def replace(self, runtime: Runtime) -> None:
        """Makes a verified runtime the live one, and the live one the previous."""
        with self._lock:
            self._put(runtime)

    def go_back(self, failed: Runtime) -> bool:
        """Puts the previous runtime in place of one that fails, and lets go of that one.

        False, and nothing done, where another has taken its place meanwhile, or there is no previous one.
        """
        with self._lock:
            if self._live is not failed or self._previous is None:
                return False
            self._put(self._previous)
            self._previous = None
            return True

    def _put(self, runtime: Runtime) -> None:
        if self._live is not None:
            self._metrics.forget_bundle(self._live.bundle.name, self._live.bundle.version)
        self._metrics.bundle_info.labels(runtime.bundle.name, runtime.bundle.version, LIVE).set(1)
        self._previous, self._live = self._live, runtime

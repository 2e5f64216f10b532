"""A trained run becomes a bundle: graphs, tables, encoder, catalogue, index and golden requests in one verified folder.

`daian export` and `daian demo` call `export`. Everything is made and checked in a folder beside the bundles first; only
what passed every gate is published by `service.contract.bundle`, and only then the pointer moves.

Never here: training, serving, how files are hashed and published (`service.contract.bundle`).
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models_export.errors import ExportError
from models_export.golden import GOLDEN_FILE, Row, pick, record
from models_export.graph import export_graphs
from models_export.index import build_index, check_recall, write_index
from models_export.parity import ExportedModel, ParityReport, check_parity, compare
from service.contract.bundle import MANIFEST, Bundle, current_path, point_to, read_bundle, write_bundle
from service.contract.encoder import Encoder, ModelInputs
from service.contract.errors import BundleError
from service.contract.requests import RequestBatch
from training.checkpoint import Run, open_run
from training.config import to_dict
from training.data.dataset import Dataset, open_catalogue, open_dataset, split_files
from training.data.request_files import read_requests
from training.data.whole_files import folders_above
from training.drift import Drift, drift_of

BUNDLE_NAME = "daian"
PRERANK_FOLDER = "prerank"  # the service opens what lies there as the stage before ranking
N_SAMPLED_REQUESTS = 4096  # golden and parity requests are picked from so many
_PACKAGES = ("daian", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "faiss-cpu")


@dataclass(frozen=True)
class ExportPlan:
    """What to export and where to. `promote` moves `current` to the new bundle once it has passed its gates.

    prerank: a second run over the same data, exported beside the first as the bundle's pre-ranker.
    allow_low_recall: publish also when the recall index misses more than the contract allows.
    allow_drift: publish also when the held-out days lie too far from the training days.
    """

    run: Path
    data: Path
    bundles: Path
    name: str = BUNDLE_NAME
    promote: bool = True
    prerank: Path | None = None
    allow_low_recall: bool = False
    allow_drift: bool = False


def export(plan: ExportPlan, tell: Callable[[str], None] = print) -> Bundle:
    """Export a finished run over the prepared data set it was trained on; returns the published bundle.

    `tell` is called with one line a step. Raises `ExportError` or `ParityError` when a gate fails, `CheckpointError`
    and `DataError` when run or data cannot be used; nothing is published then and `current` stays where it was.
    """
    dataset = open_dataset(plan.data)
    run = open_run(plan.run, open_catalogue(plan.data))
    drift = _drift(plan, run, tell)
    preranker = None if plan.prerank is None else _open_preranker(plan.prerank, run, plan)
    requests = _sample(plan.data)
    above = folders_above(plan.bundles / plan.name)
    with above, tempfile.TemporaryDirectory(prefix=".export.", dir=plan.bundles) as staging:
        folder = Path(staging)
        made = _fill(folder, run, requests, plan.allow_low_recall, tell)
        if preranker is not None:
            made["prerank"] = _fill_prerank(folder / PRERANK_FOLDER, preranker, plan, requests, tell)
        manifest = {**_describe(plan, run, dataset), "drift": drift, **made}
        version_name = _version_name(folder, run.encoder)
        bundle = write_bundle(plan.bundles, plan.name, version_name, manifest, lambda work: _move(folder, work))
    bundle.open_encoder()
    if plan.promote:
        point_to(plan.bundles, bundle)
    tell(f"published {bundle.path}{' and made it current' if plan.promote else ''}")
    return bundle


def compare_bundle(run_folder: Path, data: Path, path: Path) -> ParityReport:
    """Parity of a published bundle with a run it was made of; `path` is the bundle or the folder with `current`.

    A run of the config of the bundle's pre-ranker is compared with the pre-ranker, any other with the ranker.

    Raises `DataError` where `data` is no prepared folder, `BundleError` for a bundle that is not whole or of another
    encoder, `ParityError` where scores differ.
    """
    open_dataset(data)
    bundle = read_bundle(path if (path / MANIFEST).is_file() else current_path(path))
    run = open_run(run_folder, open_catalogue(data))
    if run.encoder.fingerprint != bundle.open_encoder().fingerprint:
        raise BundleError(f"{bundle.path} and {run_folder} have different encoders: export that run again")
    prerank = bundle.manifest.get("prerank")
    is_prerank = isinstance(prerank, dict) and prerank["model"] == json.loads(json.dumps(to_dict(run.config)))
    folder = bundle.path / PRERANK_FOLDER if is_prerank else bundle.path
    return check_parity(run.model, folder, run.encoder, _sample(data))


def _drift(plan: ExportPlan, run: Run, tell: Callable[[str], None]) -> dict[str, Any]:
    """What the manifest says of the drift. Raises ExportError where it is above a limit and that is not wanted."""
    drift = drift_of(plan.run, plan.data, run.encoder)
    check_drift(drift, plan)
    above = f"{len(drift.above)} figures above their limits, allowed" if drift.above else "no figure above its limit"
    tell(f"drift from the training to the {drift.split} days: {len(drift.fields)} fields, {above}")
    return {**drift.to_dict(), "drift_allowed": plan.allow_drift}


def check_drift(drift: Drift, plan: ExportPlan) -> None:
    """Raises ExportError with every figure above its limit, unless that is wanted."""
    if drift.above and not plan.allow_drift:
        found = "\n".join(f"  {sentence}" for sentence in drift.above)
        raise ExportError(
            f"{plan.data}: the {drift.split} days lie far from the training days of {plan.run}, and what is served "
            f"next comes after them:\n{found}\nRepair the tables or prepare the data with newer training days, and "
            "train again. To export all the same, give --allow-drift"
        )


def _open_preranker(folder: Path, run: Run, plan: ExportPlan) -> Run:
    """The pre-ranker's run. Raises ExportError when it reads its requests through another encoder than the ranker."""
    preranker = open_run(folder, run.encoder.catalogue)
    if preranker.encoder.fingerprint != run.encoder.fingerprint:
        raise ExportError(
            f"{folder} was trained with encoder {preranker.encoder.fingerprint[:12]}, {plan.run} with "
            f"{run.encoder.fingerprint[:12]}: both read the same encoded request when serving; train the pre-ranker on "
            "the data set of the ranker"
        )
    return preranker


def _fill(
    folder: Path, run: Run, requests: RequestBatch, allow_low_recall: bool, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Make every file of the ranker's and pass the gates; returns what the manifest says of them."""
    run.encoder.save(folder / "encoder")
    run.encoder.catalogue.save(folder / "catalogue")
    index = _index(folder / "catalogue", run.encoder, allow_low_recall, tell)
    return {"index": index, **_fill_model(folder, run, requests, tell)}


def _fill_prerank(
    folder: Path, run: Run, plan: ExportPlan, requests: RequestBatch, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The pre-ranker's files, through the same gates; encoder and catalogue are the ranker's."""
    assert plan.prerank is not None
    folder.mkdir()
    tell("pre-ranker:")
    made = _fill_model(folder, run, requests, tell)
    return {"model": to_dict(run.config), "metrics": _metrics(plan.prerank), **made}


def _fill_model(folder: Path, run: Run, requests: RequestBatch, tell: Callable[[str], None]) -> dict[str, Any]:
    """Graphs, tables and golden requests of one run, compared with PyTorch."""
    graphs = export_graphs(
        run.model, run.encoder.sizes, {"fingerprint": run.encoder.fingerprint, "name": run.config.name}
    )
    graphs.save(folder)
    n_nodes = len(graphs.request.graph.node), len(graphs.candidates.graph.node)
    tell(f"two graphs of {n_nodes[0]} and {n_nodes[1]} operators, {len(graphs.tables)} tables mapped from disk")

    picked = pick(requests)
    record(run.model, run.encoder, picked, folder / GOLDEN_FILE)
    parity = check_parity(run.model, folder, run.encoder, requests)
    golden = compare(run.model, ExportedModel(folder), _encoded(run.encoder, picked))
    tell(
        f"PyTorch and ONNX Runtime agree: {parity.n_cases} cases within {parity.max_difference:.1e}, "
        f"{golden.n_cases} golden requests within {golden.max_difference:.1e}"
    )
    checks = {"parity": parity.to_dict(), "golden": golden.to_dict()}
    return {"graphs": graphs.describe(), "checks": checks}


def _index(
    folder: Path, encoder: Encoder, allow_low_recall: bool, tell: Callable[[str], None]
) -> dict[str, Any] | None:
    built = build_index(encoder.catalogue)
    if built is None:
        tell("no item has a vector: no recall index, the service recalls popular items")
        return None
    index, report = built
    check_recall(report, allow_low_recall)
    write_index(index, folder)
    tell(f"recall index: {report.type} over {report.n_items:,} items, recall@{report.recall_at} {report.recall:.3f}")
    return {**report.to_dict(), "low_recall_allowed": allow_low_recall}


def _encoded(encoder: Encoder, picked: Sequence[tuple[str, Row]]) -> Iterator[tuple[str, ModelInputs]]:
    for case, row in picked:
        yield f"golden {row['request_id']} ({case})", encoder.encode(RequestBatch.from_rows([row]))


def _sample(data: Path) -> RequestBatch:
    """The first requests of the validation split: the model has not been trained on them."""
    batches: list[RequestBatch] = []
    for path in split_files(data, "validation"):
        for batch, _ in read_requests(path):
            batches.append(batch)
            if sum(part.n_requests for part in batches) >= N_SAMPLED_REQUESTS:
                return RequestBatch.concat(batches)
    return RequestBatch.concat(batches)


def _describe(plan: ExportPlan, run: Run, dataset: Dataset) -> dict[str, Any]:
    """What the manifest says beside hashes, graphs and checks: where the model comes from, what the service needs."""
    return {
        "fingerprint": run.encoder.fingerprint,
        "model": to_dict(run.config),
        "metrics": _metrics(plan.run),
        "data": {"name": dataset.name, "windows": dataset.windows, "n_items": run.encoder.catalogue.n_items},
        "prior": dataset.report["train"]["click_rate"],
        "edges": [float(edge) for edge in run.encoder.scale.edges],
        "history_rules": asdict(run.encoder.rules),
        "packages": {package: version(package) for package in _PACKAGES},
        "code_revision": _code_revision(),
        "least_server_version": version("daian"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _metrics(run: Path) -> Any:
    path = run / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _version_name(folder: Path, encoder: Encoder) -> str:
    """Time of the export and six digits of encoder and scores: 20261120T030000Z-9f3c2a."""
    digest = sha256(encoder.fingerprint.encode() + (folder / GOLDEN_FILE).read_bytes()).hexdigest()
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest[:6]}"


def _code_revision() -> str | None:
    """The commit this code stands at; None for an installed package."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _move(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        shutil.move(path, target / path.name)

"""What one process of a comparison does: check that a row can be exported, train and measure a run, time graphs.

`training.compare` hands out tasks through `training.compare_pool`. The encoded requests of the data set stay in memory
from run to run (`KeptPools`). A run's folder gets what `daian train` writes, the test scores and, last of all,
`measured.json`: a folder with it is finished.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow.parquet as pq
import torch

import training
from service.contract import encoder as contract_encoder
from service.contract.encoder import Encoder
from service.contract.strict_json import strict_json
from training.bootstrap import Resampling
from training.checkpoint import CheckpointError, load_tensors, read_config
from training.compare_inside import look_inside, n_parameters, permuted_trigger_scores
from training.config import TrainConfig
from training.data.dataset import open_catalogue, split_files
from training.data.pools import KeptPools
from training.data.whole_files import write_whole
from training.measures import Plan, measure
from training.models import build_model
from training.models.spec import RankingModel
from training.paired import STATISTICS
from training.scores import Scored, all_numbers, score_batches
from training.split_facts import Candidates, Items, TrainingDays, read_candidates, read_training_days
from training.train import evaluation_batches, train, write_metrics
from training.truth import Truth, read_truth

MEASURED = "measured.json"
TEST_SCORES = "scores_test.npz"
PERMUTED_SCORES = "scores_test_permuted.npz"
EXPORT_CHECK = "daian.export_check"
EXPORT_TIMING = "daian.export_timing"
_SAY_EVERY_S = 0.5
# The numbers of a run are points: intervals of the table's numbers are made once, over users and seeds, when the report
# is written (`training.report_intervals`); numbers of groups get their spread over seeds there.
_POINTS = Plan(Resampling(n=1, n_auc=1))


@dataclass(frozen=True)
class Task:
    """One piece of work. `folder`: of the run, or for "timing" of the file to write. `encoder`: the saved one.

    `measured`: score the test split too; a trial of the search never does.
    """

    kind: Literal["check", "run", "timing"]
    row: str
    name: str
    data: Path
    folder: Path
    encoder: Path
    config: TrainConfig | None = None
    measured: bool = False
    runs: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of the test split whatever ranks it."""

    items: Items
    candidates: Candidates
    training: TrainingDays
    truth: Truth | None


class DataInMemory:
    """The data set that this process works on: one at a time."""

    def __init__(self, data: Path, encoder: Path) -> None:
        self.key = (data, encoder)
        self.data = data
        self.encoder = Encoder.open(encoder, open_catalogue(data))
        self.pools = KeptPools(self.encoder)
        self._facts: Facts | None = None
        self._warm = False

    @property
    def facts(self) -> Facts:
        """Read at the first use."""
        if self._facts is None:
            items = Items.open(self.data, self.encoder.scale)
            candidates = read_candidates(self.data / "test", items)
            training, truth = read_training_days(self.data, items), read_truth(self.data, "test")
            self._facts = Facts(items, candidates, training, truth)
        return self._facts

    def warm(self) -> None:
        """Encodes training and validation requests into the pools; nothing the second time."""
        if self._warm:
            return
        for split in ("train", "validation"):
            for path in split_files(self.data, split):
                for row_group in range(pq.read_metadata(path).num_row_groups):
                    self.pools.read([(path, row_group)])
        self._warm = True


@cache
def code_sha256() -> str:
    """Of all Python files of training/ and service/contract/, by name: runs of other code are not comparable unseen."""
    found = hashlib.sha256()
    for module in (training.__file__, contract_encoder.__file__):
        root = Path(str(module)).parent
        for path in sorted(root.rglob("*.py")):
            found.update(f"{root.name}/{path.relative_to(root).as_posix()}\0".encode())
            found.update(path.read_bytes() + b"\0")
    return found.hexdigest()


_held: DataInMemory | None = None


def _in_memory(task: Task) -> DataInMemory:
    global _held  # the point of a worker: it keeps the data from task to task
    if _held is None or _held.key != (task.data, task.encoder):
        _held = DataInMemory(task.data, task.encoder)
    return _held


def work(task: Task, say: Callable[[str], None]) -> dict[str, Any]:
    """Does one task. Whatever it raises is the reason why the row failed."""
    if task.kind == "timing":
        return _timing(task, say)
    known = _in_memory(task)
    if task.kind == "check":
        return _check(task, known, say)
    return _run(task, known, say)


def finished(task: Task) -> dict[str, Any] | None:
    """What an earlier call wrote about this run; None when it is not finished.

    Raises CheckpointError when the folder holds a run of another config: the code or the table has changed since.
    """
    path = task.folder / MEASURED
    if not path.is_file():
        return None
    if read_config(task.folder)[0] != task.config:
        raise CheckpointError(
            f"{task.folder} holds a run of another config; delete the folder of this row, or choose another one for all"
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _check(task: Task, known: DataInMemory, say: Callable[[str], None]) -> dict[str, Any]:
    """The exporter's dry run, by its entry point: this package may not import it."""
    say("can it be exported?")
    assert task.config is not None
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = cast(RankingModel, build_model(task.config.model, known.encoder.sizes))
    for check in entry_points(group=EXPORT_CHECK):
        check.load()(model, known.encoder)
    return {}


def _timing(task: Task, say: Callable[[str], None]) -> dict[str, Any]:
    """Latencies of exported runs by row; nothing without an exporter."""
    found: dict[str, Any] = {}
    for timing in entry_points(group=EXPORT_TIMING):
        found = timing.load()(dict(task.runs), task.data, say)
    write_whole(task.folder, strict_json(found, indent=1).encode())
    return found


def _run(task: Task, known: DataInMemory, say: Callable[[str], None]) -> dict[str, Any]:
    assert task.config is not None
    found = _tried_before(task) if task.measured else None
    if found is None:
        found = _trained(task, task.config, known, say)
    if task.measured:
        say("scoring the test split")
        found |= measured(task, known)
    shutil.rmtree(task.folder / "checkpoints", ignore_errors=True)
    write_whole(task.folder / MEASURED, strict_json(found, indent=1, sort_keys=True).encode())
    return found


def _tried_before(task: Task) -> dict[str, Any] | None:
    """The trial of the search that was this very run, copied here: the first seed at the setting it chose."""
    for trial in sorted(task.folder.parent.glob("trial-*")):
        path = trial / MEASURED
        if not path.is_file() or read_config(trial)[0] != task.config:
            continue
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["code_sha256"] == code_sha256():
            shutil.copytree(trial, task.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MEASURED))
            return found
    return None


def _trained(task: Task, config: TrainConfig, known: DataInMemory, say: Callable[[str], None]) -> dict[str, Any]:
    resumed = (task.folder / "config.json").is_file()
    recorder = Teller(say)
    known.warm()  # a process encodes once, which no row shall pay for
    wall, cpu = time.perf_counter(), time.process_time()
    validation = train(config, task.data, task.folder, recorder, pools=known.pools)
    return {
        "validation": validation,
        "select_by": config.select_by,
        "learning_rate": config.optim.learning_rate,
        "n_steps": recorder.n_steps,
        "code_sha256": code_sha256(),
        "notes": recorder.notes,
        # A run that was interrupted knows only its last part.
        "seconds": None if resumed else time.perf_counter() - wall,
        "cpu_seconds": None if resumed else time.process_time() - cpu,
    }


def measured(task: Task, known: DataInMemory) -> dict[str, Any]:
    """Test scores and all numbers of the trained weights; writes the scores and metrics.json."""
    assert task.config is not None
    model = build_model(task.config.model, known.encoder.sizes)
    model.load_state_dict(load_tensors(task.folder / "weights.pt"))
    model.eval()
    batches = evaluation_batches(task.data, "test", known.encoder, task.config, known.pools)
    scored = score_batches(model, batches.epoch()).in_order()
    scored.save(task.folder / TEST_SCORES)
    numbers = all_numbers(scored)
    write_metrics(task.folder, "test", {task.config.name: numbers})
    facts = known.facts
    other = permuted_trigger_scores(model, known.encoder, task.data).in_order()
    other.save(task.folder / PERMUTED_SCORES)
    return {
        "test": numbers | {"ndcg_at_10": float(STATISTICS["ndcg_at_10"](scored, "user").value)},
        "measures": measure(scored, facts.candidates, facts.training, facts.items, _POINTS),
        "random_trigger": ranking_of(other),
        "inside": look_inside(model, batches.epoch(), facts.candidates, facts.training, facts.truth),
        "n_parameters": n_parameters(model),
    }


def ranking_of(scored: Scored) -> dict[str, float]:
    """The ranking numbers alone."""
    numbers = all_numbers(scored)
    return {name: numbers[name] for name in ("auc", "gauc_user", "gauc_request", "auc_per_request")}


class Teller:
    """A `training.loop.Recorder` that tells the parent process where the run stands, now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.n_steps = 0
        self.notes: list[str] = []
        self._say = say
        self._next = 0.0

    def step(self, stage: str, step: int, loss: float, n_candidates: int, seconds: float) -> None:  # noqa: ARG002
        """Counts the step."""
        self.n_steps += 1
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SAY_EVERY_S
            self._say(f"{stage}: step {step:,}, loss {loss:.4f}")

    def validation(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """Tells the number that most runs go by."""
        self._say(f"{stage}: step {step:,}, GAUC per request {numbers.get('gauc_request', float('nan')):.4f}")

    def note(self, stage: str, text: str) -> None:
        """Kept for the report."""
        self.notes.append(f"{stage}: {text}")


def machine() -> str:
    """What the seconds of a report were measured on."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{model or os.uname().machine}, {cores} cores, PyTorch {torch.__version__}"

"""`daian compare`: every row of a table, searched alike, trained over seeds and measured, in parallel and resumable.

For each row: the exporter's dry run once, the same small search on validation, then the seeds at the best setting; at
the end the exported graphs are timed in turn. A row that fails is told of and the others go on. Killed and called again
it goes on: what is finished (`measured.json` in a run's folder) is not done again. `training.compare_worker` does the
work, `training.report` writes what came out.

    out/plan.json  encoders/levels-6/  rows/<row>/trial-0/  rows/<row>/seed-1/  timing.json  report.md  report.html
    out/timing_failed.txt  when the graphs could not be timed
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from service.contract.errors import DaianError
from service.contract.strict_json import strict_json
from training.compare_pool import Done, WorkerPool
from training.compare_worker import Task, finished, machine, work
from training.config import TrainConfig
from training.data.dataset import dataset_sha256, open_dataset
from training.data.fit_encoder import fit_encoder
from training.data.whole_files import write_whole
from training.recipes import TABLES, row_config
from training.rows import ROWS
from training.search import Search, Setting

PLAN = "plan.json"
FIRST_SEED = 1
TIMING, TIMING_FAILED = "timing.json", "timing_failed.txt"
SWEPT = "daian"  # the row whose number of levels is varied
# Runs of a table are short; one that is killed mostly begins again.
_CHECKPOINT_EVERY = 5_000


class CompareError(DaianError):
    """A comparison that cannot be made as asked."""


@dataclass(frozen=True)
class Comparison:
    """What to compare. `levels`: further numbers of similarity levels for DAIAN, each a row of its own."""

    table: str
    data: Path
    out: Path
    rows: tuple[str, ...]
    n_seeds: int = 5
    n_trials: int = 2
    n_jobs: int = 2
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise CompareError(f"no table {self.table!r}; tables are {', '.join(TABLES)}")
        unknown = [row for row in self.rows if row not in ROWS]
        if unknown or not self.rows:
            raise CompareError(f"no rows {', '.join(unknown) or 'given'}; rows are {', '.join(ROWS)}")
        if min(self.n_seeds, self.n_trials, self.n_jobs) < 1 or any(n < 2 for n in self.levels):
            raise CompareError("seeds, trials and jobs must be at least 1, levels at least 2")


@dataclass(frozen=True)
class PlannedRow:
    """One row to run. `n_levels`: its encoder's, when they are not the data set's. `ablation_of`: the whole model."""

    name: str
    title: str
    group: str
    config: TrainConfig
    n_levels: int | None = None
    ablation_of: str | None = None


@dataclass
class RowState:
    """How far a row has come. `runs`: what each finished run measured, by its name."""

    row: PlannedRow
    search: Search
    trials: dict[str, float | None] = field(default_factory=dict)
    setting: Setting | None = None
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_waiting: int = 0
    failure: str | None = None


@runtime_checkable
class Watcher(Protocol):
    """Whoever watches a comparison: `training.compare_progress`, or a list in tests."""

    def planned(self, n_tasks: int) -> None:
        """So many more pieces of work are known of."""
        ...

    def says(self, worker: int, row: str, name: str, text: str) -> None:
        """Where a worker stands."""
        ...

    def done(self, row: str, name: str, text: str) -> None:
        """A piece of work is over."""
        ...


def compare(comparison: Comparison, watcher: Watcher) -> dict[str, RowState]:
    """Runs all that is not finished yet; the state of every row by its name.

    Raises CompareError for a folder of another comparison, DataError for bad data.
    """
    _begin(comparison)
    states = {row.name: _state(row, comparison) for row in planned_rows(comparison)}
    with WorkerPool(work, comparison.n_jobs) as pool:
        runner = Runner(comparison, states, pool, watcher)
        runner.start()
        runner.run()
        runner.time()
    return states


def planned_rows(comparison: Comparison) -> list[PlannedRow]:
    """The rows in the order of ROWS, then the sweep of the number of levels."""
    wanted = [name for name in ROWS if name in comparison.rows]
    found = [
        PlannedRow(
            name, ROWS[name].title, ROWS[name].group, _config(comparison, name), ablation_of=ROWS[name].ablation_of
        )
        for name in wanted
    ]
    own = open_dataset(comparison.data).n_levels
    for n in dict.fromkeys(comparison.levels):
        if n == own and SWEPT in wanted:
            continue  # it is there already
        config = replace(_config(comparison, SWEPT), name=f"{comparison.table}/{SWEPT}_levels_{n}")
        found.append(PlannedRow(f"{SWEPT}_levels_{n}", f"DAIAN, n = {n}", "levels", config, n))
    return found


def _config(comparison: Comparison, row: str) -> TrainConfig:
    return replace(row_config(comparison.table, row), checkpoint_every=_CHECKPOINT_EVERY)


def _begin(comparison: Comparison) -> None:
    """The folder's plan, and every encoder that the rows need. Rows, seeds and levels may be added later."""
    is_begun = check_plan(comparison)
    levels = {encoder_folder(comparison, row.n_levels): row.n_levels for row in planned_rows(comparison)}
    # Fitted before anything is written: data that cannot be used leaves no folder that is bound to it.
    fitted = {
        folder: fit_encoder(comparison.data, n_levels)
        for folder, n_levels in levels.items()
        if not (is_begun and (folder / "encoder.json").is_file())
    }
    if not is_begun:
        comparison.out.mkdir(parents=True, exist_ok=True)
        plan = {**_plan(comparison), "machine": machine()}
        write_whole(comparison.out / PLAN, strict_json(plan, indent=1).encode())
    for folder, encoder in fitted.items():
        encoder.save(folder)


def _plan(comparison: Comparison) -> dict[str, Any]:
    return {
        "table": comparison.table,
        "data": open_dataset(comparison.data).name,
        "data_sha256": dataset_sha256(comparison.data),
        "trials": comparison.n_trials,
    }


def check_plan(comparison: Comparison) -> bool:
    """Whether the folder has a plan already. Raises CompareError when it is another comparison's."""
    path, plan = comparison.out / PLAN, _plan(comparison)
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if {key: found.get(key) for key in plan} != plan:
        raise CompareError(f"{comparison.out} holds a comparison of another table, data or search: choose another")
    return True


def encoder_folder(comparison: Comparison, n_levels: int | None) -> Path:
    """Where the encoder of so many levels is kept; None: of the data set's own."""
    return comparison.out / "encoders" / ("own" if n_levels is None else f"levels-{n_levels}")


def _state(row: PlannedRow, comparison: Comparison) -> RowState:
    rates = TABLES[comparison.table].learning_rates
    return RowState(row, Search(rates, comparison.n_trials))


class Runner:
    """Hands out the tasks of all rows as they become possible and takes in what comes back."""

    def __init__(
        self, comparison: Comparison, states: Mapping[str, RowState], pool: WorkerPool, watcher: Watcher
    ) -> None:
        self.comparison = comparison
        self.states = states
        self._pool = pool
        self._watcher = watcher

    def start(self) -> None:
        """The first task of every row. A row's later tasks go before other rows' first ones."""
        n_runs = sum(len(self._trials(state)) + self.comparison.n_seeds for state in self.states.values())
        self._watcher.planned(n_runs)
        for state in self.states.values():
            first = self._trials(state) or self._seeds(state, state.search.settings[0])[:1]
            if all(finished_or_none(task) for task in first):
                self._next(state)  # resumed: it was checked then
            else:
                self._pool.add(self._task(state, "check", "check", state.row.config))

    def run(self) -> None:
        """Until nothing is left to do."""
        for event in self._pool.events():
            task = event.task
            if not isinstance(event, Done):
                self._watcher.says(event.worker, task.row, task.name, event.text)
            elif task.kind == "check":
                self._checked(self.states[task.row], event)
            else:
                self._ran(self.states[task.row], event)

    def time(self) -> None:
        """One run of every row as exported graphs, in turn, when nothing else runs."""
        folders = {
            name: self._folder(state, _name_of_seed(FIRST_SEED))
            for name, state in self.states.items()
            if state.failure is None and _name_of_seed(FIRST_SEED) in state.runs and state.row.n_levels is None
        }
        path = self.comparison.out / TIMING
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not folders or (known and set(folders) <= set(known.get("rows", ()))):
            return
        self._watcher.planned(1)
        runs = tuple(folders.items())
        own = encoder_folder(self.comparison, None)
        self._pool.add(Task("timing", "all rows", "latency", self.comparison.data, path, own, runs=runs))
        for event in self._pool.events():
            if isinstance(event, Done):
                keep_failure_of_timing(self.comparison.out, event)
                self._watcher.done("all rows", "latency", event.failure or "timed")
            else:
                self._watcher.says(event.worker, "all rows", "latency", event.text)

    def _checked(self, state: RowState, event: Done) -> None:
        if event.failure is not None:
            self._fail(state, "the export check", event)
        else:
            self._next(state)

    def _ran(self, state: RowState, event: Done) -> None:
        name = event.task.name
        state.n_waiting -= 1
        if event.failure is not None:
            write_failure(event)
        self._watcher.done(state.row.name, name, event.failure or _shown(event.result))
        if name.startswith("trial"):
            state.trials[name] = None if event.failure else _value(event.result)
        elif event.failure is None:
            state.runs[name] = event.result
        elif state.failure is None:
            state.failure = f"{name}: {event.failure}"
        if state.n_waiting == 0:
            self._next(state)

    def _next(self, state: RowState) -> None:
        """The row's next tasks: its trials, then its seeds at the best setting; those that are finished are read."""
        if state.failure is not None:
            return
        trials = self._trials(state)
        if trials and not state.trials:
            self._submit(state, trials)
        elif state.setting is None:
            state.setting = state.search.best(list(_in_order(state.trials))) if trials else state.search.settings[0]
            if state.setting is None:
                state.failure = "every trial of its search failed"
            else:
                self._submit(state, self._seeds(state, state.setting))

    def _submit(self, state: RowState, tasks: Sequence[Task]) -> None:
        waiting: list[Task] = []
        for task in tasks:
            try:
                found = finished(task)
            except DaianError as error:
                state.failure = str(error)
                self._watcher.done(task.row, task.name, str(error))
                return
            if found is None:
                waiting.append(task)
            elif task.measured:
                state.runs[task.name] = found
                self._watcher.done(task.row, task.name, "was finished")
            else:
                state.trials[task.name] = _value(found)
                self._watcher.done(task.row, task.name, "was finished")
        state.n_waiting = len(waiting)
        if not waiting:
            self._next(state)
        for task in reversed(waiting):
            self._pool.add_first(task)

    def _fail(self, state: RowState, what: str, event: Done) -> None:
        state.failure = f"{what}: {event.failure}"
        write_failure(event)
        self._watcher.done(state.row.name, what, state.failure)

    def _trials(self, state: RowState) -> list[Task]:
        """A trial of every setting, at the first seed; none where there is nothing to choose."""
        if len(state.search.settings) == 1:
            return []
        config = replace(state.row.config, seed=FIRST_SEED)
        settings = enumerate(state.search.settings)
        return [self._task(state, "run", f"trial-{i}", setting.applied(config)) for i, setting in settings]

    def _seeds(self, state: RowState, setting: Setting) -> list[Task]:
        config = setting.applied(state.row.config)
        seeds = range(FIRST_SEED, FIRST_SEED + self.comparison.n_seeds)
        return [
            self._task(state, "run", _name_of_seed(seed), replace(config, seed=seed), measured=True) for seed in seeds
        ]

    def _task(
        self, state: RowState, kind: Literal["check", "run"], name: str, config: TrainConfig, measured: bool = False
    ) -> Task:
        encoder = encoder_folder(self.comparison, state.row.n_levels)
        folder = self._folder(state, name)
        return Task(kind, state.row.name, name, self.comparison.data, folder, encoder, config, measured)

    def _folder(self, state: RowState, name: str) -> Path:
        return self.comparison.out / "rows" / state.row.name / name


def finished_or_none(task: Task) -> dict[str, Any] | None:
    """As `finished`; None for a folder of another config too, which is told of when its turn comes."""
    try:
        return finished(task)
    except DaianError:
        return None


def write_failure(event: Done) -> None:
    """The traceback, where the row's folder can be looked into."""
    folder: Path = event.task.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "failed.txt", f"{event.failure}\n\n{event.trace}".encode())


def keep_failure_of_timing(out: Path, event: Done) -> None:
    """Why no latency stands in the report, until a later call can time the graphs."""
    path = out / TIMING_FAILED
    if event.failure is None:
        path.unlink(missing_ok=True)
    else:
        write_whole(path, f"{event.failure}\n\n{event.trace}".encode())


def _name_of_seed(seed: int) -> str:
    return f"seed-{seed}"


def _in_order(trials: Mapping[str, float | None]) -> Iterator[float | None]:
    for place in range(len(trials)):
        yield trials[f"trial-{place}"]


def _value(result: Mapping[str, Any]) -> float | None:
    value: float | None = result["validation"][result["select_by"]]
    return value


def _shown(result: Mapping[str, Any]) -> str:
    validation = f"validation {result['select_by']} {result['validation'][result['select_by']]:.4f}"
    test = result.get("test")
    return f"{validation}, test {test['gauc_request']:.4f}" if test else f"{validation} at {result['learning_rate']:g}"


def chosen_rows(rows: str | None, groups: str | None) -> tuple[str, ...]:
    """The rows of two lists with commas between; all rows without any. Raises CompareError for a group of no row."""
    if not rows and not groups:
        return tuple(ROWS)
    wanted = [name.strip() for name in (rows or "").split(",") if name.strip()]
    for group in (name.strip() for name in (groups or "").split(",") if name.strip()):
        found = [name for name, row in ROWS.items() if row.group == group]
        if not found:
            known = ", ".join(dict.fromkeys(row.group for row in ROWS.values()))
            raise CompareError(f"no row is in the group {group!r}; groups are {known}")
        wanted += found
    return tuple(dict.fromkeys(wanted))


def chosen_levels(levels: str | None) -> tuple[int, ...]:
    """The numbers of a list with commas between; none without any. Raises CompareError for what is no whole number."""
    wanted = [n.strip() for n in (levels or "").split(",") if n.strip()]
    wrong = [n for n in wanted if not n.isascii() or not n.isdecimal()]
    if wrong:
        raise CompareError(
            f"--levels {levels}: {', '.join(wrong)} is no whole number; give numbers of similarity levels with commas "
            "between, such as 2,4,6"
        )
    return tuple(int(n) for n in wanted)


def read_states(comparison: Comparison) -> dict[str, RowState]:
    """What is finished already, of the rows that were asked for and of all others in the folder. Trains nothing.

    Raises CompareError for a folder of another comparison, or of none.
    """
    if not check_plan(comparison):
        raise CompareError(f"{comparison.out} holds no comparison: call without --report-only first")
    states = {row.name: _state(row, comparison) for row in planned_rows(_with_all_rows(comparison))}
    for state in states.values():
        folder = comparison.out / "rows" / state.row.name
        for path in sorted(folder.glob("seed-*/measured.json")):
            state.runs[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
        if not state.runs:
            failures = sorted(folder.glob("*/failed.txt"))
            text = failures[0].read_text(encoding="utf-8").partition("\n")[0] if failures else "not trained yet"
            state.failure = text
        else:
            state.setting = Setting(next(iter(state.runs.values()))["learning_rate"])
    return states


def all_states(comparison: Comparison, ran: Mapping[str, RowState]) -> dict[str, RowState]:
    """The states of this call's rows, and beside them what the folder holds of rows that it was not asked for."""
    return {name: ran.get(name, state) for name, state in read_states(comparison).items()}


def _with_all_rows(comparison: Comparison) -> Comparison:
    """The same for the rows that were asked for and those with a finished run in the folder."""
    there = {path.parent.parent.name for path in (comparison.out / "rows").glob("*/seed-*/measured.json")}
    prefix = f"{SWEPT}_levels_"
    levels = sorted(int(name.removeprefix(prefix)) for name in there if name.startswith(prefix))
    rows = (*comparison.rows, *(name for name in ROWS if name in there))
    return replace(comparison, rows=tuple(dict.fromkeys(rows)), levels=(*comparison.levels, *levels))

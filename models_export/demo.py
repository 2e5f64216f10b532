"""`daian demo`: from nothing to a ranked, explained page in one command, and what it made is kept for the next time.

Called by `models_export.commands`. Each step looks for what an earlier demo left under `artifacts/demo` and makes only
what is missing: data, a DAIAN and a DIN, their numbers on the test split, the bundle. Then the running service is asked
(`models_export.demo_tour`). Folders are named after what went into them, so a changed recipe or data set is made anew.

Never here: anything that a shop would need in production; every step is a public command of its own.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models_export.demo_tour import Tour
from models_export.export import ExportPlan, export
from service.contract.bundle import Bundle, current_path, read_bundle
from service.contract.encoder import CONTRACT_VERSION
from service.contract.errors import BundleError
from training.commands import run_training
from training.config import to_dict
from training.data.prepare_wikispeedia import prepare_wikispeedia
from training.data.synthetic import World, simulate
from training.evaluate import Numbers, evaluate, lines_of, saved_numbers
from training.recipes import recipe
from training.table import ranking_table

HOME = Path("artifacts/demo")
WORLD = World(n_requests=10_000, n_users=1_500, n_items=1_200, seed=1)
SHORT_WORLD = World(n_requests=4_000, n_users=600, n_items=800, seed=1)
SIMULATED_RECIPES = ("daian_demo", "din_demo")
WIKISPEEDIA_RECIPES = ("daian_wikispeedia", "din_wikispeedia")
_WIKISPEEDIA_FILE = "articles.tsv"


@dataclass(frozen=True)
class DemoPlan:
    """What to show. `data`: None for the simulated shop, a prepared folder, or a folder of Wikispeedia's files."""

    data: Path | None = None
    short: bool = False
    port: int = 8000
    keep_serving: bool = False


def demo(plan: DemoPlan) -> None:
    """Run the whole demo and print it. Raises the errors of the steps; what is finished stays for the next run."""
    started = time.monotonic()
    steps = Steps(7)
    data = _data(plan, steps)
    recipes = _recipes(data)
    runs = [_train(name, data, steps) for name in recipes]
    with steps.step("The test day: both models beside what counting knows") as step:
        numbers = _numbers(runs, data, step)
    with steps.step("Export: two ONNX graphs, mapped tables, index, golden requests, parity") as step:
        bundle = _bundle(runs[0], data, step)
    with Tour(bundle, data, steps, plan.port) as tour:
        tour.show()
        print(f"\nThe test split:\n{ranking_table(numbers)}")
        tour.print_farewell(time.monotonic() - started)
        if plan.keep_serving or _wants_more():
            tour.serve_until_interrupted()


class Steps:
    """Numbers and times the steps; each prints a line when it begins, its notes, and how long it took."""

    def __init__(self, n_steps: int) -> None:
        self._n_steps = n_steps
        self._number = 0

    def step(self, title: str) -> "Step":
        """The next step, as a `with` block."""
        self._number += 1
        return Step(f"[{self._number}/{self._n_steps}] {title}")


class Step:
    """One step of the demo; call it with a line to print below its title."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> "Step":
        self._started = time.monotonic()
        print(f"\n{self._title}", flush=True)
        return self

    def __call__(self, line: str) -> None:
        print(f"      {line}", flush=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self(f"done in {time.monotonic() - self._started:.1f} s")


# --- data ------------------------------------------------------------------------------------------------------------


def _data(plan: DemoPlan, steps: Steps) -> Path:
    """The prepared data set: the caller's own, Wikispeedia's, or the simulated shop."""
    if plan.data is not None and (plan.data / "dataset.json").is_file():
        with steps.step(f"Data: the prepared folder {plan.data}"):
            return plan.data
    if plan.data is not None:
        return _prepared_wikispeedia(plan.data, steps)
    world = SHORT_WORLD if plan.short else WORLD
    folder = HOME / f"shop-{_key(vars(world))}"
    with steps.step(f"Data: simulate a shop of {world.n_items:,} items and {world.n_requests:,} page views") as step:
        if _kept(folder / "dataset.json", step):
            return folder
        simulate(folder, world)
    return folder


def _prepared_wikispeedia(source: Path, steps: Steps) -> Path:
    if not (source / _WIKISPEEDIA_FILE).is_file():
        raise FileNotFoundError(
            f"{source} is neither a prepared folder (dataset.json) nor Wikispeedia's files ({_WIKISPEEDIA_FILE}): "
            "prepare your logs with `daian data prepare logs` first"
        )
    sizes = {path.name: path.stat().st_size for path in sorted(source.glob("*.tsv"))}
    folder = HOME / f"wikispeedia-{_key(sizes)}"
    with steps.step(f"Data: prepare Wikispeedia from {source}") as step:
        if not _kept(folder / "dataset.json", step):
            folder.parent.mkdir(parents=True, exist_ok=True)
            prepare_wikispeedia(source, folder, show_progress=sys.stderr.isatty())
    return folder


def _recipes(data: Path) -> tuple[str, str]:
    name = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["name"]
    return WIKISPEEDIA_RECIPES if name.startswith("wikispeedia") else SIMULATED_RECIPES


# --- runs, numbers, bundle -------------------------------------------------------------------------------------------


def _train(name: str, data: Path, steps: Steps) -> Path:
    """The run folder of a recipe on this data; an interrupted training goes on where it was."""
    config = recipe(name)
    prepared = (data / "dataset.json").read_text(encoding="utf-8")
    content = {"config": to_dict(config), "data": prepared, "contract": CONTRACT_VERSION, "daian": version("daian")}
    folder = HOME / f"run-{name}-{_key(content)}"
    with steps.step(f"Train {name}") as step:
        if not _kept(folder / "weights.pt", step):
            run_training(name, data, folder)
    return folder


def _numbers(runs: list[Path], data: Path, tell: Callable[[str], None]) -> Numbers:
    """Numbers by ranker: both models, and the counting lines, which are computed once."""
    numbers: Numbers = {}
    for run in runs:
        found = saved_numbers(run, "test")
        if found is not None:
            tell(f"{run.name}: evaluated before")
        numbers |= found or evaluate(run, data, "test", lines_of(numbers) or None)
    return numbers


def _bundle(run: Path, data: Path, tell: Callable[[str], None]) -> Bundle:
    """The bundle of a run, published before or now."""
    root = HOME / f"bundles-{run.name.removeprefix('run-')}"
    try:
        bundle = read_bundle(current_path(root))
        tell(f"{bundle.path} is there, its hashes are right")
        return bundle
    except BundleError:
        return export(ExportPlan(run, data, root), tell)


def _kept(path: Path, tell: Callable[[str], None]) -> bool:
    if path.is_file():
        tell(f"{path.parent} is there from before")
        return True
    return False


def _key(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _wants_more() -> bool:
    """On a terminal the visitor may keep the service; anywhere else the demo ends."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return input("\nKeep serving, to try it yourself? [y/N] ").strip().lower().startswith("y")

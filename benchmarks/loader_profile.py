"""Part `loader`: is the loader ever what training waits for? Where the time of a training step goes.

One process and one model; its batches come by turns from the loader that `daian train` has (a thread that reads row
groups, decodes and encodes them ahead) and from memory, made before the clock starts. Torch has one thread, the process
all cores. Needs no peer: the same pages as part `training`.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.page import Found, Table
from benchmarks.plan import Plan
from benchmarks.scene import Scene
from benchmarks.training_speed import NAMES, OURS, our_trainer, prepare, told
from service.bench.turns import Spread, in_turns, ratio

SOURCES = ("loaded", "ready")


def measure(plan: Plan, tell: Callable[[str], None] = print) -> Found:
    """Both models at every number of candidates a request."""
    scene = Scene(n_items=plan.training_items)
    rows, raw = [], {}
    for n in plan.training_candidates:
        folder = plan.folder / "training" / f"{plan.training_items}-{n}"
        prepare(scene, n, plan.training_rows, folder)
        for name in OURS:
            with our_trainer(folder, name, "loader") as trainer:
                subjects = {source: told(trainer, f"{source} {plan.training_s}") for source in SOURCES}
                found = in_turns(subjects, plan.training_rounds)
            rows.append([str(n), NAMES[name], *line_of(found)])
            raw[f"{name} {n}"] = found
            tell(f"{n} candidates a request, {NAMES[name]}: {', '.join(rows[-1][2:])}")
    head = ["candidates a request", "model", "candidates/s", "the same from memory", "loaded / from memory",
            "waiting for a batch, share of the time", "loader's processor time / the step's"]  # fmt: skip
    caption = (
        f"{plan.training_rounds} turns of {plan.training_s:g} s each, medians (quartiles); one thread takes the steps, "
        "one loads: it reads row groups, decodes and encodes them, nothing is kept."
    )
    return Found("loader", "The loader of the training", [Table(caption, head, rows)], (), (), raw)


def line_of(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The figures of one line; `found` has the turns of both sources, of the same rounds."""
    loaded, ready = (found[source] for source in SOURCES)
    speeds = [[turn["candidates"] / turn["seconds"] for turn in turns] for turns in (loaded, ready)]
    waited = [turn["waited_s"] / turn["seconds"] for turn in loaded]
    work = [turn["loader_cpu_s"] / turn["step_cpu_s"] for turn in loaded]
    shown = [Spread.of(values).shown() for values in speeds]
    return [*shown, ratio(*speeds).shown(), Spread.of(waited).shown(), Spread.of(work).shown()]

"""A comparison from plan to report: searched alike, resumed without training again, failures told beside the rest."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.unit.training.test_train import SMALL_WORLD
from training import commands, compare_worker, report_sections
from training import compare as compare_module
from training.checkpoint import read_config
from training.compare import CompareError, Comparison, all_states, chosen_levels, chosen_rows, compare, read_states
from training.compare_inside import with_permuted_triggers
from training.compare_pool import Done, Said, WorkerPool
from training.data.fit_encoder import fit_encoder
from training.data.request_files import read_requests
from training.data.synthetic import simulate
from training.metrics import rela_impr
from training.recipes import TABLES
from training.report import write_report
from training.report_numbers import report_numbers
from training.report_page import Figure, Heading, Table
from training.rows import ROWS
from training.scores import load_scores
from training.truth import read_truth

ROWS_HERE = ("din", "daian")


class PoolHere(WorkerPool):
    """Works tasks off in this very process."""

    worked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, work: Callable[[Any, Callable[[str], None]], Any], n: int) -> None:
        self._work = work
        self._tasks: list[Any] = []
        self.n = n

    def __enter__(self) -> "PoolHere":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def add(self, task: Any) -> None:
        self._tasks.append(task)

    def add_first(self, task: Any) -> None:
        self._tasks.insert(0, task)

    def events(self) -> Iterator[Done | Said]:
        while self._tasks:
            task = self._tasks.pop(0)
            self.worked.append((task.row, task.name))
            try:
                yield Done(task, self._work(task, lambda _text: None))
            except Exception as error:  # noqa: BLE001 - as the real one
                yield Done(task, None, f"{type(error).__name__}: {error}", "Traceback")


class Watching:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def planned(self, n_tasks: int) -> None:
        pass

    def says(self, worker: int, row: str, name: str, text: str) -> None:
        pass

    def done(self, row: str, name: str, text: str) -> None:
        self.lines.append(f"{row} {name}: {text}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shop"
    simulate(folder, SMALL_WORLD)
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, one epoch, and no exporter, which has tests of its own."""
    table = TABLES["small"]
    quick = replace(table, size=replace(table.size, epochs=1), learning_rates=(1e-3, 2e-3))
    monkeypatch.setitem(TABLES, "small", quick)
    monkeypatch.setattr(compare_module, "WorkerPool", PoolHere)
    monkeypatch.setattr(compare_worker, "entry_points", lambda group: [])  # noqa: ARG005
    monkeypatch.setattr(compare_worker, "_held", None)
    PoolHere.worked = []


def comparison(world: Path, out: Path, rows: tuple[str, ...] = ROWS_HERE, **changed: Any) -> Comparison:
    return Comparison("small", world, out, rows, n_seeds=2, n_trials=2, n_jobs=1, **changed)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared") / "out"


def test_every_row_is_searched_alike_then_trained_over_seeds_and_never_twice(
    world: Path, finished_folder: Path
) -> None:
    wanted = comparison(world, finished_folder, levels=(3,))
    first = compare(wanted, Watching())
    assert all(state.failure is None and list(state.runs) == ["seed-1", "seed-2"] for state in first.values())
    for row in first:
        folder = finished_folder / "rows" / row
        trials = [read_config(folder / f"trial-{i}")[0] for i in range(2)]
        assert {c.optim.learning_rate for c in trials} == {1e-3, 2e-3}
        assert {c.seed for c in trials} == {1}
        values = [json.loads((folder / f"trial-{i}" / "measured.json").read_text()) for i in range(2)]
        assert all("test" not in value for value in values)  # a trial never sees the test split
        best = max(values, key=lambda value: value["validation"]["gauc_request"])["learning_rate"]
        assert {read_config(folder / f"seed-{n}")[0].optim.learning_rate for n in (1, 2)} == {best}
        assert load_scores(folder / "seed-1" / "scores_test.npz").clicks.any()
        chosen = next(value for value in values if value["learning_rate"] == best)
        tried = json.loads((folder / "seed-1" / "measured.json").read_text())
        assert tried["cpu_seconds"] == chosen["cpu_seconds"]  # the winning trial is the first seed, not trained twice
        assert "test" in tried
    assert read_config(finished_folder / "rows" / "daian_levels_3" / "seed-1")[0].seed == 1

    PoolHere.worked = []
    again = compare(wanted, Watching())
    assert [work for work in PoolHere.worked if work[0] != "all rows"] == []
    assert {name: state.runs for name, state in again.items()} == {
        name: json.loads(json.dumps(state.runs)) for name, state in read_states(wanted).items()
    }


def test_where_there_is_nothing_to_choose_no_trial_is_run(world: Path, tmp_path: Path) -> None:
    wanted = replace(comparison(world, tmp_path / "out", ("din",)), n_seeds=1, n_trials=1)
    assert list(compare(wanted, Watching())["din"].runs) == ["seed-1"]
    assert [work[1] for work in PoolHere.worked if work[0] == "din"] == ["check", "seed-1"]
    PoolHere.worked = []
    assert list(compare(wanted, Watching())["din"].runs) == ["seed-1"]
    assert [work for work in PoolHere.worked if work[0] != "all rows"] == []


def test_the_report_names_rows_claims_and_lines_and_needs_nothing_else(world: Path, finished_folder: Path) -> None:
    wanted = comparison(world, finished_folder, levels=(3,))
    paths = write_report(wanted, compare(wanted, Watching()))
    found = json.loads(paths[0].read_text())
    row = found["rows"]["daian"]
    seeds = [json.loads((finished_folder / f"rows/daian/seed-{n}/measured.json").read_text())["test"] for n in (1, 2)]
    assert row["numbers"]["auc"]["mean"] == pytest.approx(np.mean([seed["auc"] for seed in seeds]))
    assert row["numbers"]["auc"]["sd"] == pytest.approx(np.std([seed["auc"] for seed in seeds], ddof=1))
    assert found["best_rival"] == "din"
    text, page = paths[1].read_text(), paths[2].read_text()
    assert "DAIAN is ahead of DIN in GAUC" in text
    assert "nan" not in text.lower().replace("dominan", "")
    assert found["judged_by"] == "gauc_request"
    shares = [
        json.loads((finished_folder / f"rows/daian/seed-{n}/measured.json").read_text())["inside"]["semantic_share"]
        for n in (1, 2)
    ]
    within = [seed["cold"] - seed["warm"] for seed in shares]
    assert row["contrasts"]["norm_ratio"]["mean"] == pytest.approx(np.mean(within))
    assert row["inside"]["semantic_share"]["cold"]["sd"] == pytest.approx(np.std([s["cold"] for s in shares], ddof=1))
    means = [row["by_intent_diversity"]["1"]["gauc_user"]["mean"] for row in (row, found["rows"]["din"])]
    gain = row["over_base_by_diversity"]["groups"]["1"]
    assert gain["difference"] == pytest.approx(means[0] - means[1])
    assert gain["low"] < gain["difference"] < gain["high"]
    for name, number in row["intervals"].items():
        assert number["value"] == pytest.approx(row["numbers"][name]["mean"])
        assert number["low"] <= number["value"] <= number["high"]
    assert set(row["intervals"]) == set(row["numbers"])
    # One epoch: whether DIN is a hair above chance yet is the processor's choice.
    base = found["rows"]["din"]["numbers"]["gauc_request"]["mean"]
    over_it = pytest.approx(rela_impr(row["numbers"]["gauc_request"]["mean"], base)) if base > 0.5 else None
    assert row["rela_impr"] == row["rela_impr_interval"]["value"] == over_it
    assert "rela_impr_interval" not in found["rows"]["din"]
    truth = read_truth(world, "test")
    assert truth is not None
    scored = load_scores(finished_folder / "rows/daian/seed-1/scores_test.npz")
    known = (truth.click_share.sum(axis=1) > 0) & np.isin(truth.request, scored.requests[scored.has_intent])
    assert row["true_intent"]["all"]["true"] == pytest.approx(truth.click_share[known].mean(axis=0))
    assert row["true_intent"]["all"]["n_requests"] == known.sum() == row["intent"]["all"]["n_requests"]
    assert row["true_intent"]["all"]["observed"] == pytest.approx(row["intent"]["all"]["observed"])
    for side in ("predicted", "observed", "true"):
        assert f"| broad by clicks, {side} " in text
    assert "constant training mean" in text
    assert "New and known items and users" in text
    assert "No latency: not timed: DIN, DAIAN; there was no exporter" in text
    assert "2 settings tried" in text
    assert "<svg" in page
    assert not any(word in page for word in ("<script", "src=", "<link", "@import"))


SECTIONS = [
    "The table",
    "Intervals of the table",
    "What it costs",
    "The papers' claims on this data",
    "Counting alone",
    "Under the trigger of another request",
    "Against the oracle",
    "Predicted and observed intent (DAIAN, Fig. 5)",
    "GAUC over DIN by intent diversity (Fig. 6)",
    "New and known items and users",
    "The first of a page",
    "Number of similarity levels (Fig. 7)",
    "Ablations (DAIAN: Table 2)",
    "Click rate by similarity level, and reliability",
    "Inside the models",
]


@pytest.fixture(scope="module")
def whole_folder(finished_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a report can speak of: an ablation (DAIAN's own runs under its name), latencies and a note."""
    whole = tmp_path_factory.mktemp("whole") / "out"
    shutil.copytree(finished_folder, whole)
    shutil.copytree(whole / "rows" / "daian", whole / "rows" / "daian_no_die")
    rows = {name: {"median_ms": ms} for name, ms in (("din", 2.0), ("daian", 5.0), ("daian_no_die", 3.0))}
    (whole / "timing.json").write_text(json.dumps({"rows": rows}))
    path = whole / "rows" / "din" / "seed-1" / "measured.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"notes": ["start: no item has a vector"]}))
    return whole


@pytest.fixture(scope="module")
def whole_numbers(world: Path, whole_folder: Path) -> dict[str, Any]:
    wanted = comparison(world, whole_folder)
    return report_numbers(wanted, all_states(wanted, {}))


def headings_of(found: dict[str, Any]) -> list[str]:
    return [block.text for block in report_sections.sections(found) if isinstance(block, Heading)]


def test_no_section_of_the_report_is_missing(whole_numbers: dict[str, Any]) -> None:
    assert headings_of(whole_numbers) == [*SECTIONS, "Failures and notes"]
    blocks = report_sections.sections(whole_numbers)
    (costs,) = [block for block in blocks if isinstance(block, Table) and "latency ms" in block.header]
    (daian,) = [dict(zip(costs.header, row, strict=True)) for row in costs.rows if row[0] == "DAIAN"]
    assert (daian["latency ms"], daian["ratio to DIN"]) == ("5.00", "2.50")
    assert float(daian["training, CPU s"].split()[0]) > 0
    assert int(daian["parameters"].replace(",", "")) > int(daian["of them tables"].replace(",", "")) > 0
    page = "".join(block.svg for block in blocks if isinstance(block, Figure))
    figures = re.findall('<text x="56" y="18" font-weight="600">(.*?)</text>', page)
    drawn = (
        "broad by clicks: JS", "gain in GAUC per user over DIN", "DAIAN by number of levels", "DAIAN: GAUC request",
        "click rate and mean prediction by level", "reliability (first seed)",
    )  # fmt: skip
    assert [title for title in drawn if not any(figure.startswith(title) for figure in figures)] == []


def test_a_section_that_vanishes_is_seen_and_said(
    whole_numbers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: with any one of them gone the list is another; one that may lack is then named, with the reason."""
    parts = report_sections._PARTS
    assert [title for _, title, _ in parts if title] == [*SECTIONS, "Failures and notes"]
    for gone in SECTIONS:
        without = tuple(((lambda _found: iter(())) if part[1] == gone else part[0], *part[1:]) for part in parts)
        monkeypatch.setattr(report_sections, "_PARTS", without)
        there = headings_of(whole_numbers)
        assert gone not in there
        (why,) = [why for _, title, why in parts if title == gone]
        last = report_sections.sections(whole_numbers)[-1]
        assert (there[-1] == "Not in this report") == bool(why)
        assert not why or (isinstance(last, Table) and last.rows == ((gone, why),))


def test_a_call_with_fewer_rows_reports_those_of_the_folder_too(world: Path, finished_folder: Path) -> None:
    few = comparison(world, finished_folder, rows=("din",))
    states = compare(few, Watching())
    assert list(states) == ["din"]
    found = json.loads(write_report(few, states)[0].read_text())
    assert list(found["rows"]) == ["din", "daian", "daian_levels_3"]
    assert found["comparison"]["n_settings"] == 2
    assert all(len(row["code_sha256"]) == 1 for row in found["rows"].values())


def test_only_a_report_of_another_plan_or_of_no_plan_is_refused(
    world: Path, finished_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CompareError, match="another table"):
        read_states(replace(comparison(world, finished_folder), n_trials=1))
    with pytest.raises(CompareError, match="no comparison"):
        read_states(comparison(world, tmp_path))


def test_runs_of_older_programs_are_reported_without_what_they_lack(
    world: Path, finished_folder: Path, tmp_path: Path
) -> None:
    old = tmp_path / "out"
    shutil.copytree(finished_folder, old)
    for path in old.glob("rows/*/seed-*/measured.json"):
        run = json.loads(path.read_text())
        del run["code_sha256"]
        path.write_text(json.dumps(run))
        (path.parent / "scores_test_permuted.npz").unlink()
    wanted = comparison(world, old)
    found = json.loads(write_report(wanted, read_states(wanted))[0].read_text())
    kept = json.loads(write_report(comparison(world, finished_folder), {})[0].read_text())
    assert "true_minus_random_trigger" not in found["rows"]["daian"]
    assert "true_minus_random_trigger" in kept["rows"]["daian"]
    assert found["rows"]["daian"]["code_sha256"] == ["unknown"]


def test_a_row_that_fails_is_reported_and_the_others_go_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ROWS["daian"].config(TABLES["small"].size)

    def broken(_size: object) -> Any:
        return replace(whole, n_heads=7)  # does not divide the width

    monkeypatch.setitem(ROWS, "daian", replace(ROWS["daian"], config=broken))  # type: ignore[arg-type]
    wanted = comparison(world, tmp_path / "out")
    states = compare(wanted, Watching())
    assert states["daian"].failure is not None
    assert list(states["din"].runs) == ["seed-1", "seed-2"]
    assert "failed: " in write_report(wanted, states)[1].read_text()


def test_same_seeds_give_the_same_numbers(world: Path, tmp_path: Path, finished_folder: Path) -> None:
    states = compare(comparison(world, tmp_path / "out"), Watching())
    for row, state in states.items():
        for name, run in state.runs.items():
            other = json.loads((finished_folder / "rows" / row / name / "measured.json").read_text())
            assert {key: run["test"][key] for key in ("auc", "log_loss")} == {
                key: other["test"][key] for key in ("auc", "log_loss")
            }


def test_a_folder_of_another_search_and_unknown_names_are_refused(world: Path, finished_folder: Path) -> None:
    with pytest.raises(CompareError, match="another table"):
        compare(replace(comparison(world, finished_folder), n_trials=1), Watching())
    with pytest.raises(CompareError, match="no rows"):
        comparison(world, finished_folder, rows=("dinn",))
    with pytest.raises(CompareError, match="no row is in the group"):
        chosen_rows(None, "rivals")
    assert chosen_rows("din", "daian")[:2] == ("din", "daian")


@pytest.mark.parametrize("levels", ["a,b", "2,4.5", "4,-2", "²"])
def test_levels_that_are_no_numbers_are_refused_by_the_name_of_their_option(
    world: Path, tmp_path: Path, levels: str
) -> None:
    assert chosen_levels("2, 4,") == (2, 4)
    assert chosen_levels(None) == chosen_levels("") == ()
    with pytest.raises(CompareError, match=f"--levels {re.escape(levels)}: .* no whole number"):
        commands.compare("small", data=world, out=tmp_path / "out", levels=levels)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CompareError, match="levels at least 2"):
        commands.compare("small", data=world, out=tmp_path / "out", levels="1")


def test_permuted_triggers_leave_no_trace_of_the_true_one(world: Path) -> None:
    requests, _ = next(read_requests(world / "test"))
    rules = fit_encoder(world).rules
    permuted = with_permuted_triggers(requests, rules, np.random.default_rng(0))
    assert sorted(permuted.trigger.tolist()) == sorted(requests.trigger.tolist())
    assert (permuted.trigger != requests.trigger).mean() > 0.5

    def openings(batch: Any) -> int:
        owner = batch.behaviour_request
        age = batch.requested_at[owner] - batch.behaviour_at
        return int(((batch.behaviour_item == requests.trigger[owner]) & (age <= rules.opening_window_s * 1000)).sum())

    assert openings(permuted) == 0
    assert permuted.candidate is requests.candidate

"""For one run what a comparison shows of its rows beyond the ranking: random trigger, gates, oracle, latency.

Called by `training.evaluate`. The work is that of `training.compare_inside` and `training.report_intents`, and what
comes out has the shape of a comparison's numbers, so that `training.evaluation_report` says it with the sections of
that report. A bundle beside the run is measured in the same way, but for what is inside it and its latency.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.contract.errors import DaianError
from service.contract.rules import HistoryRules
from training.checkpoint import Run
from training.compare_inside import look_inside, permuted_requests
from training.data.dataset import Split, open_dataset
from training.data.request_files import write_requests
from training.measures import Plan
from training.paired import paired_test, verdict
from training.report_cells import COLUMNS, spread
from training.report_intents import beside_truth
from training.scores import Scored, all_numbers
from training.split_facts import Candidates, TrainingDays
from training.train import evaluation_batches
from training.truth import Truth, oracle_numbers, read_truth

# Run folders by name, a data folder, whom to tell -> medians: models_export.latency, by its entry point.
TimeGraphs = Callable[[Mapping[str, Path], Path, Callable[[str], None]], Mapping[str, Any]]

ScoreBundle = Callable[[Path, Path, Split], tuple[str, Scored]]  # bundle, data folder, split -> its name, its scores

NO_EXPORTER = "nothing installed can export it: install the project with its extra `export`"


def look_behind(
    run: Run,
    data_folder: Path,
    split: Split,
    scores: Mapping[str, Scored],
    permuted: Mapping[str, Scored],
    facts: tuple[Candidates, TrainingDays],
    judged_by: str,
    plan: Plan,
) -> dict[str, Any]:
    """`judged_by`, `judged_title`, `rows` by ranker and, of a simulated world, `oracle`: as `report_numbers` has them.

    `scores`: the run under its config's name, then others that were scored on the same split. `permuted`: the same
    under triggers of other requests.
    """
    truth, name = read_truth(data_folder, split), run.config.name
    found: dict[str, Any] = {
        "judged_by": judged_by,
        "judged_title": COLUMNS[judged_by],
        "rows": {ranker: _row(ranker, scored, judged_by, truth) for ranker, scored in scores.items()},
    }
    if truth is not None:
        found["oracle"] = oracle_numbers(truth)
    batches = evaluation_batches(data_folder, split, run.encoder, run.config)
    extras = look_inside(run.model, batches.epoch(), *facts, truth)
    found["rows"][name]["inside"] = {
        extra: {group: spread([mean]) for group, mean in means.items()} for extra, means in extras.items()
    }
    for ranker, scored in permuted.items():
        found["rows"][ranker] |= _control(ranker, scores[ranker], scored, judged_by, plan)
    return found


def _row(title: str, scored: Scored, judged_by: str, truth: Truth | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "title": title,
        "numbers": {judged_by: spread([all_numbers(scored)[judged_by]])},
        "random_trigger": spread([]),
        "inside": {},
    }
    return row if truth is None else row | beside_truth([scored], truth)


def _control(name: str, scored: Scored, other: Scored, judged_by: str, plan: Plan) -> dict[str, Any]:
    """A ranker under triggers of other requests, and the paired test of what it loses."""
    test = paired_test([scored], [other], judged_by, plan.unit, plan.resampling)
    sentence = verdict(test, name, "itself under the trigger of another request", COLUMNS[judged_by])
    return {
        "random_trigger": spread([all_numbers(other)[judged_by]]),
        "true_minus_random_trigger": {**test._asdict(), "p_holm": test.p, "sentence": sentence},
    }


def bundle_under_other_triggers(
    score_bundle: ScoreBundle, against: Path, data_folder: Path, split: Split, rules: HistoryRules
) -> Scored:
    """A bundle on the very permutation that the run is scored on, written as a folder of requests, for it reads those.

    `rules`: the run's, which say what click opened a page.
    """
    with tempfile.TemporaryDirectory(prefix="daian-permuted-") as temporary:
        path = Path(temporary) / split / "00000.parquet"
        with write_requests(path, open_dataset(data_folder).schema) as file:
            for requests, clicks in permuted_requests(rules, data_folder, split):
                file.write(requests, clicks)
        return score_bundle(against, Path(temporary), split)[1]


def latency(run_folder: Path, data_folder: Path, time_graphs: TimeGraphs | None) -> dict[str, Any]:
    """Milliseconds of the run's exported graphs, as a comparison times them; `missing` says why there are none."""
    if time_graphs is None:
        return {"missing": NO_EXPORTER}
    try:
        found = time_graphs({"run": run_folder}, data_folder, lambda _text: None)
    except DaianError as error:
        return {"missing": str(error)}
    if "run" not in found.get("rows", {}):
        return {"missing": "it could not be exported"}
    sizes = {key: value for key, value in found.items() if key != "rows"}
    return {**sizes, **found["rows"]["run"]}

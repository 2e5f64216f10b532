"""The paired tests of a comparison: against the best rival, DAIAN and the whole model, and without the trigger.

Called by `training.report_numbers`. Tests are paired over users of the test split, each ranker the mean of its seeds;
those that claims go by have a second interval, `over_seeds`, which holds the chance of the seeds too.
At most the test scores of four rows are in memory at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.bootstrap import USUAL, Resampling
from training.paired import SIGNIFICANT, paired_test
from training.report_seeds import FEWEST_SEEDS, difference_over_seeds
from training.scores import Scored

SWEPT = "daian"
AGAINST_BEST, AGAINST_DAIAN = "against_best_rival", "daian_minus_this"
OVER_SEEDS = "over_seeds"
AGAINST_WHOLE, AGAINST_PERMUTED = "whole_minus_this", "true_minus_random_trigger"
_RESAMPLES_A_ROW = 100  # p is at least 2 / (n + 1): with fewer no star could outlive Holm's factor

Loader = Callable[[str], list[Scored]]
Rows = Mapping[str, dict[str, Any]]


def add_tests(rows: Rows, rival: str | None, judged_by: str, load: Loader, load_permuted: Loader) -> None:
    """Puts the tests into the rows, with p adjusted by Holm within each kind of test.

    `load_permuted`: a row's scores under permuted triggers, empty where runs did not keep them.
    """
    trained = [name for name, row in rows.items() if "numbers" in row]
    resampling = Resampling(n=max(USUAL.n, _RESAMPLES_A_ROW * len(trained)))

    def test(left: Sequence[Scored], right: Sequence[Scored]) -> dict[str, Any]:
        return paired_test(left, right, judged_by, resampling=resampling)._asdict()

    def of_a_claim(left: Sequence[Scored], right: Sequence[Scored], same_weights: bool = False) -> dict[str, Any]:
        found = test(left, right)
        if min(len(left), len(right)) < FEWEST_SEEDS:
            return found
        return {**found, OVER_SEEDS: difference_over_seeds(left, right, judged_by, same_weights)._asdict()}

    best = load(rival) if rival else None
    daian = load(SWEPT) if SWEPT in trained else None
    for name in trained:
        own, row = load(name), rows[name]
        if best is not None and name != rival:
            row[AGAINST_BEST] = of_a_claim(own, best)
        if daian is not None and name != SWEPT:
            row[AGAINST_DAIAN] = of_a_claim(daian, own)
        whole = row["ablation_of"]
        if whole in trained:
            row[AGAINST_WHOLE] = row[AGAINST_DAIAN] | {} if whole == SWEPT else of_a_claim(load(whole), own)
        permuted = load_permuted(name)
        if permuted:
            row[AGAINST_PERMUTED] = of_a_claim(own, permuted, same_weights=True)
    for kind in (AGAINST_BEST, AGAINST_DAIAN, AGAINST_WHOLE, AGAINST_PERMUTED):
        found = [rows[name][kind] for name in trained if kind in rows[name]]
        for one, adjusted in zip(found, holm([one["p"] for one in found]), strict=True):
            one["p_holm"] = adjusted


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): the chance of one false find among all of them stays below the bound.

    NaN stays NaN and counts as no test.
    """
    order = sorted((at for at, value in enumerate(p) if not math.isnan(value)), key=lambda at: p[at])
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[at]))
        adjusted[at] = largest
    return adjusted


def is_starred(test: Mapping[str, float]) -> bool:
    """Whether a difference stands after Holm's adjustment."""
    return test["p_holm"] < SIGNIFICANT

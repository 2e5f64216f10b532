"""The small search that every row of a table is given alike: which settings it tries, and which of them it keeps.

Called by `training.compare`. Optuna proposes, over the grid of the table, from a seed of its own; the study lives in
memory and is made again from what is on disk, so a search that was interrupted goes on with the same proposals. Sees
validation numbers only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.trial import TrialState

from training.config import TrainConfig

SEARCH_SEED = 1_000  # of proposals; the runs that try them have the table's first seed
LEARNING_RATE = "learning_rate"


@dataclass(frozen=True)
class Setting:
    """What a trial may change in a run."""

    learning_rate: float

    def applied(self, config: TrainConfig) -> TrainConfig:
        """The run with this setting."""
        return replace(config, optim=replace(config.optim, learning_rate=self.learning_rate))


class AskedGrid(GridSampler):
    """A grid that is asked, not run: after the last cell it has no `Study.optimize` to stop, and must not try."""

    def after_trial(self, *_args: Any, **_named: Any) -> None:
        """Nothing."""


class Search:
    """The trials of one row. The same rates, number of trials and seed propose the same settings in the same order."""

    def __init__(self, learning_rates: Sequence[float], n_trials: int, seed: int = SEARCH_SEED) -> None:
        """Proposes min(n_trials, number of rates) settings: a grid holds no more. Raises ValueError for none."""
        rates = tuple(dict.fromkeys(learning_rates))
        if not rates or n_trials < 1:
            raise ValueError(f"a search needs a learning rate and a trial, found {len(rates)} and {n_trials}")
        space: Mapping[str, Sequence[Any]] = {LEARNING_RATE: list(rates)}
        quiet = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(direction="maximize", sampler=AskedGrid(space, seed=seed))
            self._trials = [self._study.ask() for _ in range(min(n_trials, len(rates)))]
            found = [trial.suggest_categorical(LEARNING_RATE, list(rates)) for trial in self._trials]
        finally:
            optuna.logging.set_verbosity(quiet)
        self.settings = tuple(Setting(float(rate)) for rate in found)

    def best(self, values: Sequence[float | None]) -> Setting | None:
        """The setting with the largest validation number, given one for each; None is a trial that failed.

        None when all failed. Call it once.
        """
        for trial, value in zip(self._trials, values, strict=True):
            if value is None or math.isnan(value):
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, value)
        if all(value is None or math.isnan(value) for value in values):
            return None
        return Setting(float(self._study.best_params[LEARNING_RATE]))

"""What counting and cosines alone rank by: the lines that a model must beat.

Called by `daian baselines` and by `training.evaluate`, which prints them beside a model. Counts come from the training
split. The weights of the conditional logits come from the validation split: on the training split the counts hold the
very click that is to be predicted. No encoder, no network, nothing random but the control's triggers, which are seeded.
A cosine that cannot be computed (an item without a vector, a request without history) is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int8, Int64

from service.contract.catalogue import Catalogue
from service.contract.requests import RequestBatch
from training.choice import fit_choice
from training.counts import Counts, count_requests
from training.data.dataset import Split, open_catalogue, open_dataset
from training.data.labels import group_codes
from training.data.request_files import read_requests
from training.metrics import log_loss, ranking_numbers
from training.scores import Scored

LINES = {
    "popularity": "the candidate's clicks",
    "click_rate": "the candidate's click rate",
    "pair_rate": "click rate of the pair (trigger, candidate)",
    "cosine_trigger": "cosine to the trigger",
    "cosine_history": "cosine to the newest 50 behaviours",
    "logit_click_rate_trigger": "logit: click rate, cosine to trigger",
    "logit_all": "logit: both rates, both cosines",
    "cosine_goal": "cosine to the goal",
    "logit_all_goal": "logit: all of these and cosine to goal",
    "cosine_random": "control: cosine to a random trigger",
}
NEWEST = 50
GOAL = "goal"  # the context field of item ids that some data sets have: what the user really looks for
_RATES = ("click_rate", "pair_rate")
_MIXTURES = {
    "logit_click_rate_trigger": ("click_rate", "cosine_trigger"),
    "logit_all": ("click_rate", "pair_rate", "cosine_trigger", "cosine_history"),
    "logit_all_goal": ("click_rate", "pair_rate", "cosine_trigger", "cosine_history", "cosine_goal"),
}
_BATCH_REQUESTS = 256  # vectors of all candidates of a batch are in memory at once
_SEED = 0

Scores = Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Known:
    """What the lines rank by: the items' vectors, the counts of the training split, whether requests name a goal."""

    catalogue: Catalogue
    counts: Counts
    has_goal: bool

    @classmethod
    def open(cls, data_folder: Path) -> "Known":
        """Counts the training split of a prepared folder. Raises DataError when it is none."""
        context = open_dataset(data_folder).schema.context
        catalogue = open_catalogue(data_folder)
        counts = count_requests(data_folder / "train", catalogue)
        return cls(catalogue, counts, any(field.name == GOAL and field.kind == "id" for field in context))


@dataclass(frozen=True)
class Shown:
    """All candidates of a split: what each single line gives them, their clicks, group codes of user and request."""

    scores: Mapping[str, Scores]
    clicks: Int8[np.ndarray, " N"]
    user: Int64[np.ndarray, " N"]
    request: Int64[np.ndarray, " N"]

    def scored(self, line: str) -> Scored:
        """A line's scores as a model's, in order. Rates as logits; of other lines only the order means something."""
        scores = np.asarray(self.scores[line], dtype=np.float64)
        logits = np.log(scores) - np.log1p(-scores) if line in _RATES else scores
        requests = np.unique(self.request)
        return Scored(
            logits=logits,
            clicks=self.clicks.astype(np.float32),
            user=self.user,
            request=self.request,
            requests=requests,
            has_intent=np.zeros(len(requests), dtype=bool),
            intent_label=np.zeros((len(requests), 1), dtype=np.float32),
            intent=None,
        ).in_order()


def baseline_numbers(data_folder: Path, split: Split) -> dict[str, dict[str, float]]:
    """Ranking numbers of every line on a split, in the order of LINES; log-loss where a line is a probability.

    Lines with a goal only where requests have the field `goal`; logits only where the validation split has a click.
    Raises DataError when the folder is not prepared.
    """
    return numbers_of_lines(read_lines(data_folder, split))


def numbers_of_lines(shown: Shown) -> dict[str, dict[str, float]]:
    """The same for lines that have been read."""
    return {name: _numbers(name, shown.scores[name], shown) for name in LINES if name in shown.scores}


def read_lines(data_folder: Path, split: Split) -> Shown:
    """What every line gives every candidate of a split, conditional logits included."""
    known = Known.open(data_folder)
    shown = read_shown(data_folder / split, known)
    validation = shown if split == "validation" else _validation(data_folder, known)
    if validation is None or not validation.clicks.any():
        return shown
    return replace(shown, scores={**shown.scores, **_mixed(shown, validation)})


def read_shown(folder: Path, known: Known) -> Shown:
    """Reads request files batch by batch; what stays in memory is a few numbers a candidate."""
    random = np.random.default_rng(_SEED)
    parts = [_shown(batch, clicks, known, random) for batch, clicks in read_requests(folder, _BATCH_REQUESTS)]
    return Shown(
        scores={name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores},
        clicks=np.concatenate([part.clicks for part in parts]),
        user=np.concatenate([part.user for part in parts]),
        request=np.concatenate([part.request for part in parts]),
    )


def _validation(data_folder: Path, known: Known) -> Shown | None:
    """The split that weights are fitted on; None when it was left empty (`--validation-share 0`)."""
    folder = data_folder / "validation"
    return read_shown(folder, known) if any(folder.glob("*.parquet")) else None


def _shown(batch: RequestBatch, clicks: Int8[np.ndarray, " N"], known: Known, random: np.random.Generator) -> Shown:
    catalogue, counts, owner = known.catalogue, known.counts, batch.candidate_request
    trigger, candidate = catalogue.rows(batch.trigger.tolist()), catalogue.rows(batch.candidate.tolist())
    scores: dict[str, Scores] = {
        "popularity": counts.clicked[candidate].astype(np.float64),
        "click_rate": counts.click_rate(candidate),
        "pair_rate": counts.pair_rate(trigger[owner], candidate),
        "cosine_trigger": _cosine(catalogue, trigger[owner], candidate),
        "cosine_history": np.einsum("nd,nd->n", history_means(batch, catalogue)[owner], _units(catalogue, candidate)),
        "cosine_random": _cosine(catalogue, _random_rows(catalogue, batch.n_requests, random)[owner], candidate),
    }
    if known.has_goal:
        scores["cosine_goal"] = _cosine(catalogue, catalogue.rows(batch.context[GOAL].tolist())[owner], candidate)
    user, request = group_codes(batch)
    return Shown(scores, clicks, user[owner], request[owner])


def history_means(batch: RequestBatch, catalogue: Catalogue) -> Float32[np.ndarray, "R D"]:
    """The direction of the mean unit vector of each request's newest 50 behaviours; zeros without any."""
    means = np.zeros((batch.n_requests, catalogue.dimensions), dtype=np.float32)
    rows = catalogue.rows(batch.behaviour_item.tolist())
    for r in range(batch.n_requests):
        start, end = batch.behaviour_offsets[r], batch.behaviour_offsets[r + 1]
        if end > start:
            newest = start + np.argsort(batch.behaviour_at[start:end], kind="stable")[-NEWEST:]
            means[r] = _units(catalogue, rows[newest]).mean(axis=0)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return means / np.where(lengths > 0, lengths, np.float32(1))


def _units(catalogue: Catalogue, rows: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, "N D"]:
    norms = catalogue.norms[rows]
    units: Float32[np.ndarray, "N D"] = catalogue.codes[rows] / np.where(norms > 0, norms, np.float32(1))[:, None]
    return units


def _cosine(
    catalogue: Catalogue, left: Int64[np.ndarray, " N"], right: Int64[np.ndarray, " N"]
) -> Float32[np.ndarray, " N"]:
    comparable: Bool[np.ndarray, " N"] = (catalogue.norms[left] > 0) & (catalogue.norms[right] > 0)
    return np.where(comparable, catalogue.similarity(left, right), np.float32(0))


def _random_rows(catalogue: Catalogue, n_rows: int, random: np.random.Generator) -> Int64[np.ndarray, " R"]:
    """Triggers that have nothing to do with the request, of the items that have a vector."""
    comparable = np.flatnonzero(catalogue.has_vector)
    if not len(comparable):
        return np.zeros(n_rows, dtype=np.int64)
    drawn: Int64[np.ndarray, " R"] = random.choice(comparable, n_rows)
    return drawn


def _mixed(shown: Shown, validation: Shown) -> dict[str, Float64[np.ndarray, " N"]]:
    """The conditional logits of the lines that are there."""
    mixed = {}
    for name, parts in _MIXTURES.items():
        if all(part in shown.scores and part in validation.scores for part in parts):
            weights = fit_choice(_matrix(validation, parts), validation.clicks, validation.request)
            mixed[name] = _matrix(shown, parts) @ weights
    return mixed


def _matrix(shown: Shown, names: Sequence[str]) -> Float64[np.ndarray, "N F"]:
    """Rates by their logarithm, cosines as they are."""
    columns = [np.log(shown.scores[name]) if name in _RATES else shown.scores[name] for name in names]
    return np.stack(columns, axis=1).astype(np.float64)


def _numbers(name: str, scores: Scores, shown: Shown) -> dict[str, float]:
    found = ranking_numbers(scores, shown.clicks, shown.user, shown.request)
    if name in _RATES:
        found["log_loss"] = log_loss(np.log(scores) - np.log1p(-scores), shown.clicks)
    return found

"""The oracle of a simulated world: how far a model is from what could be known. Offline only; reads truth.parquet.

Called by whoever reports a model on a simulated folder. Models never see anything of it; a folder without
truth.parquet has no oracle (`read_truth` gives None).

The oracle ranks by *attractiveness*: the chance of a click on a candidate that is looked at, given the wish of this
very visit. It does not know where candidates stood on the page, as no model does, so a scorer that learned what the
shop's present recommender puts on top could in principle rank the logged clicks better than it does; `with_position`
shows how much there is to gain that way. `foreseeable` is the same without the wish of the visit, which nothing in the
log tells completely: what a perfect model of everything else would rank by. A model's share of each of the three is
`share_of_oracle(scored, truth, name)`; docs/world.md says which is quoted where.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float64, Int64

from service.contract.requests import RequestBatch
from service.contract.rules import SimilarityScale
from training.data.dataset import Split, open_catalogue, open_dataset, split_files
from training.data.errors import DataError
from training.data.labels import group_codes
from training.data.request_files import read_requests
from training.metrics import auc, gauc, js_of_means, js_per_request
from training.scores import Scored

ORACLES = ("attractiveness", "foreseeable", "with_position")
_COLUMNS = {"attractiveness": "attractiveness", "foreseeable": "foreseeable", "with_position": "probability"}
_HALF = 0.5  # share of a user's clicks that makes them specific or broad
_N_LOWEST = 2

Numbers = dict[str, float]


@dataclass(frozen=True)
class Truth:
    """The truth of a split, candidates request by request in the order of its files.

    `scores`: what each oracle ranks by. `intent`: the wish of each visit as weights over similarity levels.
    `click_share`: the expected share of the page's clicks by level, what labels estimate; zeros where the trigger or
    every candidate lacks a vector. `specific`, `broad`: the population that the visitor was drawn from.
    `clicks_specific`, `clicks_broad`: at least half of the visitor's clicks on the training days lie in the highest
    level, or in the two lowest; anonymous visitors and those without such a click are neither.
    """

    request: Int64[np.ndarray, " R"]
    user: Int64[np.ndarray, " R"]
    n_candidates: Int64[np.ndarray, " R"]
    clicks: Float[np.ndarray, " N"]
    scores: Mapping[str, Float[np.ndarray, " N"]]
    intent: Float[np.ndarray, "R S"]
    click_share: Float[np.ndarray, "R S"]
    specific: Bool[np.ndarray, " R"]
    broad: Bool[np.ndarray, " R"]
    clicks_specific: Bool[np.ndarray, " R"]
    clicks_broad: Bool[np.ndarray, " R"]

    def groups(self) -> dict[str, Bool[np.ndarray, " R"]]:
        """Requests by kind of visitor, as the keys of `intent_to_truth` name them."""
        return {
            "all": np.ones(len(self.request), dtype=bool),
            "specific": self.specific,
            "broad": self.broad,
            "specific_by_clicks": self.clicks_specific,
            "broad_by_clicks": self.clicks_broad,
        }


def read_truth(data_folder: Path, split: Split) -> Truth | None:
    """The truth of one split; None when the folder has none (it is not a simulated one).

    Raises DataError when truth.parquet and the request files are not of one world.
    """
    path = data_folder / "truth.parquet"
    if not path.is_file():
        return None
    requests, users, ids, candidates, clicks = _read_split(data_folder, split)
    table = _rows_of(path, ids)
    if _flat(table, "candidate").tolist() != candidates:
        raise DataError(f"{path}: other candidates than in {data_folder / split}; simulate the world again.")
    user = np.array(users, dtype=np.int64)
    population = np.array(table.column("population").to_pylist(), dtype=object)
    by_clicks = _by_clicks(data_folder, user)
    return Truth(
        request=requests,
        user=user,
        n_candidates=np.diff(table.column("candidate").combine_chunks().offsets.to_numpy()).astype(np.int64),
        clicks=clicks,
        scores={name: _flat(table, column).astype(np.float64) for name, column in _COLUMNS.items()},
        intent=_matrix(table, "intent"),
        click_share=_matrix(table, "click_share"),
        specific=np.asarray(population == "specific"),
        broad=np.asarray(population == "broad"),
        clicks_specific=by_clicks[0],
        clicks_broad=by_clicks[1],
    )


def oracle_numbers(truth: Truth) -> dict[str, Numbers]:
    """AUC and both GAUCs of every oracle over all requests of the split."""
    user, request = np.repeat(truth.user, truth.n_candidates), np.repeat(truth.request, truth.n_candidates)
    return {name: _ranking(truth.scores[name], truth.clicks, user, request) for name in ORACLES}


def share_of_oracle(scored: Scored, truth: Truth, oracle: str = "attractiveness") -> Numbers:
    """The share of the oracle's gain over chance that a model reaches, (m - 0.5) / (o - 0.5), for AUC and both GAUCs.

    `oracle` is one of ORACLES. Over the requests that were scored. Logged clicks follow places, which `attractiveness`
    and `foreseeable` do not know: a share of them is no fraction of a strict upper bound and may pass 1. NaN where the
    oracle itself gains nothing. Raises ValueError for another oracle, for requests that the truth does not know or
    whose candidates are others.
    """
    if oracle not in ORACLES:
        raise ValueError(f"no oracle is called {oracle!r}: give one of {', '.join(ORACLES)}")
    index = _candidates_of(scored, truth)
    model = _ranking(scored.logits, scored.clicks, scored.user, scored.request)
    best = _ranking(truth.scores[oracle][index], scored.clicks, scored.user, scored.request)
    return {name: (model[name] - 0.5) / (best[name] - 0.5) if best[name] > 0.5 else float("nan") for name in model}


def intent_to_truth(scored: Scored, truth: Truth) -> dict[str, Numbers]:
    """How far a model's intents are from the true ones, by kind of visitor: JS of means, mean JS per request (nats).

    `js_*` compares with the expected click shares, which labels estimate; `wish_js_*` with the drawn intent itself,
    which no page shows purely. Requests without click shares are left out. Empty without intents; kinds without
    requests are left out. Raises ValueError as `share_of_oracle`, and when the levels are not as many.
    """
    if scored.intent is None:
        return {}
    if scored.intent.shape[1] != truth.intent.shape[1]:
        raise ValueError(
            f"the model predicts {scored.intent.shape[1]} levels, the truth has {truth.intent.shape[1]}: "
            "train with the data set's own number of levels"
        )
    place = _places(scored.requests, truth)
    share, wish = truth.click_share[place], truth.intent[place]
    predicted = scored.intent.astype(np.float64)
    comparable = share.sum(axis=1) > 0
    found = {}
    for kind, members in truth.groups().items():
        here = members[place] & comparable
        if here.any():
            found[kind] = {
                "n_requests": float(here.sum()),
                "js_of_means": js_of_means(predicted[here], share[here]),
                "js_per_request": js_per_request(predicted[here], share[here]),
                "wish_js_of_means": js_of_means(predicted[here], wish[here]),
                "wish_js_per_request": js_per_request(predicted[here], wish[here]),
            }
    return found


def _ranking(
    scores: Float[np.ndarray, " N"],
    clicks: Float[np.ndarray, " N"],
    user: Int64[np.ndarray, " N"],
    request: Int64[np.ndarray, " N"],
) -> Numbers:
    return {
        "auc": auc(scores, clicks),
        "gauc_user": gauc(scores, clicks, user),
        "gauc_request": gauc(scores, clicks, request),
    }


def _places(requests: Int64[np.ndarray, " Q"], truth: Truth) -> Int64[np.ndarray, " Q"]:
    """The row of the truth for each of these requests."""
    order = np.argsort(truth.request)
    found = np.minimum(np.searchsorted(truth.request[order], requests), len(order) - 1)
    place: Int64[np.ndarray, " Q"] = order[found]
    missing = int((truth.request[place] != requests).sum())
    if missing:
        raise ValueError(f"{missing} scored requests are not in the truth: give the truth of the same folder and split")
    return place


def _candidates_of(scored: Scored, truth: Truth) -> Int64[np.ndarray, " N"]:
    """The row of the truth's candidates for each scored candidate; within a request both are in the page's order."""
    request = scored.request
    starts = np.flatnonzero(np.concatenate([[True], request[1:] != request[:-1]]))
    sizes = np.diff(np.append(starts, len(request)))
    place = _places(request[starts], truth)
    if not np.array_equal(truth.n_candidates[place], sizes):
        raise ValueError("scored requests have other candidates than the truth: give the truth of the same folder")
    first = np.cumsum(truth.n_candidates) - truth.n_candidates
    index = np.repeat(first[place] - starts, sizes) + np.arange(len(request))
    if not np.array_equal(truth.clicks[index] > 0, scored.clicks > 0):
        raise ValueError("the scored clicks are not those of the truth: give the truth of the same folder")
    return index


def _read_split(
    data_folder: Path, split: Split
) -> tuple[Int64[np.ndarray, " R"], list[int], list[str], list[str], Float[np.ndarray, " N"]]:
    """Request and user codes, request ids, candidates and clicks of all requests of a split."""
    requests, clicked = [], []
    users: list[int] = []
    ids: list[str] = []
    candidates: list[str] = []
    for path in split_files(data_folder, split):
        for batch, clicks in read_requests(path):
            user, request = group_codes(batch)
            requests.append(request)
            users += user.tolist()
            ids += batch.request_id.tolist()
            candidates += batch.candidate.tolist()
            clicked.append(clicks.astype(np.float32))
    return np.concatenate(requests), users, ids, candidates, np.concatenate(clicked)


def _rows_of(path: Path, ids: list[str]) -> pa.Table:
    """The rows of truth.parquet for these requests, in their order. The file is read in row groups."""
    wanted = {request: place for place, request in enumerate(ids)}
    parts, places = [], []
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for row_group in range(file.num_row_groups):
            names = file.read_row_group(row_group, columns=["request_id"], use_threads=False).column(0).to_pylist()
            rows = [row for row, name in enumerate(names) if name in wanted]
            if rows:
                parts.append(file.read_row_group(row_group, use_threads=False).take(pa.array(rows)))
                places += [wanted[names[row]] for row in rows]
    if sorted(places) != list(range(len(ids))):
        raise DataError(f"{path}: knows {len(places)} of {len(ids)} requests of the split; simulate the world again.")
    return pa.concat_tables(parts).take(pa.array(np.argsort(places)))


def _by_clicks(
    data_folder: Path, user: Int64[np.ndarray, " R"]
) -> tuple[Bool[np.ndarray, " R"], Bool[np.ndarray, " R"]]:
    """Whether the user of each request is specific, is broad, by the clicks of the training days."""
    dataset = open_dataset(data_folder)
    scale = SimilarityScale(*(dataset.similarity_range or (0.0, 1.0)), dataset.n_levels)
    codes, inverse = np.unique(user, return_inverse=True)
    counts = np.zeros((len(codes), scale.n_levels), dtype=np.int64)
    for batch, request, level in clicked_levels(data_folder, scale):
        owner = group_codes(batch)[0][request]
        place = np.minimum(np.searchsorted(codes, owner), len(codes) - 1)
        known = codes[place] == owner
        np.add.at(counts, (place[known], level[known] - 1), 1)
    total = counts.sum(axis=1)
    is_specific = (counts[:, -1] >= _HALF * total) & (total > 0)
    is_broad = (counts[:, :_N_LOWEST].sum(axis=1) >= _HALF * total) & (total > 0)
    return is_specific[inverse], is_broad[inverse]


def clicked_levels(
    data_folder: Path, scale: SimilarityScale
) -> Iterator[tuple[RequestBatch, Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]]:
    """Of every batch of the training days, the request and similarity level of each click that can be compared."""
    catalogue = open_catalogue(data_folder)
    for path in split_files(data_folder, "train"):
        for batch, clicks in read_requests(path):
            clicked = clicks == 1
            owner = batch.candidate_request[clicked]
            trigger = catalogue.rows(batch.trigger.tolist())[owner]
            level = scale.level(catalogue.similarity(trigger, catalogue.rows(batch.candidate[clicked].tolist())))
            yield batch, owner[level > 0], level[level > 0]


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False))


def _matrix(table: pa.Table, name: str) -> Float64[np.ndarray, "R S"]:
    return _flat(table, name).astype(np.float64).reshape(table.num_rows, -1)

"""Batches for the training loop: request files -> Encoder.encode -> torch tensors, in an order that can be resumed.

Called by `training/loop.py` and `training/evaluate.py`. Encoding happens at use, through the contract's one function,
by a source of pools (`training.data.pools`); nothing encoded is ever stored on disk.

The order is a pure function of (files, seed, epoch), so a position is three numbers. An epoch shuffles the row groups
of all files, takes them in pools of about `pool_requests` requests, shuffles each pool, sorts it by history length
(less padding: requests of like length share a batch), cuts it into batches of whole requests with about
`batch_candidates` candidates, and shuffles those. One thread reads and encodes ahead, at most `n_ahead` batches.
"""

import math
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from service.contract.encoder import Encoder, ModelInputs
from training.data.pools import Encoded, FreshPools, Pool, PoolSource
from training.data.request_files import row_group_sizes
from training.data.thinning import thin
from training.losses import click_loss

Requests = Literal["all", "clicked"]


@dataclass(frozen=True)
class BatchPlan:
    """How batches are cut. `shuffle=False` (evaluation): no chance at all, and whole pages of like length too share
    a batch.

    page_candidates: unclicked candidates of a page beyond this many are left out, others in each epoch; 0 = none.
    every: only the first of each so many requests of a pool; 1 = all. Unshuffled, they are always the same ones.
    """

    batch_candidates: int = 4096
    page_candidates: int = 0
    every: int = 1
    pool_requests: int = 8192
    requests: Requests = "all"
    shuffle: bool = True
    seed: int = 0
    n_ahead: int = 4


@dataclass(frozen=True)
class Position:
    """Where the next batch comes from: epoch, pool of the epoch, batch of the pool. `Position()` is the start."""

    epoch: int = 0
    pool: int = 0
    batch: int = 0


class Batch(NamedTuple):
    """Model inputs and labels as tensors, group codes for the metrics, and the position after this batch.

    log_kept: logarithm of the share of its page's unclicked candidates that a candidate stands for; None = all here.
    """

    inputs: ModelInputs
    clicks: Tensor  # float32 N
    intent: Tensor  # float32 R S
    has_intent: Tensor  # bool R
    user_group: Int64[np.ndarray, " R"]
    request_group: Int64[np.ndarray, " R"]
    after: Position
    log_kept: Tensor | None = None  # float32 N

    def click_loss(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy of the clicks; the logits stay those of whole pages where candidates were left out."""
        loss: Tensor = click_loss(logits if self.log_kept is None else logits - self.log_kept, self.clicks)
        return loss


class Batches:
    """The batches of a list of request files."""

    def __init__(self, files: list[Path], encoder: Encoder, plan: BatchPlan, pools: PoolSource | None = None) -> None:
        """Reads only the files' footers. Raises DataError for a file that cannot be read.

        `pools`: where encoded requests come from; by default read and encoded at each use. Raises ValueError when it
        encodes with another encoder.
        """
        if pools is not None and pools.encoder is not encoder:
            raise ValueError("the source of pools has another encoder than the batches: make one for each encoder")
        self.encoder = encoder
        self.plan = plan
        self._source = FreshPools(encoder) if pools is None else pools
        self._groups = [(path, index, n) for path in files for index, n in enumerate(row_group_sizes(path))]

    @property
    def n_requests(self) -> int:
        """Requests in the files, before the `requests` filter."""
        return sum(n for _, _, n in self._groups)

    def n_batches(self, epoch: int) -> int:
        """Batches of a whole epoch. Reads the requests, encodes none."""
        pools = enumerate(self._pools(epoch))
        return sum(len(self._cut(self._source.read(pool), epoch, number)) for number, pool in pools)

    def epoch(self, start: Position = Position()) -> Iterator[Batch]:
        """The rest of `start.epoch`, from `start` on, prefetched. Starting at a batch's `after` resumes exactly."""
        yield from _prefetched(self._epoch(start), self.plan.n_ahead)

    def _epoch(self, start: Position) -> Iterator[Batch]:
        pools = self._pools(start.epoch)
        for number in range(start.pool, len(pools)):
            pool = self._source.read(pools[number])
            parts = self._cut(pool, start.epoch, number)
            first = start.batch if number == start.pool else 0
            for index in range(first, len(parts)):
                last = index + 1 == len(parts)
                after = Position(start.epoch, number + 1, 0) if last else Position(start.epoch, number, index + 1)
                if last and number + 1 == len(pools):
                    after = Position(start.epoch + 1, 0, 0)
                yield self._batch(pool.take(parts[index]), after, (start.epoch, number, index))

    def _batch(self, encoded: Encoded, after: Position, place: tuple[int, int, int]) -> Batch:
        if not self.plan.page_candidates:
            return to_batch(encoded, after)
        epoch, pool, index = place
        thinned, log_kept = thin(encoded, self.plan.page_candidates, self._random(epoch, 2 + index, pool))
        return to_batch(thinned, after)._replace(log_kept=torch.from_numpy(log_kept))

    def _pools(self, epoch: int) -> list[list[tuple[Path, int]]]:
        """The epoch's row groups, shuffled, in pools of about `pool_requests`."""
        order = np.arange(len(self._groups))
        if self.plan.shuffle:
            order = self._random(epoch, 0, 0).permutation(order)
        pools: list[list[tuple[Path, int]]] = []
        n_pooled = self.plan.pool_requests
        for index in order:
            path, row_group, n_requests = self._groups[index]
            if n_pooled >= self.plan.pool_requests:
                pools.append([])
                n_pooled = 0
            pools[-1].append((path, row_group))
            n_pooled += n_requests
        return pools

    def _cut(self, pool: Pool, epoch: int, number: int) -> list[Int64[np.ndarray, " r"]]:
        """The pool's requests, in batches: which request goes where."""
        wanted = pool.has_click if self.plan.requests == "clicked" else np.ones(len(pool.has_click), dtype=np.bool_)
        wanted = wanted & (np.arange(len(wanted)) % self.plan.every == 0)
        order = np.flatnonzero(wanted)
        if not len(order):
            return []
        random = self._random(epoch, 1, number)
        if self.plan.shuffle:
            order = order[random.permutation(len(order))]
            order = order[np.argsort(pool.n_behaviours[order], kind="stable")]
        else:
            order = order[like_shapes(pool.n_behaviours[order], pool.n_candidates[order], self.plan.batch_candidates)]
        n_candidates = pool.n_candidates[order]
        if self.plan.page_candidates:
            n_candidates = np.minimum(n_candidates, self.plan.page_candidates)
        parts = in_budget(order, n_candidates, self.plan.batch_candidates)
        return [parts[i] for i in random.permutation(len(parts))] if self.plan.shuffle else parts

    def _random(self, epoch: int, purpose: int, pool: int) -> np.random.Generator:
        return np.random.default_rng([self.plan.seed, epoch, purpose, pool])


def like_shapes(
    n_behaviours: Int64[np.ndarray, " R"], n_candidates: Int64[np.ndarray, " R"], budget: int
) -> Int64[np.ndarray, " R"]:
    """The order in which requests near each other are alike in both lengths: runs of like histories, each by
    candidates. Of b batches, √b make a run."""
    n_runs = max(1, round(math.sqrt(int(n_candidates.sum()) / budget)))
    run = np.empty(len(n_behaviours), dtype=np.int64)
    run[np.argsort(n_behaviours, kind="stable")] = np.arange(len(n_behaviours)) * n_runs // max(len(n_behaviours), 1)
    return np.lexsort((n_candidates, run))


def in_budget(
    order: Int64[np.ndarray, " R"], n_candidates: Int64[np.ndarray, " R"], budget: int
) -> list[Int64[np.ndarray, " r"]]:
    """Cuts `order` into runs of about equal numbers of candidates, near `budget`; none is empty."""
    total = int(n_candidates.sum())
    n_parts = max(1, round(total / budget))
    before = np.cumsum(n_candidates) - n_candidates
    part = np.minimum(before * n_parts // max(total, 1), n_parts - 1)
    return [run for run in np.split(order, np.flatnonzero(np.diff(part)) + 1) if len(run)]


def to_batch(encoded: Encoded, after: Position) -> Batch:
    """Tensors of some encoded requests."""
    inputs, labels = encoded
    return Batch(
        inputs=inputs.map(torch.from_numpy),
        clicks=torch.from_numpy(labels.clicks),
        intent=torch.from_numpy(labels.intent),
        has_intent=torch.from_numpy(labels.has_intent),
        user_group=labels.user_group,
        request_group=labels.request_group,
        after=after,
    )


class _Failed(NamedTuple):
    error: BaseException


def _prefetched(source: Iterator[Batch], n_ahead: int) -> Iterator[Batch]:
    """Runs `source` in a thread, at most `n_ahead` batches ahead; raises its error here; leaving stops the thread."""
    ready: queue.Queue[Batch | _Failed | None] = queue.Queue(maxsize=max(1, n_ahead))
    stopped = threading.Event()

    def offer(item: Batch | _Failed | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in source:
                if not offer(batch):
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the consumer's thread
            offer(_Failed(error))

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()

"""Batches: every request once, whole, in an order that is mixed, near its budget, and resumed exactly."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.contract.encoder import Encoder
from service.contract.requests import RequestBatch
from tests.unit.training.data.shop import SCHEMA, prepare_small, random_requests
from training.data.batches import Batch, Batches, BatchPlan, Position, in_budget, like_shapes
from training.data.errors import DataError
from training.data.fit_encoder import fit_encoder
from training.data.pools import take_requests
from training.data.request_files import write_requests

PLAN = BatchPlan(batch_candidates=40, pool_requests=32, seed=3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder") / "data"
    prepare_small(folder)
    return fit_encoder(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of 60 requests in row groups of 8."""
    folder = tmp_path_factory.mktemp("files")
    for seed in (1, 2):
        with write_requests(folder / f"{seed}.parquet", SCHEMA, row_group_requests=8) as writer:
            writer.write(*random_requests(60, seed=seed))
    return sorted(folder.glob("*.parquet"))


def everything() -> tuple[RequestBatch, np.ndarray]:
    parts = [random_requests(60, seed=seed) for seed in (1, 2)]
    return RequestBatch.concat([batch for batch, _ in parts]), np.concatenate([clicks for _, clicks in parts])


def same(left: Batch, right: Batch) -> bool:
    return left.after == right.after and all(
        np.array_equal(a, b) for a, b in zip((*left.inputs, *left[1:-1]), (*right.inputs, *right[1:-1]), strict=True)
    )


def test_an_epoch_has_every_request_once_with_its_own_clicks(encoder: Encoder, files: list[Path]) -> None:
    requests, clicks = everything()
    alone = Batches(files, encoder, replace(PLAN, batch_candidates=1, shuffle=False))
    wanted = {
        int(batch.request_group[0]): batch.clicks.tolist() for batch in alone.epoch() if len(batch.request_group) == 1
    }
    seen: dict[int, list[float]] = {}
    for batch in Batches(files, encoder, PLAN).epoch():
        for r, group in enumerate(batch.request_group.tolist()):
            assert group not in seen
            seen[group] = batch.clicks[batch.inputs.candidate_request == r].tolist()
    assert len(seen) == requests.n_requests
    assert sum(sum(values) for values in seen.values()) == clicks.sum()
    assert len(wanted) > 100
    assert all(seen[group] == values for group, values in wanted.items())


def test_batches_are_encoded_by_the_contract_and_nothing_else(encoder: Encoder, files: list[Path]) -> None:
    requests, clicks = everything()
    plan = replace(PLAN, shuffle=False, batch_candidates=10**6, pool_requests=10**6)
    (batch,) = Batches(files, encoder, plan).epoch()
    order = np.argsort(np.diff(requests.candidate_offsets), kind="stable")
    wanted = encoder.encode(requests.take(order))
    assert all(np.array_equal(found, value) for found, value in zip(batch.inputs, wanted, strict=True))
    assert np.array_equal(batch.clicks, take_requests(requests, clicks, order)[1])


def test_batches_are_near_their_budget(encoder: Encoder, files: list[Path]) -> None:
    sizes = [len(batch.clicks) for batch in Batches(files, encoder, PLAN).epoch()]
    largest_request = 8
    assert all(abs(size - PLAN.batch_candidates) < PLAN.batch_candidates / 2 + largest_request for size in sizes)


def padded_cells(order: np.ndarray, n_behaviours: np.ndarray, n_candidates: np.ndarray) -> int:
    """Behaviours times candidates of the padded batches, summed."""
    parts = in_budget(order, n_candidates[order], 500)
    return sum(len(part) * int(n_behaviours[part].max()) * int(n_candidates[part].max()) for part in parts)


def test_whole_pages_of_like_length_share_a_batch() -> None:
    random = np.random.default_rng(0)
    n_behaviours, n_candidates = random.integers(0, 51, 2_000), random.geometric(1 / 30, 2_000)
    order = like_shapes(n_behaviours, n_candidates, 500)
    assert np.array_equal(np.sort(order), np.arange(2_000))
    by_history = np.argsort(n_behaviours, kind="stable")
    assert padded_cells(order, n_behaviours, n_candidates) < 0.6 * padded_cells(by_history, n_behaviours, n_candidates)


def test_epochs_differ_and_repeat_with_the_seed(encoder: Encoder, files: list[Path]) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(files, encoder, replace(PLAN, seed=seed))
        return [group for batch in batches.epoch(Position(epoch)) for group in batch.request_group.tolist()]

    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)
    assert sorted(order(3, 0)) == sorted(order(4, 1))


def test_files_are_mixed(encoder: Encoder, files: list[Path]) -> None:
    first = [set(b.request_group.tolist()) for b in Batches(files[:1], encoder, replace(PLAN, shuffle=False)).epoch()]
    of_first = set().union(*first)
    shares = [np.mean([g in of_first for g in b.request_group.tolist()]) for b in Batches(files, encoder, PLAN).epoch()]
    assert np.mean([0 < share < 1 for share in shares]) > 0.7


@pytest.mark.parametrize("requests", ["all", "clicked"])
def test_resuming_after_any_batch_gives_the_rest_exactly(encoder: Encoder, files: list[Path], requests: str) -> None:
    plan = replace(PLAN, requests=requests)  # type: ignore[arg-type]
    whole = list(Batches(files, encoder, plan).epoch())
    assert len(whole) > 8
    for done in range(0, len(whole) - 1, 3):
        rest = list(Batches(files, encoder, plan).epoch(whole[done].after))
        assert len(rest) == len(whole) - done - 1
        assert all(map(same, rest, whole[done + 1 :]))
    assert whole[-1].after == Position(1) or requests == "clicked"


def test_saboteur_a_position_one_batch_off_is_noticed(encoder: Encoder, files: list[Path]) -> None:
    whole = list(Batches(files, encoder, PLAN).epoch())
    wrong = Position(whole[2].after.epoch, whole[2].after.pool, whole[2].after.batch + 1)
    rest = list(Batches(files, encoder, PLAN).epoch(wrong))
    assert not all(map(same, rest, whole[3:]))


def test_clicked_requests_alone(encoder: Encoder, files: list[Path]) -> None:
    requests, clicks = everything()
    has_click = np.array(
        [clicks[a:b].any() for a, b in zip(requests.candidate_offsets, requests.candidate_offsets[1:], strict=False)]
    )
    found = list(Batches(files, encoder, replace(PLAN, requests="clicked")).epoch())
    assert sum(len(batch.request_group) for batch in found) == has_click.sum() < requests.n_requests
    for batch in found:
        assert np.bincount(batch.inputs.candidate_request, batch.clicks, len(batch.request_group)).min() >= 1


def test_every_third_request_is_the_same_third_in_each_epoch(encoder: Encoder, files: list[Path]) -> None:
    some = Batches(files, encoder, replace(PLAN, every=3, shuffle=False))
    seen = [{int(r) for batch in some.epoch(Position(epoch)) for r in batch.request_group} for epoch in (0, 1)]
    everyone = {int(r) for batch in Batches(files, encoder, PLAN).epoch() for r in batch.request_group}
    assert seen[0] == seen[1] < everyone
    assert len(everyone) / 3 <= len(seen[0]) <= len(everyone) / 3 + 4  # a pool rounds up


def test_sorting_by_history_length_saves_padding(encoder: Encoder, files: list[Path]) -> None:
    def padding(pool_requests: int) -> float:
        batches = Batches(files, encoder, replace(PLAN, pool_requests=pool_requests)).epoch()
        return float(np.mean([(batch.inputs.history_age == 0).float().mean() for batch in batches]))

    assert padding(1000) < 0.8 * padding(1)


def test_an_error_while_reading_ahead_reaches_the_trainer(encoder: Encoder, files: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    content = bytearray(files[0].read_bytes())
    content[200] ^= 4
    broken.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.parquet, row group 0"):
        list(Batches([broken], encoder, PLAN).epoch())


def test_leaving_early_ends_the_thread(encoder: Encoder, files: list[Path]) -> None:
    before = threading.active_count()
    for _ in range(3):
        epoch = Batches(files, encoder, replace(PLAN, n_ahead=1)).epoch()
        next(epoch)
        epoch.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_more_is_read_ahead_than_allowed(
    encoder: Encoder, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    enough = threading.Event()
    encode = Encoder.encode

    def counting(self: Encoder, batch: RequestBatch) -> object:
        encoded.append(batch.n_requests)
        if len(encoded) >= 4:
            enough.set()
        return encode(self, batch)

    monkeypatch.setattr(Encoder, "encode", counting)
    epoch = Batches(files, encoder, replace(PLAN, n_ahead=2)).epoch()
    next(epoch)
    enough.wait(5)
    threading.Event().wait(0.3)
    assert len(encoded) == 4, "one taken, two waiting, one in the thread's hand"
    epoch.close()  # type: ignore[attr-defined]

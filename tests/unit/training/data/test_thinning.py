"""Pages may be thinned in training: clicks stay, chance is fair, and the odds of whole pages are what is learnt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.training.random_inputs import random_batch
from training.data import batches as batches_module
from training.data.batches import Batches, BatchPlan
from training.data.dataset import split_files
from training.data.fit_encoder import fit_encoder
from training.data.labels import Labels
from training.data.pools import Encoded
from training.data.synthetic import World, simulate
from training.data.thinning import thin

AT_MOST = 5


def encoded(n_candidates: tuple[int, ...] = (9, 3, 30, 8), share: float = 0.2, seed: int = 0) -> Encoded:
    batch = random_batch(n_candidates, seed)
    clicks = (np.random.default_rng(seed).random(sum(n_candidates)) < share).astype(np.float32)
    labels = Labels(clicks, batch.intent.numpy(), batch.has_intent.numpy(), batch.user_group, batch.request_group)
    return Encoded(batch.inputs.map(torch.Tensor.numpy), labels)


def test_clicks_stay_and_pages_are_no_longer_than_asked() -> None:
    whole = encoded(share=0.1)
    thinned, log_kept = thin(whole, AT_MOST, np.random.default_rng(1))
    assert thinned.labels.clicks.sum() == whole.labels.clicks.sum()
    counts = np.bincount(thinned.inputs.candidate_request)
    assert counts.tolist() == [5, 3, 5, 5]
    for request, n_whole in enumerate((9, 3, 30, 8)):
        mine = whole.inputs.candidate_request == request
        n_clicked = int(whole.labels.clicks[mine].sum())
        share = min(1.0, (AT_MOST - n_clicked) / (n_whole - n_clicked))
        assert np.allclose(log_kept[thinned.inputs.candidate_request == request], np.log(share))


def test_candidates_keep_their_fields_and_their_order() -> None:
    whole = encoded()
    marked = whole._replace(inputs=whole.inputs._replace(candidate_similarity=np.arange(50, dtype=np.float32)))
    thinned, _ = thin(marked, AT_MOST, np.random.default_rng(1))
    kept = thinned.inputs.candidate_similarity.astype(int)
    assert (np.diff(kept) > 0).all()
    assert (thinned.inputs.candidate_fields == whole.inputs.candidate_fields[kept]).all()
    assert (thinned.inputs.candidate_request == whole.inputs.candidate_request[kept]).all()
    assert (thinned.labels.clicks == whole.labels.clicks[kept]).all()


def test_more_clicks_than_room_all_stay_and_one_other_speaks_for_none() -> None:
    thinned, log_kept = thin(encoded((12,), share=1.1), AT_MOST, np.random.default_rng(1))
    assert len(thinned.labels.clicks) == 12
    assert (log_kept == 0).all()


def test_each_unclicked_candidate_is_as_likely_to_stay() -> None:
    whole, random = encoded((20,), share=-1.0), np.random.default_rng(2)
    marked = whole._replace(inputs=whole.inputs._replace(candidate_similarity=np.arange(20, dtype=np.float32)))
    kept = np.zeros(20)
    for _ in range(2_000):
        kept[thin(marked, AT_MOST, random)[0].inputs.candidate_similarity.astype(int)] += 1
    assert abs(kept / 2_000 - 0.25).max() < 0.04


def best_logit(batch: batches_module.Batch) -> float:
    """The one logit for all candidates that the loss likes best."""
    z = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=50)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = batch.click_loss(z.expand(len(batch.clicks)))
        value.backward()
        return value

    optimizer.step(loss)
    return z.item()


@pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "saboteur: not corrected"])
def test_the_odds_of_whole_pages_are_learnt(corrected: bool) -> None:
    whole = encoded((40,) * 400, share=0.05)
    rate = float(whole.labels.clicks.mean())
    thinned, log_kept = thin(whole, 10, np.random.default_rng(3))
    batch = random_batch((2, 2))._replace(
        clicks=torch.from_numpy(thinned.labels.clicks), log_kept=torch.from_numpy(log_kept) if corrected else None
    )
    found = best_logit(batch)
    assert (abs(found - float(np.log(rate / (1 - rate)))) < 0.05) == corrected


def test_batches_thin_other_candidates_in_each_epoch_and_the_same_when_repeated(tmp_path: Path) -> None:
    simulate(tmp_path / "shop", World(n_requests=200, n_users=30, n_items=60, seed=3))
    encoder = fit_encoder(tmp_path / "shop")
    plan = BatchPlan(batch_candidates=256, page_candidates=6)
    source = Batches(split_files(tmp_path / "shop", "train"), encoder, plan)
    first, again = list(source.epoch()), list(source.epoch())
    assert all(
        torch.equal(a.inputs.candidate_fields, b.inputs.candidate_fields) for a, b in zip(first, again, strict=True)
    )
    assert all(a.log_kept is not None and len(a.log_kept) == len(a.clicks) for a in first)
    whole = Batches(split_files(tmp_path / "shop", "train"), encoder, replace(plan, page_candidates=0))
    assert sum(int(b.clicks.sum()) for b in whole.epoch()) == sum(int(b.clicks.sum()) for b in first)
    assert sum(len(b.clicks) for b in whole.epoch()) > sum(len(b.clicks) for b in first)
    other = list(source.epoch(first[-1].after))
    assert sum(len(b.clicks) for b in other) == sum(len(b.clicks) for b in first)
    ours, theirs = (torch.cat([b.inputs.candidate_similarity for b in part]).sort()[0] for part in (first, other))
    assert not torch.equal(ours, theirs)

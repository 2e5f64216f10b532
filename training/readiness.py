"""Whether data can serve a stage, asked before its first step: can it be learned from, can weights be chosen by it.

Called by `training.loop` and `training.train`. Reads batches only as far as the first that answers.
"""

from collections.abc import Iterable

from training.data.batches import Batch
from training.data.errors import DataError

NO_LABELS = (
    "left out: no training request has an intent label (a click on an item with a vector, below a trigger with one). "
    "Clicks still train the rest; for an intent give the items vectors with `daian embed` and prepare the data again"
)
_OTHER = {"gauc_request": "gauc_user", "gauc_user": "gauc_request"}


def has_intent_label(batches: Iterable[Batch]) -> bool:
    """Whether any request has an observed intent. Without vectors none has."""
    return any(bool(batch.has_intent.any()) for batch in batches)


def check_labelled(batches: Iterable[Batch]) -> None:
    """Raises DataError when no request of the validation has an observed intent to compare with."""
    if not has_intent_label(batches):
        raise DataError(
            "no validation request has an intent label (a click on an item with a vector, below a trigger with one), "
            "but training requests have: prepare the data with a larger validation share"
        )


def check_ranked(batches: Iterable[Batch], select_by: str) -> None:
    """Raises DataError when no group of the validation has both kinds of candidates: its GAUC would be NaN."""
    clicked: set[int] = set()
    others: set[int] = set()
    for batch in batches:
        groups = batch.user_group if select_by == "gauc_user" else batch.request_group
        of_candidates, is_clicked = groups[batch.inputs.candidate_request.numpy()], batch.clicks.numpy() > 0
        clicked.update(of_candidates[is_clicked].tolist())
        others.update(of_candidates[~is_clicked].tolist())
        if not clicked.isdisjoint(others):
            return
    raise DataError(
        f"no {select_by.removeprefix('gauc_')} of the validation has both a clicked candidate and one that is not, so "
        f"{select_by} cannot choose the weights: prepare the data with a larger validation share, or train with "
        f"select_by={_OTHER[select_by]!r}"
    )

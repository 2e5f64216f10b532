"""Sub-sequences by a shared value of a field: behaviours of the trigger's or the candidate's leaf category, and labels
made from the same comparison. Used by the models that search by category (DIAN, DIHN, DEI2N).

Nothing ever equals "nothing" (0) or "unknown" (1): two items whose category nobody knows have none in common.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import TargetAttention, masked_softmax
from training.layers.ragged import CandidateRows

FIRST_KNOWN = 2


def leaf_column(sizes: EncoderSizes, model: str) -> int:
    """The column of the leaf category within the fields of an item. Raises ValueError when the schema names none."""
    if sizes.leaf_category is None:
        raise ValueError(f"{model} searches by leaf category and the schema names none: set its leaf_category")
    return sizes.leaf_category


def same_value(left: Int64[Tensor, "*#B"], right: Int64[Tensor, "*#B"]) -> Bool[Tensor, "*B"]:
    """True where both are the same known value. Symmetric; broadcasts."""
    return (left == right) & (left >= FIRST_KNOWN)


def trigger_subsequence(inputs: ModelInputs, column: int) -> Bool[Tensor, "R L"]:
    """Which behaviours of the history share the trigger's value of this item field."""
    same = same_value(inputs.history_fields[..., column], inputs.trigger_fields[:, column].unsqueeze(1))
    found: Tensor = same & (inputs.history_age > 0)
    return found


def candidate_subsequence(
    rows: CandidateRows, candidate: Int64[Tensor, " N"], history: Int64[Tensor, "R L"], mask: Bool[Tensor, "R L"]
) -> Bool[Tensor, "R C L"]:
    """Which behaviours share each candidate's value, in the padded layout of `rows`; padding shares nothing."""
    values = rows.pad(candidate.to(torch.float64).unsqueeze(-1)).to(torch.int64)  # a double holds any id exactly
    return same_value(values, history.unsqueeze(1)) & mask.unsqueeze(1)


def any_click_like_trigger(inputs: ModelInputs, clicks: Float[Tensor, " N"], column: int) -> Float[Tensor, " R"]:
    """1 for a page with a click on the trigger itself or on an item of its leaf category, else 0.

    A page without a click is 0, as by the letter of DIAN §2.2. A label, never an input.
    """
    trigger = inputs.trigger_fields[inputs.candidate_request]
    candidate = inputs.candidate_fields
    alike = same_value(candidate[:, column], trigger[:, column]) | same_value(candidate[:, 0], trigger[:, 0])
    found = clicks.new_zeros(len(inputs.trigger_fields))
    found = found.index_add(0, inputs.candidate_request, clicks * alike.to(clicks.dtype))
    return (found > 0).to(clicks.dtype)


class SearchedAttention(TargetAttention):
    """Multi-head attention in which every query sees behaviours of its own choice (SIM's hard search, DIAN eq. 6).

    The K newest behaviours of the category are all of them here: the history is short already.
    """

    def forward(
        self,
        queries: Float[Tensor, "R C Q"],
        keys: Float[Tensor, "R H E L"],
        values: Float[Tensor, "R H L E"],
        mask: Bool[Tensor, "R C L"],
    ) -> Float[Tensor, "R C W"]:
        """C queries per request, each with a mask of its own; 0 for a query that finds nothing."""
        n_requests, n_queries, _ = queries.shape
        q = self.query(queries) * self.head_width**-0.5
        q = q.reshape(n_requests, n_queries, self.n_heads, self.head_width).transpose(1, 2)
        weights = masked_softmax(q @ keys, mask.unsqueeze(1))
        heads = (weights @ values).transpose(1, 2).reshape(n_requests, n_queries, self.n_heads * self.head_width)
        out: Tensor = self.out(heads)
        return out

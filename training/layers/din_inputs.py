"""What DIN hands to its dense network, for models that are DIN with another network or other item vectors on it."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import DinAttention
from training.layers.embedding import EmbeddingWidths
from training.layers.page_tables import PageTables
from training.layers.ragged import CandidateRows


class DinInputs(nn.Module):
    """E_u ⊕ E_ctx (⊕ e_r) of the request, e_a (⊕ e_sem) ⊕ DIN(e_a; E_seq) of the candidates (Zhou et al., KDD 2018)."""

    def __init__(
        self,
        sizes: EncoderSizes,
        widths: EmbeddingWidths,
        attention: Literal["mlp", "dot"],
        attention_hidden: Sequence[int],
        trigger: bool,
        n_similarity_bins: int = 20,
        similarity_width: int = 16,
    ) -> None:
        super().__init__()
        self.page = page = PageTables(sizes, widths, trigger, n_similarity_bins, similarity_width)
        self.target_attention = DinAttention(page.item_width, page.behaviour_width, attention, attention_hidden)
        self.request_width = page.request_width
        self.candidate_width = page.candidate_width + page.behaviour_width

    def history(self, inputs: ModelInputs) -> dict[str, Tensor]:
        """The state that `candidates` needs: keys, their term of the attention, and which are there."""
        keys, mask = self.page.history(inputs)
        return {
            "history_keys": keys,
            "history_terms": self.target_attention.key_part(keys),
            "history_mask": mask,
        }

    def candidates(
        self, rows: CandidateRows, state: dict[str, Tensor], inputs: ModelInputs, item: Float[Tensor, "N I"]
    ) -> Float[Tensor, "N D"]:
        """`item` is e_a, as the tables give it or as the model would have it."""
        history = (state["history_keys"], state["history_terms"], state["history_mask"])
        pooled = rows.unpad(self.target_attention(rows.pad(item), *history))
        return torch.cat([self.page.candidate(inputs, item), pooled], dim=-1)

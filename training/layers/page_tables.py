"""The tables and plain features of one page: user, context, trigger, history, candidates. Used by the rival models.

A rival differs in what it makes of these; that all read the same is what makes their numbers comparable. DIN and DAIAN
are written out on their own, as the files to read first.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.embedding import BehaviourTables, EmbeddingWidths, FieldTables
from training.layers.similarity_bins import SimilarityBins


class PageTables(nn.Module):
    """`trigger=False`: a model that does not know the trigger, neither its fields nor a candidate's similarity to it.

    request_width: of `request` [E_u ⊕ E_ctx (⊕ e_r)]; candidate_width: of `candidate` [e_a (⊕ e_sem)]; item_width and
    behaviour_width: of one item and one behaviour (an item and its age).
    """

    def __init__(
        self,
        sizes: EncoderSizes,
        widths: EmbeddingWidths,
        trigger: bool,
        n_similarity_bins: int = 20,
        similarity_width: int = 16,
    ) -> None:
        super().__init__()
        self.reads_trigger = trigger
        self.user = FieldTables(sizes.user, sizes.user_kinds, widths)
        self.context = FieldTables(sizes.context, sizes.context_kinds, widths)
        self.behaviours = BehaviourTables(sizes.item, sizes.item_kinds, sizes.n_age_bins, widths)
        self.item_width = self.behaviours.item_width
        self.behaviour_width = self.behaviours.behaviour_width
        self.request_width = self.user.width + self.context.width
        self.candidate_width = self.item_width
        self.similarity = SimilarityBins(sizes.level_edges, n_similarity_bins, similarity_width) if trigger else None
        if trigger:
            self.request_width += self.item_width
            self.candidate_width += similarity_width

    def request(self, inputs: ModelInputs) -> Float[Tensor, "R D"]:
        """E_u ⊕ E_ctx, and ⊕ e_r for a model that knows the trigger."""
        parts = [self.user(inputs.user_fields), self.context(inputs.context_fields)]
        if self.reads_trigger:
            parts.append(self.trigger(inputs))
        return torch.cat(parts, dim=-1)

    def trigger(self, inputs: ModelInputs) -> Float[Tensor, "R I"]:
        """e_r."""
        return self.behaviours.item(inputs.trigger_fields)

    def history(self, inputs: ModelInputs) -> tuple[Float[Tensor, "R L B"], Bool[Tensor, "R L"]]:
        """The behaviours in time order (the newest last), padded at the end, and which are there."""
        return self.behaviours.behaviours(inputs.history_fields, inputs.history_age), inputs.history_age > 0

    def item(self, inputs: ModelInputs) -> Float[Tensor, "N I"]:
        """e_a."""
        return self.behaviours.item(inputs.candidate_fields)

    def candidate(self, inputs: ModelInputs, item: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        """e_a, and ⊕ the vector of its similarity to the trigger for a model that knows the trigger."""
        if self.similarity is None:
            return item
        return torch.cat([item, self.similarity(inputs.candidate_similarity)], dim=-1)

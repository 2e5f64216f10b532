"""The linear part of a wide or factorisation model: one weight for every id of every field. Used by WDL and DeepFM.

A field's weights are a table of width 1, so that they train, freeze and are exported as all other tables. An item has
three weights, one in each of its parts: as candidate, as trigger, as a behaviour of the history. Never here: products
of fields; each model has its own.
"""

from jaxtyping import Float
from torch import Tensor, nn

from service.contract.encoder import EncoderSizes, ModelInputs
from training.layers.attention import masked_mean
from training.layers.embedding import EmbeddingWidths, FieldTables
from training.layers.similarity_bins import SimilarityBins

_ONE = EmbeddingWidths(id=1, category=1, number=1, age=1)


class LinearTerms(nn.Module):
    """Σ_i w_i over the fields of a page; the history's fields count by their mean. No bias: the network above has one.

    `trigger=False` reads neither the trigger's fields nor the similarity to it.
    """

    def __init__(self, sizes: EncoderSizes, trigger: bool, n_similarity_bins: int = 20) -> None:
        super().__init__()
        self.user = FieldTables(sizes.user, sizes.user_kinds, _ONE)
        self.context = FieldTables(sizes.context, sizes.context_kinds, _ONE)
        self.history = FieldTables(sizes.item, sizes.item_kinds, _ONE)
        self.candidate_item = FieldTables(sizes.item, sizes.item_kinds, _ONE)
        self.trigger_item = FieldTables(sizes.item, sizes.item_kinds, _ONE) if trigger else None
        self.similarity = SimilarityBins(sizes.level_edges, n_similarity_bins, 1) if trigger else None

    def request(self, inputs: ModelInputs) -> Float[Tensor, " R"]:
        """The terms of user, context, history and trigger."""
        history = masked_mean(self.history(inputs.history_fields), inputs.history_age > 0).sum(-1)
        total: Tensor = self.user(inputs.user_fields).sum(-1) + self.context(inputs.context_fields).sum(-1) + history
        return total if self.trigger_item is None else total + self.trigger_item(inputs.trigger_fields).sum(-1)

    def candidate(self, inputs: ModelInputs) -> Float[Tensor, " N"]:
        """The terms of the candidate and of its similarity to the trigger."""
        total: Tensor = self.candidate_item(inputs.candidate_fields).sum(-1)
        return total if self.similarity is None else total + self.similarity(inputs.candidate_similarity).squeeze(-1)

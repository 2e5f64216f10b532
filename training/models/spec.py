"""What a ranking model is to the rest of the house: two phases, its stages, its line in the registry.

`training.loop` trains by these stages, `models_export` exports the two phases as two graphs. A model file imports this
module and `training.layers`, never another model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from service.contract.encoder import EncoderSizes, ModelInputs

State = dict[str, Tensor]


class ModelOutputs(NamedTuple):
    """`logits` [N]; `extras` are further numbers per candidate [N], such as gate means, for explanations."""

    logits: Tensor
    extras: dict[str, Tensor]


@runtime_checkable
class RankingModel(Protocol):
    """An `nn.Module` in two phases. The first sees no candidate; the second sees its result and one row per candidate.

    All tensors of the state have the requests as first axis. With one request the second phase broadcasts its state, so
    the same code is trained on ragged batches and exported with R = 1 and N free.
    """

    def encode_request(self, inputs: ModelInputs, given_intent: Tensor | None = None) -> State:
        """Everything that depends on the request alone. `given_intent` [R S] takes the place of the predicted one.

        The key "intent" [R S] is present when the model predicts one; it is always the prediction.
        """
        ...

    def score(self, state: State, inputs: ModelInputs) -> ModelOutputs:
        """One logit per candidate. Of `inputs` only the candidate side is read."""
        ...


@runtime_checkable
class LabelledInputs(Protocol):
    """What a loss of a model's own may read of a batch (`training.data.batches.Batch` is one)."""

    @property
    def inputs(self) -> ModelInputs:
        """The model's inputs."""
        ...

    @property
    def clicks(self) -> Tensor:
        """0 or 1, float32 [N]."""
        ...

    @property
    def intent(self) -> Tensor:
        """Share of the clicks by similarity level, float32 [R S]; zeros where there is none."""
        ...

    @property
    def has_intent(self) -> Tensor:
        """bool [R]."""
        ...

    @property
    def user_group(self) -> Int64[np.ndarray, " R"]:
        """Equal codes are one user, also one that the inputs hide; a request of nobody known has its own."""
        ...

    def click_loss(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy of the clicks under logits [N]: a scalar. Knows of candidates that were left out."""
        ...


@dataclass(frozen=True)
class TrainingFacts:
    """What the training split says about items, for models that need more than its batches (POSO, MWUF).

    Counted over the training days only. Ids are the encoder's, field 0 of an item or a user; 0 and 1 are "nothing" and
    "unknown".
    """

    item_impressions: Int64[np.ndarray, " M"]  # times shown as candidate, by item id
    item_clicks: Int64[np.ndarray, " M"]
    click_user: Int64[np.ndarray, " E"]  # the user id of every click,
    click_item: Int64[np.ndarray, " E"]  # and its item id
    item_fields: Int64[np.ndarray, "M I"]  # all fields of every item, by item id; zeros where the id is no item's


@dataclass(frozen=True)
class Stage:
    """One pass of training, as data for `training.loop.fit_stage`.

    trains: submodule prefixes whose parameters move; all others are frozen, bit for bit.
    loss: click cross-entropy, the intent's divergence, or the model's `own_loss` (auxiliary terms included).
    selects: what early stopping goes by: the validation ranking (the intent's divergence where that is the loss), or
    the stage's own loss over the validation split, for a stage whose weights do not score candidates yet.
    intent: what the request phase is given: nothing to choose ("none"), the label ("true") or its own prediction.
    requests: all of them, or only those with a click (the others have no intent label).
    learning_rates: ratio to the optimiser's rate by prefix, 1 where absent.
    as_long_as: the stages whose steps together this one takes, in the place of `max_epochs`; () = its own epochs.
    """

    name: str
    trains: tuple[str, ...]
    loss: Literal["click", "intent", "own"] = "click"
    intent: Literal["none", "true", "predicted"] = "predicted"
    requests: Literal["all", "clicked"] = "all"
    learning_rates: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    max_epochs: int = 1
    as_long_as: tuple["Stage", ...] = ()
    selects: Literal["ranking", "own_loss"] = "ranking"


@dataclass(frozen=True)
class ModelSpec:
    """One line of the registry: how to build a model from its config and the encoder's sizes, and how to train it.

    before_stage: called with the fresh or trained-so-far model, the stage's name and the facts before a stage begins.
    after_training: called with the model and the facts when the last stage is over, before it is evaluated and saved.
    """

    name: str
    paper: str
    config: type[Any]
    build: Callable[[Any, EncoderSizes], Any]
    stages: Callable[[Any], tuple[Stage, ...]]
    before_stage: Callable[[Any, str, TrainingFacts], None] | None = None
    after_training: Callable[[Any, TrainingFacts], None] | None = None

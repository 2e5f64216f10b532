"""What a ranking model is to the rest of the house: two phases, its stages, its line in the registry.

`training.loop` trains by these stages, `models_export` exports the two phases as two graphs. A model file imports this
module and `training.layers`, never another model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Stage:
    """One pass of training, as data for `training.loop.fit_stage`.

    trains: submodule prefixes whose parameters move; all others are frozen, bit for bit.
    intent: what the request phase is given: nothing to choose ("none"), the label ("true") or its own prediction.
    requests: all of them, or only those with a click (the others have no intent label).
    learning_rates: ratio to the optimiser's rate by prefix, 1 where absent.
    as_long_as: the stages whose steps together this one takes, in the place of `max_epochs`; () = its own epochs.
    """

    name: str
    trains: tuple[str, ...]
    loss: Literal["click", "intent"] = "click"
    intent: Literal["none", "true", "predicted"] = "predicted"
    requests: Literal["all", "clicked"] = "all"
    learning_rates: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    max_epochs: int = 1
    as_long_as: tuple["Stage", ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """One line of the registry: how to build a model from its config and the encoder's sizes, and how to train it."""

    name: str
    paper: str
    config: type[Any]
    build: Callable[[Any, EncoderSizes], Any]
    stages: Callable[[Any], tuple[Stage, ...]]

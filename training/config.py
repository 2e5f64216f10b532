"""The numbers of a training run, as frozen dataclasses. Recipes make them, `training.train` obeys them, run folders
keep them.

What a feature means is not here: schema, history rules and levels belong to the data set and its encoder.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal

from training.models import MODELS, spec_of


@dataclass(frozen=True)
class OptimConfig:
    """A fresh optimiser is made for every stage.

    Adagrad's accumulator starts at `initial_accumulator`: torch's own 0 would move every coordinate by the full
    learning rate at its first touch, whatever the gradient, and with sparse ids there is a first touch all the time.
    """

    kind: Literal["adagrad", "adam"] = "adagrad"
    learning_rate: float = 0.05
    initial_accumulator: float = 0.1
    weight_decay: float = 0.0  # dense parameters only; never the embedding tables


@dataclass(frozen=True)
class DataConfig:
    """Batches are made of whole requests with about this many candidates together.

    page_candidates: of longer pages, training takes the clicked and as many others as fill this number, drawn anew in
    each epoch, and corrects for it (`training.data.thinning`); 0 = whole pages. Evaluation always sees whole pages.
    validation_every: stages are judged on every n-th request of the validation days, where those are many.
    """

    batch_candidates: int = 4096
    page_candidates: int = 0
    validation_every: int = 1
    evaluation_candidates: int = 2048


@dataclass(frozen=True)
class TrainConfig:
    """One complete run. `model` is the config of a model in the registry.

    select_by: the validation number that early stopping and the choice of weights go by (stages that learn the intent
    go by its divergence). evaluate_every: steps between validations, 0 = once an epoch. patience: validations without a
    better number before a stage ends. checkpoint_every: steps between checkpoints. unknown_user_share: share of
    training requests whose user id is made unknown, so that the model learns what to do for users it never saw.
    content_start: spread of the item ids' start from content (`training.content_start`), 0 = the small random start.
    n_threads: of torch's products. Sums of floats depend on it, so it belongs to the run; batches are small, and two
    threads that wait for each other on a busy machine are slower than one by an order of magnitude.
    """

    name: str
    model: Any
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    seed: int = 1
    select_by: Literal["gauc_request", "gauc_user"] = "gauc_request"
    evaluate_every: int = 0
    patience: int = 2
    checkpoint_every: int = 500
    n_threads: int = 1
    unknown_user_share: float = 0.0
    content_start: float = 0.0


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values for config.json; `model_name` says which registry line the model's config belongs to."""
    return {"model_name": spec_of(config.model).name, **asdict(config)}


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The reverse of `to_dict`. Raises ValueError for an unknown model or field."""
    name = values.get("model_name")
    if name not in MODELS:
        raise ValueError(f"config names the model {name!r}; known models: {', '.join(MODELS)}")
    rest = {key: value for key, value in values.items() if key not in ("model_name", "model")}
    model = _build(MODELS[name].config, values["model"])
    return typing.cast(TrainConfig, _build(TrainConfig, {**rest, "model": model}))


def _build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"{cls.__name__} has no field {names}; was it written by another version?")
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next((part for part in typing.get_args(hint) if part is not types.NoneType), hint)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value)
    return tuple(value) if isinstance(value, list) else value

"""Configs survive the way to disk and back; strangers are refused by name."""

import json

import pytest

from training.config import from_dict, to_dict
from training.models import spec_of
from training.recipes import RECIPES, TABLES, recipe
from training.rows import ROWS

ALL = [*RECIPES, *(f"{table}/{row}" for table in TABLES for row in ROWS)]


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_survives_json(name: str) -> None:
    config = recipe(name)
    assert config.name == name
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_names_a_model_of_the_registry_and_has_stages(name: str) -> None:
    config = recipe(name)
    assert spec_of(config.model).stages(config.model)


def test_the_paper_recipe_holds_the_papers_numbers() -> None:
    config = recipe("paper/daian")
    assert (config.optim.kind, config.optim.learning_rate, config.data.batch_candidates) == ("adagrad", 0.05, 4096)
    assert (config.model.top, config.model.n_heads, config.model.width) == ((512, 256, 128), 4, 128)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="daian_demo"):
        recipe("dian_demo")
    with pytest.raises(ValueError, match="rows are din"):
        recipe("small/daina")
    saved = to_dict(recipe("din_demo"))
    with pytest.raises(ValueError, match="known models"):
        from_dict({**saved, "model_name": "bert"})
    with pytest.raises(ValueError, match="momentum"):
        from_dict({**saved, "momentum": 0.9})

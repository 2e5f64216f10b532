"""The docs say everything that can be set, asked, answered and measured, and nothing that is not there.

Each failure prints the sentence to write.
"""

import re

import pytest
from fastapi.routing import APIRoute

from service.api.admin import admin_router
from service.api.routes import router
from service.api.schemas import RankResponse
from service.app import make_parts
from service.errors import CODES
from service.metrics import Metrics
from service.settings import Settings, variable
from tests.architecture.tree import PAGES, ROOT, SOURCES, shown
from training.models import MODELS

SHOWN_DEFAULTS = {None: "unset"}


def page(name: str) -> str:
    path = ROOT / "docs" / name
    assert path.exists(), f"write docs/{name}"
    return path.read_text(encoding="utf-8")


def shown_default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return "usable cores"
    return SHOWN_DEFAULTS.get(field.default, str(field.default))


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_in_the_table_with_its_default(name: str) -> None:
    row = f"| `{variable(name)}` | {shown_default(name)} | "
    description = Settings.model_fields[name].description
    assert row in page("operate.md"), f"write in docs/operate.md: {row}{description} |"


def test_no_setting_is_documented_that_is_not_there() -> None:
    known = {variable(name) for name in Settings.model_fields}
    allowed = known | {f"{name}_FILE" for name in known}
    for path in PAGES:
        named = set(re.findall(r"\bDAIAN_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")))
        strangers = {name for name in named - allowed if not name.startswith("DAIAN_TEST_")}
        assert not strangers, f"{shown(path)} speaks of {sorted(strangers)}, which service/settings.py does not have"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_read_somewhere(name: str) -> None:
    readers = [
        path
        for path in SOURCES
        if shown(path) != "service/settings.py" and re.search(rf"\.{name}\b", path.read_text(encoding="utf-8"))
    ]
    assert readers, f"{variable(name)} is a knob without a wire: nothing reads settings.{name}; wire it or remove it"


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in page("api.md"), f"write in docs/api.md when `{code}` is answered and what the caller can do"


def routes() -> list[str]:
    """`METHOD path` of everything that the service answers to, hidden routes included."""
    parts = make_parts(Settings())
    known = [*router(parts).routes, *admin_router(parts).routes]
    return sorted(
        f"{method} {route.path_format}" for route in known if isinstance(route, APIRoute) for method in route.methods
    )


def test_every_route_is_documented() -> None:
    found, text = routes(), page("api.md")
    assert "POST /v1/rank" in found
    missing = [route for route in found if route.partition(" ")[2] not in text]
    assert not missing, f"write in docs/api.md what these answer: {missing}"


@pytest.mark.parametrize("field", RankResponse.model_fields)
def test_every_field_of_the_answer_is_documented(field: str) -> None:
    text = page("api.md")
    assert f"`{field}`" in text or f'"{field}"' in text, f"write in docs/api.md what `{field}` of the answer means"


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_is_documented(model: str) -> None:
    assert f"`{model}`" in page("add-a-model.md"), f"write in docs/add-a-model.md one line on `{model}`: paper and file"


def metric_names() -> list[str]:
    return sorted(
        family.name + ("_total" if family.type == "counter" else "") for family in Metrics().registry.collect()
    )


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_is_documented(name: str) -> None:
    assert f"| `{name}` |" in page("operate.md"), (
        f"write in docs/operate.md, table of signals: | `{name}` | labels | … |"
    )


def degraded_reasons() -> set[str]:
    """Every word that the code puts into `degraded`, read from the places where it does."""
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES if path.is_relative_to(ROOT / "service"))
    calls = re.findall(r"\.lost\(([^()]*)\)", text) + re.findall(r"degraded=\(([^()]*)\)", text)
    calls += re.findall(r"StoredUser\(.*?(\(\"[a-z_]+\",\))", text)
    return {word for call in calls for word in re.findall(r'"([a-z_]+)"', call)}


def test_every_reason_of_a_degraded_answer_has_a_line_in_the_runbook() -> None:
    reasons = degraded_reasons()
    assert {"behaviours", "behaviours_corrupt", "deadline", "model", "trigger_unknown"} <= reasons
    for reason in sorted(reasons):
        assert f"| `{reason}` |" in page("operate.md"), f"write in the runbook of docs/operate.md: | `{reason}` | … |"
        assert f"`{reason}`" in page("api.md"), f"write in docs/api.md what `{reason}` in `degraded` means"


LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_links_between_pages_lead_somewhere() -> None:
    for path in PAGES:
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{shown(path)} links to {target}, which is not there"

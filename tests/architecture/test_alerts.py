"""The alerting rules: of series and labels that the service has, each with its page in the runbook; and promises."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute

from service.api.routes import router
from service.app import make_parts
from service.metrics import Metrics
from service.settings import Settings
from tests.architecture.tree import ROOT

RULES = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
SELECTOR = re.compile(r"\b([a-z_]+)(?:\{([^}]*)\})?(?=[\[\s)=]|$)")
SCRAPED = {"up": {"job", "instance"}}  # by Prometheus itself
WORDS = {
    "sum", "rate", "increase", "max", "count", "by", "on", "group_left", "unless", "histogram_quantile", "offset",
}  # fmt: skip
ADDED = {"instance", "job"}  # by Prometheus to every series


def alerts(rules: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in rules["groups"] for rule in group["rules"]]


def series() -> dict[str, set[str]]:
    """Names of all series that the service exposes, with their labels."""
    found = dict(SCRAPED)
    for metric in vars(Metrics()).values():
        name, labels = getattr(metric, "_name", None), set(getattr(metric, "_labelnames", ()))
        if name is None:
            continue
        kind = type(metric).__name__
        if kind == "Histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[f"{name}_total" if kind == "Counter" else name] = labels
    return found


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Series of an expression with their matchers; what stands in brackets behind `by` are labels."""
    expression = re.sub(r"\b(?:by|on|group_left)\s*\([^)]*\)", " ", expression)
    for name, matchers in SELECTOR.findall(re.sub(r"\[[^\]]*\]|\boffset \w+", " ", expression)):
        if name not in WORDS and not name.isdigit():
            yield name, re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers)


def grouped_by(expression: str) -> set[str]:
    return {one.strip() for found in re.findall(r"\bby\s*\(([^)]*)\)", expression) for one in found.split(",")}


def faults(rules: dict[str, Any]) -> list[str]:
    """What is wrong with rules: strange series and labels, nothing to do, no page of the runbook."""
    known, said = series(), []
    for rule in alerts(rules):
        name = rule["alert"]
        used = list(selectors(rule["expr"]))
        said += [f"{name}: no series" for _ in "x" if not used]
        for metric, matchers in used:
            if metric not in known:
                said.append(f"{name}: {metric} is no series")
                continue
            said += [f"{name}: {metric} has no label {label}" for label, _ in matchers if label not in known[metric]]
        labels = {label for metric, _ in used for label in known.get(metric, ())} | ADDED
        said += [f"{name}: by {label}" for label in grouped_by(rule["expr"]) - labels]
        said += [f"{name}: severity" for _ in "x" if rule["labels"].get("severity") not in ("page", "ticket")]
        said += [f"{name}: runbook" for _ in "x" if rule["annotations"]["runbook"] != anchor(name)]
    return said


def anchor(name: str) -> str:
    return f"docs/operate.md#{name.lower()}"


def pages(text: str) -> dict[str, str]:
    """Of the runbook, by alert."""
    found = re.findall(r"^### (Daian\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    return dict(found)


def test_every_rule_asks_for_what_the_service_says() -> None:
    assert len(alerts(RULES)) > 10
    assert faults(RULES) == []


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    assert list(pages(PAGE)) == [rule["alert"] for rule in alerts(RULES)]
    for rule in alerts(RULES):
        page = pages(PAGE)[rule["alert"]]
        assert page.startswith(f"*{rule['labels']['severity']}.*"), rule["alert"]
        assert re.search(r"\*\*Look", page), f"say in the runbook where to look at {rule['alert']}"
        assert re.search(r"\*\*Do\*\*|Look and do\*\*", page), f"say in the runbook what to do at {rule['alert']}"


def test_routes_that_are_watched_are_there() -> None:
    routes = {one.path_format for one in router(make_parts(Settings())).routes if isinstance(one, APIRoute)}
    matchers = [pair for rule in alerts(RULES) for _, found in selectors(rule["expr"]) for pair in found]
    watched = {value for label, value in matchers if label == "route"}
    assert watched == {"/v1/rank", "/v1/events"}
    assert watched <= routes


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("daian_shed_total", "daian_shedd_total", "DaianShedding: daian_shedd_total is no series"),
        ("daian_request_seconds_bucket", "daian_request_seconds", "DaianSlow: daian_request_seconds is no series"),
        ('outcome="refused"', 'result="refused"', "DaianBundleRefused: daian_bundle_loads_total has no label result"),
        ("by (tenant)", "by (shop)", "DaianTenantOverQuota: by shop"),
        ("#daiandown", "#down", "DaianDown: runbook"),
        ("severity: page", "severity: soon", "DaianDown: severity"),
    ],
)
def test_a_rule_that_never_fires_is_found(old: str, new: str, said: str) -> None:
    text = (ROOT / "deploy/alerts.yml").read_text(encoding="utf-8")
    assert old in text
    assert said in faults(yaml.safe_load(text.replace(old, new)))


def test_an_alert_without_a_page_is_found() -> None:
    assert "DaianSlow" not in pages(PAGE.replace("### DaianSlow\n", "### Slow\n"))


# --- the promises -----------------------------------------------------------------------------------------------------


def promised() -> list[str]:
    """The last cells of the table of promises: the commands that show them."""
    table = PAGE[PAGE.index("| when | then | shown by |") :].split("\n\n")[0]
    return [row.rstrip(" |").rpartition(" | ")[2] for row in table.splitlines()[2:]]


def test_every_promise_has_a_command_that_can_be_typed() -> None:
    assert len(promised()) > 20
    for command in promised():
        assert re.match(r"`make (chaos|soak|test|e2e-compose)\b", command), command
        for path in re.findall(r"tests/[\w/.]+\.py", command):
            text = (ROOT / path).read_text(encoding="utf-8")
            for word in re.findall(rf"{path} -k (\w+)", command):
                assert re.search(rf"def test_\w*{word}", text), f"{command}: no test of {path} is called so"


def test_every_goal_is_promised() -> None:
    goals = {
        goal
        for command in promised()
        for found in re.findall(r"--only ([G\d,]+)", command)
        for goal in found.split(",")
    }
    assert goals == {f"G{number}" for number in range(1, 19)}

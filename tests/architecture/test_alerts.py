"""The alerting rules: of series and labels that the service has, each with its page in the runbook; and promises."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest
import yaml
from fastapi.routing import APIRoute
from prometheus_client import Counter

from service import label_values as values
from service.api.routes import router
from service.app import make_parts
from service.errors import _VERDICTS
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
VALUES: Mapping[str, Mapping[str, tuple[str, ...]]] = {  # of labels, by series
    "daian_degraded_total": {"reason": values.DEGRADED_REASONS},
    "daian_shed_total": {"reason": values.SHED_REASONS},
    "daian_cold_total": {"kind": values.COLD_KINDS},
    "daian_store_corrupt_total": {"what": values.CORRUPT_VALUES},
    "daian_store_breaker_open": {"pool": values.STORE_OPERATIONS},
    "daian_bundle_loads_total": {"outcome": values.BUNDLE_OUTCOMES},
    "daian_bundle_failed": {"outcome": values.BUNDLE_FAILURES},
    "daian_log_dropped_total": {"log": values.LOGS},
    "daian_events_total": {"outcome": values.EVENT_OUTCOMES},
    "daian_bundle_info": {"variant": (values.LIVE,)},
    "up": {"job": ("daian",)},
}
STATUSES = ("200", *sorted({str(verdict.status) for verdict in _VERDICTS.values()}))
NOT_FROM_THE_START = {
    "daian_tenant_rejected_total",  # nobody knows the tenants; and its rule asks for hundreds
    "daian_events_total",  # its rule asks whether none came: no series says so too
}


class Matcher(NamedTuple):
    """One condition of a selector."""

    label: str
    operator: str
    value: str

    def takes(self, value: str) -> bool:
        """What Prometheus does: its patterns are anchored at both ends."""
        return self.names(self.value, value) != self.operator.startswith("!")

    def names(self, word: str, value: str) -> bool:
        """Whether a word, a pattern where this is one of patterns, stands for a value."""
        return re.fullmatch(word, value) is not None if "~" in self.operator else word == value

    def words(self) -> list[str]:
        """What it names: of a pattern each of its ways, for one may be misspelt and another hit."""
        return self.value.split("|") if "~" in self.operator else [self.value]


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


def selectors(expression: str) -> Iterator[tuple[str, list[Matcher]]]:
    """Series of an expression with their matchers; what stands in brackets behind `by` are labels."""
    expression = re.sub(r"\b(?:by|on|group_left)\s*\([^)]*\)", " ", expression)
    for name, matchers in SELECTOR.findall(re.sub(r"\[[^\]]*\]|\boffset \w+", " ", expression)):
        if name not in WORDS and not name.isdigit():
            yield name, [Matcher(*found) for found in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers)]


@cache
def values_of_requests() -> dict[str, tuple[str, ...]]:
    routes = {one.path_format for one in router(make_parts(Settings())).routes if isinstance(one, APIRoute)}
    return {"route": tuple(routes), "status": STATUSES, "variant": values.VARIANTS, "surface": ("other",)}


def values_of(metric: str) -> Mapping[str, tuple[str, ...]]:
    """The labels of a series whose values are known."""
    is_of_requests = re.fullmatch(r"daian_requests_total|daian_request_seconds_\w+", metric)
    return values_of_requests() if is_of_requests else VALUES.get(metric, {})


def strange_values(metric: str, matchers: list[Matcher]) -> Iterator[str]:
    """What a selector asks for and no series ever says."""
    for one in matchers:
        known = values_of(metric).get(one.label)
        if known is None:
            yield f"no list of the values of {one.label}"
            continue
        for word in one.words():
            if not any(one.names(word, value) for value in known):
                yield f"{one.label} is never {word}"


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
            said += [f"{name}: {metric} has no label {label}" for label, _, _ in matchers if label not in known[metric]]
            said += [f"{name}: {one}" for one in strange_values(metric, matchers)]
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
    matchers = [one for rule in alerts(RULES) for _, found in selectors(rule["expr"]) for one in found]
    watched = {one.value for one in matchers if one.label == "route"}
    assert watched == {"/v1/rank", "/v1/events"}
    assert watched <= routes


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("daian_shed_total", "daian_shedd_total", "DaianShedding: daian_shedd_total is no series"),
        ("daian_request_seconds_bucket", "daian_request_seconds", "DaianSlow: daian_request_seconds is no series"),
        ('outcome="refused"', 'result="refused"', "DaianBundleRefused: daian_bundle_loads_total has no label result"),
        ("by (tenant)", "by (shop)", "DaianTenantOverQuota: by shop"),
        ('outcome="refused"', 'outcome="refusd"', "DaianBundleRefused: outcome is never refusd"),
        ('reason=~"model|scores"', 'reason=~"modle|scores"', "DaianModelFails: reason is never modle"),
        ('reason=~"overload|expired"', 'reason=~"overload|late"', "DaianShedding: reason is never late"),
        ('kind="candidate"', 'kind="candidates"', "DaianUnknownItems: kind is never candidates"),
        ('variant="live"', 'variant="alive"', "DaianBundlesDiffer: variant is never alive"),
        ("store_corrupt_total[", 'store_corrupt_total{what="members"}[', "DaianStoreCorrupt: what is never members"),
        ('outcome="accepted"', 'outcome="taken"', "DaianNoEvents: outcome is never taken"),
        ('status="507"', 'status="508"', "DaianStoreFull: status is never 508"),
        ('"503|507"', '"503|599"', "DaianErrors: status is never 599"),
        ("dropped_total[", 'dropped_total{log=""}[', "DaianRowsDropped: log is never "),
        ("rejected_total[", 'rejected_total{tenant="x"}[', "DaianTenantOverQuota: no list of the values of tenant"),
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


# --- the first hit ----------------------------------------------------------------------------------------------------


def counters(metrics: Metrics) -> dict[str, Counter]:
    return {f"{one._name}_total": one for one in vars(metrics).values() if isinstance(one, Counter)}


def unseen(rules: dict[str, Any], fresh: Metrics) -> set[str]:
    """Series that rules count and that are not at 0 before their first hit, which is then no rise."""
    found = set()
    for rule in alerts(rules):
        for metric, matchers in selectors(rule["expr"]):
            if metric not in counters(fresh) or metric in NOT_FROM_THE_START:
                continue
            for labels in to_watch(metric, matchers, counters(fresh)[metric]._labelnames):
                if fresh.registry.get_sample_value(metric, labels) != 0:
                    found.add(" ".join([metric, *labels.values()]))
    return found


def to_watch(metric: str, matchers: list[Matcher], names: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The label sets that a selector takes; of requests the failures of a ranking and of an event call alone."""
    known = dict(values_of(metric))
    if metric == "daian_requests_total":
        known |= {"status": values.OUR_FAULTS, "route": ("/v1/rank", "/v1/events"), "variant": ("none",)}
    for chosen in product(*(known[name] for name in names)):
        labels = dict(zip(names, chosen, strict=True))
        if all(one.takes(labels[one.label]) for one in matchers):
            yield labels


def started() -> Metrics:
    """As they are when a process has its routes and has answered nothing."""
    parts = make_parts(Settings())
    router(parts)
    return parts.metrics


def test_what_a_rule_counts_is_at_zero_before_its_first_hit() -> None:
    assert unseen(RULES, started()) == set()


def test_without_its_routes_a_process_lacks_requests_alone() -> None:
    assert {one.split()[0] for one in unseen(RULES, Metrics())} == {"daian_requests_total"}


def test_the_failures_of_a_bundles_ranking_are_at_zero_too() -> None:
    labels = {"route": "/v1/rank", "status": "500", "variant": "live", "surface": "other"}
    assert started().registry.get_sample_value("daian_requests_total", labels) == 0


def test_every_failure_that_the_service_can_answer_is_expected() -> None:
    assert set(values.OUR_FAULTS) == {status for status in STATUSES if status >= "500"}


def test_series_that_begin_with_their_first_hit_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metrics, "_start_at_zero", lambda _: None)
    monkeypatch.setattr(Metrics, "expect_requests", lambda *_: None)
    found = unseen(RULES, started())
    assert {"daian_bundle_loads_total refused", "daian_degraded_total model", "daian_degraded_total scores"} <= found
    assert {f"daian_store_corrupt_total {what}" for what in ("member", "profile", "erased_at")} <= found
    assert {"daian_requests_total /v1/rank 500 none other", "daian_requests_total /v1/events 507 none other"} <= found


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
    assert goals == {f"G{number}" for number in range(1, 20)}

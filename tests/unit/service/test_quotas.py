"""Quotas: what a tenant may ask, whatever the others do, at a fixed cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import TenantQuota, retry_after_ms_of, verdict_of
from service.metrics import Metrics
from service.quotas import OTHERS_S, TenantQuotas, TenantShares


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def n_taken(quotas: TenantQuotas, n: int, tenant: str = "shop") -> int:
    taken = 0
    for _ in range(n):
        try:
            quotas.take(tenant)
            taken += 1
        except TenantQuota:
            pass
    return taken


def test_a_burst_passes_and_then_the_rate() -> None:
    clock = Clock()
    quotas = TenantQuotas(10.0, 5, Metrics(), clock)
    assert n_taken(quotas, 20) == 5
    clock.now_s += 0.1
    assert n_taken(quotas, 20) == 1
    clock.now_s += 0.25
    assert n_taken(quotas, 20) == 2
    clock.now_s += 3600
    assert n_taken(quotas, 20) == 5


def test_a_refusal_says_when_the_next_one_passes_and_costs_nothing() -> None:
    clock = Clock()
    quotas = TenantQuotas(2.0, 1, Metrics(), clock)
    quotas.take("shop")
    for _ in range(1000):
        with pytest.raises(TenantQuota) as refused:
            quotas.take("shop")
    wait_ms = retry_after_ms_of(refused.value)
    assert wait_ms == pytest.approx(500, abs=1)
    assert verdict_of(refused.value).status == 429
    clock.now_s += wait_ms / 1000
    quotas.take("shop")


def test_tenants_do_not_feel_each_other_and_are_counted() -> None:
    metrics = Metrics()
    quotas = TenantQuotas(1.0, 3, metrics, Clock())
    assert (n_taken(quotas, 1000, "loud"), n_taken(quotas, 3, "calm")) == (3, 3)
    assert b'daian_tenant_rejected_total{tenant="loud"} 997.0' in metrics.text()
    assert b'tenant="calm"' not in metrics.text()


def test_a_rate_of_0_is_no_quota_and_keeps_nothing() -> None:
    quotas = TenantQuotas(0.0, 1, Metrics(), Clock())
    assert n_taken(quotas, 1000) == 1000
    assert not quotas._full_at_s


def test_tenants_without_a_key_are_forgotten() -> None:
    quotas = TenantQuotas(1.0, 1, Metrics(), Clock())
    for tenant in ("a", "b", "c"):
        quotas.take(tenant)
    quotas.keep_only({"b", "new"})
    assert set(quotas._full_at_s) == {"b"}


@given(rate=st.floats(0.5, 1000), burst=st.integers(1, 50), gaps_s=st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_no_stretch_of_time_has_more_than_burst_and_rate(rate: float, burst: int, gaps_s: list[float]) -> None:
    clock = Clock()
    quotas = TenantQuotas(rate, burst, Metrics(), clock)
    passed_s: list[float] = []
    for gap_s in gaps_s:
        clock.now_s += gap_s
        passed_s += [clock.now_s] * n_taken(quotas, 3)
    for first, start_s in enumerate(passed_s):
        for last in range(first, len(passed_s)):
            assert last - first + 1 <= burst + rate * (passed_s[last] - start_s) + 1e-6


# --- places -----------------------------------------------------------------------------------------------------------


def test_who_asks_alone_is_alone_and_who_was_followed_is_not() -> None:
    clock = Clock()
    shares = TenantShares(clock)
    for _ in range(3):
        shares.ask("shop")
        assert shares.is_alone("shop")
    assert not shares.is_alone("club")
    shares.ask("club")
    assert not shares.is_alone("shop")
    clock.now_s += OTHERS_S / 2
    shares.ask("shop")
    shares.ask("shop")
    assert not shares.is_alone("shop")
    clock.now_s += OTHERS_S / 2 + 0.1
    assert shares.is_alone("shop")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 8)), max_size=30), st.sampled_from("abcd"))
def test_two_times_and_a_name_say_the_same_as_a_list_of_all(asked: list[tuple[str, float]], tenant: str) -> None:
    clock, last = Clock(), dict[str, float]()
    shares = TenantShares(clock)
    for name, pause_s in asked:
        clock.now_s += pause_s
        shares.ask(name)
        last[name] = clock.now_s
    others = [clock.now_s - at for name, at in last.items() if name != tenant]
    assert shares.is_alone(tenant) == (not others or min(others) > OTHERS_S)


def test_places_are_counted_by_tenant_and_who_has_none_is_forgotten() -> None:
    shares = TenantShares()
    for tenant in ("shop", "club", "shop"):
        shares.take(tenant)
    assert [shares.held(tenant) for tenant in ("shop", "club", "none")] == [2, 1, 0]
    for tenant in ("shop", "club", "shop"):
        shares.give_back(tenant)
    assert shares._held == {}

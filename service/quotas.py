"""Requests per second of each tenant: a token bucket, kept as one number.

Asked by `api/gate.py` for every request that a key let in, before any of its body is read. In this process and without
the store, so it holds while Redis is away. The bucket of a tenant is the time at which it would be full again (GCRA:
ATM Forum TM 4.0, virtual scheduling): a look costs one comparison, a refusal changes nothing, a tenant takes one float.
"""

import time
from collections.abc import Callable, Collection

from service.errors import TenantQuota
from service.metrics import Metrics

_ROUNDING_S = 1e-9


class TenantQuotas:
    """`rate` requests a second and `burst` at once for each tenant; a rate of 0 is no quota."""

    def __init__(self, rate: float, burst: int, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / rate if rate > 0 else 0.0
        self._slack_s = (burst - 1) * self._interval_s
        self._full_at_s: dict[str, float] = {}
        self._metrics = metrics
        self._clock = clock

    def take(self, tenant: str) -> None:
        """Takes one request out of the tenant's bucket. Raises TenantQuota, with the time until the next one."""
        if not self._interval_s:
            return
        now_s = self._clock()
        full_at_s = max(self._full_at_s.get(tenant, now_s), now_s)
        wait_s = full_at_s - now_s - self._slack_s
        if wait_s > _ROUNDING_S:
            self._metrics.tenant_rejected.labels(tenant).inc()
            raise TenantQuota("this tenant's requests per second are used up: come back later", int(wait_s * 1000) + 1)
        self._full_at_s[tenant] = full_at_s + self._interval_s

    def keep_only(self, tenants: Collection[str]) -> None:
        """Forgets tenants whose last key is gone, so that the memory is that of the keys file."""
        for gone in self._full_at_s.keys() - set(tenants):
            del self._full_at_s[gone]

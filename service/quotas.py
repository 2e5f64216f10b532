"""What one tenant may take: requests per second, a token bucket kept as one number; and places, while others ask too.

`TenantQuotas` is asked by `api/gate.py` for every request that a key let in, before any of its body is read. In this
process and without the store, so it holds while Redis is away. The bucket of a tenant is the time at which it would be
full again (GCRA: ATM Forum TM 4.0, virtual scheduling): a look costs one comparison, a refusal changes nothing, a
tenant takes one float. `TenantShares` is kept by `admission.py`, which knows how many places there are.
"""

import math
import time
from collections.abc import Callable, Collection

from service.errors import TenantQuota
from service.metrics import Metrics

OTHERS_S = 10.0  # who has asked within so long is there: longer than the pause that a refusal asks for
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


class TenantShares:
    """How many places each tenant holds, and whether it is alone.

    Who else asks is known from two times and a name, however many tenants there are: the newest to ask and when, and
    when last somebody did who was another. Those who were refused have asked too: else who holds every place would
    keep all others out, and be alone because of it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._held: dict[str, int] = {}
        self._newest = ""
        self._newest_s = self._other_s = -math.inf
        self._clock = clock

    def ask(self, tenant: str) -> None:
        """This tenant is there."""
        if tenant != self._newest:
            self._newest, self._other_s = tenant, self._newest_s
        self._newest_s = self._clock()

    def is_alone(self, tenant: str) -> bool:
        """Whether nobody else has asked within OTHERS_S."""
        other_s = self._other_s if tenant == self._newest else self._newest_s
        return self._clock() - other_s > OTHERS_S

    def held(self, tenant: str) -> int:
        """Places that the tenant has."""
        return self._held.get(tenant, 0)

    def take(self, tenant: str) -> None:
        """One more."""
        self._held[tenant] = self._held.get(tenant, 0) + 1

    def give_back(self, tenant: str) -> None:
        """One less; who has none is forgotten."""
        n_left = self._held[tenant] - 1
        if n_left:
            self._held[tenant] = n_left
        else:
            del self._held[tenant]

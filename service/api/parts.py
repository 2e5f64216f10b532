"""Parts: everything that the endpoints work with, made once by `service/app.py` and handed to the routes.

No endpoint reads a global or the environment: what it may touch stands here.
"""

from dataclasses import dataclass, field

from service.admission import Admission
from service.api.gate import Gate
from service.bundle_swap import BundleSwap
from service.metrics import Metrics, UserHasher
from service.request_log import RequestLog
from service.runtime import RuntimeSwitch
from service.settings import Settings
from service.user_store import UserStore

MAX_LAG_S = 0.25


@dataclass
class Health:
    """What the probes answer from; written by the heartbeat and by the signal handler, never by a request."""

    draining: bool = False
    loop_lag_s: float = 0.0

    @property
    def is_stuck(self) -> bool:
        """True while the event loop's heartbeat comes so late that new requests would wait for it."""
        return self.loop_lag_s > MAX_LAG_S


@dataclass(frozen=True)
class Parts:
    """One process's parts. The bundle may change behind `switch`; the rest stays until the end."""

    settings: Settings
    switch: RuntimeSwitch
    swap: BundleSwap
    store: UserStore
    admission: Admission
    request_log: RequestLog
    metrics: Metrics
    hash_user: UserHasher
    gate: Gate
    health: Health = field(default_factory=Health)

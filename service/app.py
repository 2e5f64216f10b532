"""create_app: the parts of one process put together, its routes, error handlers and lifespan.

Called by `daian serve`, by uvicorn in each worker (`create_app_from_environment`) and by tests. The bundle is opened
and verified before the first request is taken; the store is not asked, because its absence must not keep us from
starting.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from service import store_fullness
from service.admission import Admission
from service.api.admin import admin_router, listener_router
from service.api.doorway import RANK_PATHS, Doorway
from service.api.exchange import Exchange, endpoint
from service.api.gate import Gate
from service.api.openapi import with_components
from service.api.parts import Health, Parts
from service.api.routes import rank_endpoint, router
from service.api_keys import KeyRing
from service.bundle_swap import BundleSwap
from service.contract.errors import BundleError, DaianError
from service.door import DOORWAY
from service.errors import BadRequest, MethodNotAllowed, NotFound
from service.metrics import Metrics, UserHasher, configure_logging
from service.process_tuning import calm_the_collector
from service.quotas import TenantQuotas
from service.redis_client import StoreSettings, check_settings, with_password
from service.redis_sentinels import SentinelAccess
from service.request_log import RequestLog
from service.retriever import prepare_worker
from service.runtime import RuntimeSwitch, Shared
from service.settings import Settings, read_settings, variable
from service.user_store import MemoryUserStore, RedisUserStore, UserStore

HEARTBEAT_S = 0.1
KEYS_EVERY_S = 1.0
KEYS = "keys_file"
TITLE = "daian"
_log = logging.getLogger("daian.app")


def create_app_from_environment() -> "FastAPI | ByPort":
    """The app of one uvicorn worker; two of them on one set of parts when there is an admin port."""
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_format)
    app = create_app(settings, drains=True)
    return app if settings.admin_port is None else ByPort(app, create_admin_app(app.state.parts), settings.admin_port)


class ByPort:
    """One process, two listening sockets: whoever came in at the admin port sees the admin app, all others the public.

    The port is the listening socket's own, which no header can change.
    """

    def __init__(self, public: ASGIApp, admin: ASGIApp, admin_port: int) -> None:
        self._public = public
        self._admin = admin
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        is_admin = scope["type"] == "http" and server is not None and server[1] == self._admin_port
        await (self._admin if is_admin else self._public)(scope, receive, send)


class HeadAsGet:
    """HEAD is answered as GET is; the server sends the headers alone (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, send)


class StraightToRanking:
    """`POST /v1/rank` goes past routing and FastAPI's handler of a request, which took a tenth of the loop's time.

    They would find the same endpoint, and there is nothing of theirs it needs: it reads the body by itself, and every
    error becomes an answer in it. Its route stays, for `/openapi.json` and for servers with a path in front of ours.
    """

    def __init__(self, app: ASGIApp, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        self._app = app
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in RANK_PATHS:
            response = await self._endpoint(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class QuietRefusal:
    """A start that is refused for a foreseen reason says so in one line; only a bug is told with its traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []  # the traceback comes first, and its error after it

        async def hold(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                held.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, hold)
        except (DaianError, OSError) as error:
            what = "bundle refused" if isinstance(error, BundleError) else "not started"
            held = [{**message, "message": f"{what}: {error}"} for message in held]
            raise
        finally:
            for message in held:
                await send(message)


def create_app(settings: Settings, store: UserStore | None = None, drains: bool = False) -> FastAPI:
    """An app whose parts are made now and opened in its lifespan.

    `store` replaces the one that the settings name; `drains` puts the drain before the server's own SIGTERM handler.
    """
    parts = make_parts(settings, store)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        async with running(parts):
            if drains:
                drain_on_sigterm(parts.health, settings.drain_s)
                swap_on_sighup(parts.swap)
            yield {DOORWAY: Doorway(app, parts)}

    routers = [router(parts)]
    if settings.admin_port is None and settings.keys_file is not None:
        routers.append(admin_router(parts))  # without a port of its own only where a key is asked for
    app = _app_of(parts, routers, lifespan)
    app.add_middleware(StraightToRanking, endpoint=rank_endpoint(parts))
    app.add_middleware(Doorway, parts=parts)  # the last one added is the first to be asked
    app.add_middleware(QuietRefusal)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def create_admin_app(parts: Parts) -> FastAPI:
    """The app of the admin port, on the parts of the public one, which opens and closes them."""
    return _app_of(parts, [listener_router(parts)])


def _app_of(parts: Parts, routers: list[APIRouter], lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    app = FastAPI(
        title=TITLE, lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.parts = parts
    for one in routers:
        app.include_router(one)
    app.add_middleware(HeadAsGet)
    app.add_exception_handler(HTTPException, _not_routed)
    return app


def make_parts(settings: Settings, store: UserStore | None = None) -> Parts:
    """Everything that needs no event loop and no file."""
    metrics = Metrics()
    key = settings.id_hash_key
    switch, store = RuntimeSwitch(metrics), store or make_store(settings, metrics)
    admission = Admission(settings.scorer_concurrency, metrics, prepare_worker, settings.deadline_ms / 1000)
    shared = Shared(store, admission, RequestLog(settings.request_log, metrics), metrics)
    return Parts(
        settings=settings,
        switch=switch,
        swap=BundleSwap(settings, shared, switch),
        store=store,
        admission=admission,
        request_log=shared.request_log,
        metrics=metrics,
        hash_user=UserHasher(key.get_secret_value().encode() if key else None),
        gate=Gate(KeyRing(settings.keys_file), make_quotas(settings, metrics)),
    )


def make_quotas(settings: Settings, metrics: Metrics) -> TenantQuotas:
    """This process's share of what a tenant may ask: the workers of one service share its requests."""
    share = settings.workers
    return TenantQuotas(settings.tenant_rate / share, max(1, settings.tenant_burst // share), metrics)


def make_store(settings: Settings, metrics: Metrics) -> UserStore:
    """Redis where an address is given; else users live in this process and are gone with it."""
    if settings.redis_url is None:
        return MemoryUserStore(settings.behaviours_window_days, settings.behaviours_keep)
    return RedisUserStore(store_settings(settings), StoreSignals(metrics))


def store_settings(settings: Settings) -> StoreSettings:
    """The store's own settings, out of ours. Raises ValueError without an address, or for one that cannot work."""
    if settings.redis_url is None:
        raise ValueError("DAIAN_REDIS_URL is not set: name a Redis or Valkey server")
    events_url = settings.redis_events_url
    passwords = settings.redis_password, settings.redis_events_password
    password, events_password = (one.get_secret_value() if one else None for one in passwords)
    files = settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file
    ca_file, cert_file, key_file = (str(one) if one else None for one in files)
    store = StoreSettings(
        url=with_password(settings.redis_url.get_secret_value(), password),
        events_url=with_password(events_url.get_secret_value(), events_password) if events_url else None,
        timeout_ms=settings.redis_timeout_ms,
        read_budget_ms=settings.redis_read_budget_ms,
        pool=settings.redis_pool,
        pool_wait_ms=settings.redis_pool_wait_ms,
        breaker_failures=settings.breaker_failures,
        breaker_open_ms=settings.breaker_open_ms,
        window_days=settings.behaviours_window_days,
        keep=settings.behaviours_keep,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        sentinels=_sentinel_access(settings),
        wait_replicas=settings.redis_wait_replicas,
        wait_ms=settings.redis_wait_ms,
    )
    check_settings(store)
    return store


def _sentinel_access(settings: Settings) -> SentinelAccess:
    password = settings.redis_sentinel_password
    return SentinelAccess(
        settings.redis_sentinel_user, password.get_secret_value() if password else None, settings.redis_sentinel_tls
    )


class StoreSignals:
    """Turns what the store goes through into metrics (`StoreObserver` of user_store.py)."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answered(self, operation: str, seconds: float) -> None:
        """One operation answered in time."""
        self._metrics.store_seconds.labels(operation).observe(seconds)

    def failed(self, operation: str, kind: str) -> None:
        """One operation failed, and how."""
        self._metrics.store_errors.labels(operation, kind).inc()

    def late(self, operation: str) -> None:
        """A reply landed after its reader had gone on without it."""
        self._metrics.store_late.labels(operation).inc()

    def corrupt(self, what: str, n: int) -> None:
        """Values that failed their check."""
        self._metrics.store_corrupt.labels(what).inc(n)

    def breaker(self, operation: str, is_open: bool) -> None:
        """A breaker changed its state: there is one, or one per node's slots in a cluster."""
        self._metrics.store_breaker_open.labels(operation).inc(1 if is_open else -1)

    def memory(self, share: float) -> None:
        """How much of its memory the fullest server uses."""
        self._metrics.saw_store_memory(share)


@contextlib.asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    """Opens the bundle and the log, keeps the heartbeat, and closes everything in the opposite order."""
    calm_the_collector()
    _open_gate(parts.gate)
    parts.request_log.open()
    tasks = [asyncio.create_task(_heartbeat(parts)), asyncio.create_task(_watch_keys(parts.gate))]
    try:
        await parts.swap.start()
        tasks.append(asyncio.create_task(parts.swap.follow()))
        yield
    finally:
        parts.swap.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        parts.admission.close()
        parts.request_log.close()
        await parts.store.close()


def drain_on_sigterm(health: Health, drain_s: float) -> None:
    """The first SIGTERM makes us not ready and reaches the server `drain_s` later: balancers look elsewhere meanwhile.

    Called in the main thread, after the server has set its own handler. A second SIGTERM stops at once.
    """
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    if not callable(stop):
        return

    def drain(number: int, frame: FrameType | None) -> None:
        if health.draining:
            stop(number, frame)
            return
        health.draining = True
        loop.call_soon_threadsafe(loop.call_later, drain_s, stop, number, frame)

    signal.signal(signal.SIGTERM, drain)


def swap_on_sighup(swap: BundleSwap) -> None:
    """SIGHUP looks at the pointer now. A worker that moved it says so to the supervisor, who passes it on to all."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, swap.wake)
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid is not None:
        swap.tell_others = partial(os.kill, supervisor.pid, signal.SIGHUP)


async def _heartbeat(parts: Parts) -> None:
    """Measures how late the event loop wakes up, from which the probes answer, and what it costs, for admission.

    And takes back what nobody looks at any more: the store's memory, as a metric.
    """
    while True:
        before_s, before_cpu_s = time.monotonic(), time.thread_time()
        await asyncio.sleep(HEARTBEAT_S)
        parts.admission.observe_loop(time.thread_time() - before_cpu_s)
        lag_s = max(0.0, time.monotonic() - before_s - HEARTBEAT_S)
        parts.health.loop_lag_s = lag_s
        parts.metrics.loop_lag.set(lag_s)
        parts.metrics.forget_store_memory(store_fullness.FRESH_S)


def _open_gate(gate: Gate) -> None:
    """Reads the keys, or says that there are none. Raises KeysFileError for a file that is not one."""
    if not gate.keys.is_on:
        _log.warning("no keys: whoever reaches this port may rank, write and erase; %s names a file", variable(KEYS))
    gate.keys.open()


async def _watch_keys(gate: Gate) -> None:
    """Takes added and revoked keys within seconds, without a restart."""
    while gate.keys.is_on:
        await asyncio.sleep(KEYS_EVERY_S)
        if await asyncio.to_thread(gate.keys.reload_if_changed):
            gate.quotas.keep_only(gate.keys.tenants)


async def _not_routed(request: Request, error: Exception) -> Response:
    """What Starlette refuses before a route is found: 404, 405 and the like, as every other error is answered."""
    assert isinstance(error, HTTPException)
    known = {
        404: NotFound("no such path: GET /openapi.json lists all"),
        405: MethodNotAllowed("this path takes another method: see the Allow header"),
    }

    async def refuse(_: Exchange) -> Response:
        raise known.get(error.status_code, BadRequest("this request cannot be routed"))

    response = await endpoint("none", refuse, request.app.state.parts)(request)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=TITLE,
            version=version("daian"),
            summary="Trigger-induced recommendation: ranks the page below a clicked item",
            routes=app.routes,
        )
        app.openapi_schema = with_components(document)
    return app.openapi_schema

"""A store behind TLS: the server is checked, we show who we are, and whatever does not fit degrades and says so.

The wheel's server is built without TLS, so a front of Python's own `ssl` stands before it; certificates are made here.
"""

import asyncio
import gc
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from service.embedded_store import embedded_store
from service.errors import StoreUnavailable
from service.redis_client import StoreSettings, check_settings
from service.redis_sentinels import SentinelAccess
from service.store_load import load
from service.store_tools import inspect_user
from service.user_store import BehaviourEvent, RedisUserStore, StoreCounts
from tests.chaos.store_servers import Server, started

NOW = 1_795_000_000_000
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with the openssl binary")


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def authority(folder: Path, name: str) -> Path:
    """A certificate authority: `<name>.pem` and `<name>.key`."""
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"),
    )  # fmt: skip
    return folder / f"{name}.pem"


def signed(folder: Path, name: str, ca: Path, names: str) -> Path:
    """A certificate of that authority for these names; its key has the same stem."""
    key, request, extensions = folder / f"{name}.key", folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\n")
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
        "-keyout", str(key), "-out", str(request),
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca.with_suffix(".key")), "-days", "2",
        "-CAcreateserial", "-extfile", str(extensions), "-out", str(folder / f"{name}.pem"),
    )  # fmt: skip
    return folder / f"{name}.pem"


@contextmanager
def tls_front(url: str, certificate: Path, client_ca: Path | None) -> Iterator[int]:
    """The port of a TLS server that passes everything on to the URL's; asks for a certificate if told whose."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), list[int]()
    stop = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = url.removeprefix("redis://").partition(":")
        behind_reader, behind_writer = (
            await asyncio.open_unix_connection(unquote(url.removeprefix("unix://")))
            if url.startswith("unix://")
            else await asyncio.open_connection(host, int(port))
        )
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        gc.collect()  # what is left of broken handshakes, while its loop still runs
        await asyncio.sleep(0.05)  # transports are closed by callbacks

    def run() -> None:
        loop.set_exception_handler(lambda *_: None)
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca, _ = authority(folder, "ca"), authority(folder, "stranger")
        signed(folder, "server", ca, "IP:127.0.0.1")
        signed(folder, "elsewhere", ca, "DNS:elsewhere.example")
        signed(folder, "us", ca, "DNS:daian")
        yield folder


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name, embedded_store(Path(name)) as url:
        yield url


def settings_of(folder: Path, port: int) -> StoreSettings:
    ca_file, cert_file, key_file = (str(folder / name) for name in ("ca.pem", "us.pem", "us.key"))
    settings = StoreSettings(f"rediss://127.0.0.1:{port}", ca_file=ca_file, cert_file=cert_file, key_file=key_file)
    return replace(settings, timeout_ms=10_000, read_budget_ms=8_000, pool_wait_ms=8_000)


def asked(settings: StoreSettings) -> tuple[tuple[str, ...], str]:
    """(what was degraded, kind of the failure) of one ranking and one event."""

    async def main() -> tuple[tuple[str, ...], str]:
        store = RedisUserStore(settings, clock=lambda: NOW)
        try:
            with suppress(StoreUnavailable):
                await store.append([BehaviourEvent("u_1", "i", "click", NOW - 5_000)])
            user = await store.fetch("u_1", NOW)
            assert isinstance(store.observer, StoreCounts)
            kinds = {kind[2] for kind in store.observer.counts if kind[:2] == ("failed", "read")}
            assert len(user.behaviours) == (0 if user.degraded else 1)
            return user.degraded, "".join(kinds)
        finally:
            await store.close()
            gc.collect()

    return asyncio.run(main())


def test_with_the_right_certificates_everything_works(url: str, folder: Path, tmp_path: Path) -> None:
    with tls_front(url, folder / "server.pem", folder / "ca.pem") as port:
        settings = settings_of(folder, port)
        assert asked(settings) == ((), "")
        file = tmp_path / "users.ndjson"
        file.write_text('{"user": "u_2", "behaviours": [{"item": "i", "at": 1794999999000, "type": "click"}]}')
        assert load(settings, [str(file)], now=NOW, progress=False).n_new == 1
        behaviours = inspect_user(settings, "u_2", now=NOW)["behaviours"]
        assert isinstance(behaviours, list)
        assert len(behaviours) == 1


@pytest.mark.parametrize("wrong", ["stranger's authority", "another name", "no certificate of ours", "no TLS"])
def test_whatever_does_not_fit_degrades(url: str, folder: Path, wrong: str) -> None:
    certificate = "elsewhere.pem" if wrong == "another name" else "server.pem"
    with tls_front(url, folder / certificate, folder / "ca.pem") as port:
        settings = settings_of(folder, port)
        if wrong == "stranger's authority":
            settings = replace(settings, ca_file=str(folder / "stranger.pem"))
        if wrong == "no certificate of ours":
            settings = replace(settings, cert_file=None, key_file=None)
        if wrong == "no TLS":
            settings = StoreSettings(f"redis://127.0.0.1:{port}", None, 1_000, 900)
        degraded, kind = asked(settings)
        assert degraded == ("behaviours",)
        assert kind in ("connection", "timeout", "late")


# --- sentinels --------------------------------------------------------------------------------------------------------

A_LONG_TIME_MS = 3_600_000  # the wheel's sentinel cannot ask a server with TLS whether it lives: it must not want to


@contextmanager
def watched(folder: Path, certificates: Path) -> Iterator[tuple[Server, int]]:
    """A sentinel, and the port of TLS before it. It names a primary with TLS (`secret`) and one without (`plain`)."""
    certificate, ca = certificates / "server.pem", certificates / "ca.pem"
    with ExitStack() as stack:
        data = started(folder / "data")
        stack.callback(data.kill)
        with_tls = stack.enter_context(tls_front(f"redis://127.0.0.1:{data.port}", certificate, ca))
        config = "".join(
            f"sentinel monitor {name} 127.0.0.1 {port} 1\nsentinel down-after-milliseconds {name} {A_LONG_TIME_MS}\n"
            for name, port in (("secret", with_tls), ("plain", data.port))
        )
        sentinel = started(folder / "sentinel", config=config)
        stack.callback(sentinel.kill)
        yield sentinel, stack.enter_context(tls_front(f"redis://127.0.0.1:{sentinel.port}", certificate, ca))


def test_sentinels_and_servers_have_tls_alike_or_each_for_itself(folder: Path, tmp_path: Path) -> None:
    with watched(tmp_path, folder) as (sentinel, front):
        settings = settings_of(folder, 0)
        found = {}
        for number, (scheme, tls, port, service) in enumerate(
            (
                ("rediss", "same", front, "secret"),
                ("rediss", "off", sentinel.port, "secret"),
                ("redis", "on", front, "plain"),
                ("redis", "same", sentinel.port, "plain"),
                # and what does not fit: TLS to a sentinel without, none to one with, and a primary that wants it
                ("rediss", "same", sentinel.port, "secret"),
                ("redis", "same", front, "plain"),
                ("redis", "on", front, "secret"),
            )
        ):
            url = f"{scheme}+sentinel://127.0.0.1:{port}/{service}"
            # What does not fit is waited for in vain.
            timeout_ms, read_budget_ms = (
                (settings.timeout_ms, settings.read_budget_ms) if number < 4 else (1_000, 2_000)
            )
            place = replace(
                settings,
                url=url,
                timeout_ms=timeout_ms,
                read_budget_ms=read_budget_ms,
                sentinels=SentinelAccess(tls=tls),
            )  # type: ignore[arg-type]
            if scheme == "rediss" or tls == "on":
                check_settings(place)
            found[scheme, tls, port == front, service] = asked(place)[0] == ()
            if found[scheme, tls, port == front, service]:
                assert len(inspect_user(place, "u_1", now=NOW)["behaviours"]) == 1  # type: ignore[arg-type]
    assert list(found.values()) == [True] * 4 + [False] * 3, found

"""A port that is in use is said with its address and the way out, before anything is started for it."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli import MISSING, run
from service.doctor import _port
from service.listening import AddressError, address_fault, bound_sockets
from service.settings import Settings


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def in_use(port: int, setting: str) -> str:
    return f"127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}; set {setting}, or stop what listens there"


def test_serve_says_it_and_starts_no_store(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"DAIAN_PORT": "1", "DAIAN_ID_HASH_KEY": "0" * 64}.items():  # as they were, afterwards
        monkeypatch.setenv(name, value)
    store = tmp_path / "store"
    assert run(["serve", "--port", str(taken), "--store-folder", str(store)]) == MISSING
    assert capfd.readouterr() == ("", f"daian: {in_use(taken, 'DAIAN_PORT')}\n")
    assert not store.exists()


def test_of_the_admin_port_its_own_setting_is_named(taken: int) -> None:
    with pytest.raises(AddressError) as refused:
        bound_sockets(Settings(port=0, admin_port=taken))
    assert str(refused.value) == in_use(taken, "DAIAN_ADMIN_PORT")


def test_the_doctor_has_the_same_words(taken: int) -> None:
    assert _port(Settings(port=taken)).detail == in_use(taken, "DAIAN_PORT")


def test_what_is_no_address_of_this_machine_is_no_matter_of_the_port() -> None:
    with pytest.raises(AddressError, match="set DAIAN_HOST to an address of this machine"):
        bound_sockets(Settings(host="192.0.2.1", port=0))
    with pytest.raises(AddressError, match="set DAIAN_HOST to"):
        bound_sockets(Settings(host="no-such-name.invalid", port=0))
    forbidden = address_fault("127.0.0.1", 80, PermissionError(errno.EACCES, "Permission denied"), "port")
    assert forbidden == "127.0.0.1:80: Permission denied; set DAIAN_PORT"


def test_the_public_socket_comes_first_and_workers_inherit_both() -> None:
    public, admin = bound_sockets(Settings(host="127.0.0.1", port=0, admin_host="127.0.0.2", admin_port=0))
    with public, admin:
        assert [one.getsockname()[0] for one in (public, admin)] == ["127.0.0.1", "127.0.0.2"]
        assert public.get_inheritable()
        assert admin.get_inheritable()

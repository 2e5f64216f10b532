"""Sockets that the service listens on, and what to do where one cannot be had.

Called by `serving.py` before it starts anything, and by `doctor.py` for its words. Light: the parent of the workers
loads it. Never accepts a connection.
"""

import errno
import os
import socket

from service.contract.errors import DaianError
from service.settings import Settings, variable


class AddressError(DaianError):
    """An address that cannot be listened on: taken, forbidden, or not of this machine."""


def bound_sockets(settings: Settings) -> list[socket.socket]:
    """The public socket and, where an admin port is set, that one after it. Both bound, neither listening yet.

    Raises:
        AddressError: one cannot be had, with its address, the reason and the setting to change.
    """
    sockets = [_bound(settings.host, settings.port, "port")]
    if settings.admin_port is not None:
        try:
            sockets.append(_bound(settings.admin_host, settings.admin_port, "admin_port"))
        except AddressError:
            sockets[0].close()
            raise
    return sockets


def address_fault(host: str, port: int, error: OSError, setting: str) -> str:
    """What is wrong with an address, and the way out; `setting` is the name of the port's, such as "admin_port"."""
    advice = f"set {variable(setting)}"
    if error.errno == errno.EADDRINUSE:
        advice += ", or stop what listens there"
    elif error.errno != errno.EACCES:
        advice = f"set {variable(setting.replace('port', 'host'))} to an address of this machine"
    number = error.errno or 0
    # `socket.create_server` adds to strerror; a name that nobody knows has a negative number, and words of its own.
    reason = os.strerror(number) if number > 0 else error.strerror
    return f"{host}:{port}: {reason}; {advice}"


def _bound(host: str, port: int, setting: str) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a service before do not count
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise AddressError(address_fault(host, port, error, setting)) from error
    bound.set_inheritable(True)  # workers take it over
    return bound

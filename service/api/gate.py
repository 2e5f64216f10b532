"""Gate: who is calling, whether a key lets them do this, and whether their tenant asks too often.

Asked by `exchange.py` before a handler runs and before any of the body is read. Whatever is wrong with a key, the
answer is the same 401; a live key without the scope is 403. Without a keys file the gate is open and everyone is the
main tenant. Never says whether an id, a tenant or a key exists. The doorway asks it who is meant before all that, where
several tenants share a queue.
"""

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from service.api_keys import KeyRing, Scope
from service.behaviour_codec import MAIN_TENANT
from service.door import Headers
from service.errors import ForbiddenScope, Unauthenticated
from service.quotas import TenantQuotas

Needed = Scope | Literal["any"]  # "any" live key will do


@dataclass(frozen=True)
class Caller:
    """Whose users are meant; `key` is the public id of the key, None while no keys are asked for."""

    tenant: str = MAIN_TENANT
    key: str | None = None


class Gate:
    """Lets requests in by key and by quota."""

    def __init__(self, keys: KeyRing, quotas: TenantQuotas) -> None:
        self.keys, self.quotas = keys, quotas

    def admit(self, request: Request, needed: Needed) -> Caller:
        """The caller. Raises Unauthenticated, ForbiddenScope when the key may not do this, or TenantQuota.

        What operators ask for is never over a quota: they ask most when a tenant is.
        """
        caller = self._caller(request, needed)
        if needed != "admin":
            self.quotas.take(caller.tenant)
        return caller

    def tenant_among_others(self, headers: Headers, needed: Scope) -> str | None:
        """Whose users are meant, where several tenants have keys; None where one has, and without a key that may."""
        if len(self.keys.tenants) < 2:
            return None
        found = self.keys.find(_credential(headers))
        return found.tenant if found is not None and needed in found.scopes else None

    def _caller(self, request: Request, needed: Needed) -> Caller:
        if not self.keys.is_on:
            return Caller()
        found = self.keys.find(_credential(request.scope["headers"]))
        if found is None:
            raise Unauthenticated("send a live key as `Authorization: Bearer` or `X-API-Key`, and only one")
        if needed != "any" and needed not in found.scopes:
            raise ForbiddenScope(f"this call needs a key with the scope `{needed}`")
        return Caller(found.tenant, found.id)


def _credential(headers: Headers) -> str:
    """The one key that a request brings; "" when it brings none, several, or another kind of credential."""
    given = []
    for name, value in headers:
        if name == b"x-api-key":
            given.append(value.decode("latin-1"))
        elif name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            given.append(key.strip() if scheme.lower() == "bearer" else "")
    return given[0] if len(given) == 1 else ""

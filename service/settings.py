"""Settings: what whoever operates the service may change, read from `DAIAN_*` and nowhere else.

Called once, by the command that starts the process. Addresses, time-outs and limits live here; no setting can change a
tensor, because everything that does travels in the bundle. Secrets may also come from a file named by
`DAIAN_<NAME>_FILE`, and so may the key that bundles are signed with. A `DAIAN_*` name that we do not know stops the
start: a misspelt limit is a limit that does not hold.
"""

import difflib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import ServiceError

PREFIX = "DAIAN_"
TEST_PREFIX = "DAIAN_TEST_"
SECRETS = (
    "redis_url",
    "redis_events_url",
    "redis_password",
    "redis_events_password",
    "redis_sentinel_password",
    "id_hash_key",
)
FROM_FILES = (*SECRETS, "bundle_public_key")  # a key in PEM has lines, which a file holds better than a variable


class SettingsError(ServiceError):
    """A setting that is unknown, unreadable or out of range."""


def usable_cores() -> int:
    """Cores this process may use: the affinity mask, cut by the cgroup's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _cgroup_cores(Path("/sys/fs/cgroup/cpu.max"))
    return max(1, min(cores, quota) if quota else cores)


def _cgroup_cores(file: Path) -> int | None:
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


class SecretFiles(PydanticBaseSettingsSource):
    """Reads `DAIAN_<NAME>_FILE` of FROM_FILES; the file's last line break is not part of the value."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        path = os.environ.get(file_variable(field_name)) if field_name in FROM_FILES else None
        if path is None:
            return None, field_name, False
        try:
            return Path(path).read_text().rstrip("\r\n"), field_name, False
        except OSError as error:
            raise SettingsError(
                f"{file_variable(field_name)} cannot be read ({error.strerror}): name a file that this process may read"
            ) from error

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            value, key, _ = self.get_field_value(field, name)
            if value is not None:
                found[key] = value
        return found


class Settings(BaseSettings):
    """Every setting of the service with its default; durations say their unit in their name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    # server
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose")
    admin_host: str = Field("127.0.0.1", description="address of the admin port")
    admin_port: int | None = Field(None, ge=0, le=65535, description="port of metrics and admin calls; none if unset")
    workers: int = Field(1, ge=1, le=256, description="processes; workers times scorer concurrency should be the cores")
    drain_s: float = Field(3.0, ge=0, le=60, description="not ready, but still serving, for so long before the stop")
    grace_s: float = Field(5.0, ge=0, le=60, description="time for requests in flight after the drain")
    docs: Literal["on", "off"] = Field("on", description="serve /docs and /openapi.json")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line written")
    log_format: Literal["json", "text"] = Field("json", description="one JSON object per line, or plain text")
    id_hash_key: SecretStr | None = Field(
        None, description="key of the hashes of ids in logs; random per start if unset"
    )
    keys_file: Path | None = Field(None, description="hashes of the API keys; everyone may do everything if unset")

    # limits
    max_candidates: int = Field(1000, ge=1, le=10_000, description="candidates and top_k of one request")
    max_body_bytes: int = Field(1_048_576, ge=1024, le=64 << 20, description="bytes of a rank body")
    max_header_bytes: int = Field(16_384, ge=1024, le=1 << 20, description="bytes of all request headers")
    receive_timeout_s: float = Field(5.0, gt=0, le=300, description="time to receive headers and body")
    deadline_ms: int = Field(100, ge=5, le=60_000, description="deadline of a request that names none")
    max_deadline_ms: int = Field(2000, ge=5, le=60_000, description="longest deadline a request may ask for")
    tenant_rate: float = Field(0.0, ge=0, le=1e6, description="requests per second of a tenant; 0 is no quota")
    tenant_burst: int = Field(100, ge=1, le=1_000_000, description="requests of a tenant at once, within its quota")
    max_connections_per_peer: int = Field(256, ge=1, description="open connections per address")

    # store
    redis_url: SecretStr | None = Field(
        None, description="address of the store (one server, sentinels, a cluster); unset starts an embedded one"
    )
    redis_events_url: SecretStr | None = Field(None, description="address for writes; the same as reads if unset")
    redis_password: SecretStr | None = Field(None, description="password for an address that has none in it")
    redis_events_password: SecretStr | None = Field(None, description="the same for the address for writes")
    redis_sentinel_user: str | None = Field(None, description="user at the sentinels, where they know users")
    redis_sentinel_password: SecretStr | None = Field(None, description="password of the sentinels themselves")
    redis_sentinel_tls: Literal["same", "on", "off"] = Field("same", description="TLS to the sentinels")
    redis_read_budget_ms: int = Field(20, ge=1, le=1000, description="how long a ranking waits for behaviours")
    redis_timeout_ms: int = Field(100, ge=1, le=10_000, description="connect and socket time-out")
    redis_pool: int = Field(32, ge=1, le=1024, description="connections per pool")
    redis_pool_wait_ms: int = Field(20, ge=1, le=1000, description="how long to wait for a free connection")
    redis_wait_replicas: int = Field(0, ge=0, le=16, description="replicas that must have a write before it counts")
    redis_wait_ms: int = Field(50, ge=1, le=9_999, description="how long to wait for them")
    redis_ca_file: Path | None = Field(None, description="certificate authority for rediss://")
    redis_cert_file: Path | None = Field(None, description="our certificate, for a server that asks for one")
    redis_key_file: Path | None = Field(None, description="the key of that certificate")
    breaker_failures: int = Field(3, ge=1, le=100, description="failures in a row that open the breaker")
    breaker_open_ms: int = Field(200, ge=1, le=60_000, description="pause before the breaker probes again")
    behaviours_window_days: int = Field(14, ge=1, le=180, description="days of behaviours kept in the store")
    behaviours_keep: int = Field(58, ge=1, le=1008, description="behaviours kept per user")

    # model
    bundle_root: Path | None = Field(None, description="folder with the bundles and the pointer `current`")
    bundle_name: str = Field("daian", description="which model of the bundle root")
    bundle_poll_s: float = Field(5.0, ge=0, le=3600, description="how often to look at `current`; 0: only when told")
    bundle_keep_loaded: int = Field(2, ge=1, le=2, description="2 keeps the bundle before open, to go back at once")
    bundle_failures: int = Field(
        20,
        ge=0,
        le=1_000_000,
        description="answers in a row, half or more of their scores not finite, that end a bundle; 0: none do",
    )
    bundle_trial_s: float = Field(120.0, ge=1, le=3600, description="longest first load of a new bundle, in its child")
    bundle_public_key: str | None = Field(
        None, description="PEM of the Ed25519 keys that may sign bundles; no signature is asked for if unset"
    )
    ort_threads: int = Field(1, ge=1, le=64, description="threads of one ONNX Runtime call")
    scorer_concurrency: int = Field(default_factory=usable_cores, ge=1, le=256, description="requests computed at once")
    chunk: int = Field(256, ge=1, le=10_000, description="candidates scored between two looks at the clock")
    prerank: Literal["off", "on"] = Field("off", description="cut what was recalled by the bundle's pre-ranker")
    prerank_recall: int = Field(2000, ge=2, le=20_000, description="items recalled for the pre-ranker")
    prerank_keep: int = Field(200, ge=1, le=10_000, description="items that the pre-ranker leaves to be ranked")

    # log of what was ranked
    request_log: Path | None = Field(None, description="NDJSON file that every ranking is appended to; off if unset")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (the name is part of pydantic's call)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls)


def variable(name: str) -> str:
    """`redis_url` -> `DAIAN_REDIS_URL`."""
    return PREFIX + name.upper()


def file_variable(name: str) -> str:
    """`redis_url` -> `DAIAN_REDIS_URL_FILE`."""
    return variable(name) + "_FILE"


def read_settings() -> Settings:
    """The settings of this process, from its environment.

    Raises SettingsError for an unknown name, a value out of range, or a secret given twice.
    """
    _refuse_unknown(os.environ)
    _refuse_twice(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        # The value may be a secret: name the setting and the rule, never what was found.
        lines = [f"{variable(str(found['loc'][0]))}: {found['msg']}" for found in error.errors(include_input=False)]
        raise SettingsError("settings out of range: " + "; ".join(lines)) from None


def origin(name: str, environ: Mapping[str, str]) -> str:
    """Where a setting's value came from: its variable, its file variable, or `default`."""
    if environ.get(variable(name)):
        return variable(name)
    return file_variable(name) if name in FROM_FILES and environ.get(file_variable(name)) else "default"


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {variable(name) for name in Settings.model_fields} | {file_variable(name) for name in FROM_FILES}
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and not name.startswith(TEST_PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"{name} is not a setting: did you mean {nearest}? `daian config show` lists them all")


def _refuse_twice(environ: Mapping[str, str]) -> None:
    for name in FROM_FILES:
        if environ.get(variable(name)) and environ.get(file_variable(name)):
            raise SettingsError(f"both {variable(name)} and {file_variable(name)} are set: keep one")

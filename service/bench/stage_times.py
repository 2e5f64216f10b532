"""The stages of requests out of their Server-Timing headers. Used by `daian bench` and by `benchmarks/`.

Which stages there are is the service's business: whatever the header names is taken, in its order.
"""

from collections.abc import Sequence


def of_header(header: str) -> dict[str, float]:
    """Milliseconds by stage, `total` first."""
    found = {}
    for part in header.split(","):
        name, _, rest = part.strip().partition(";")
        found[name] = float(rest.removeprefix("dur="))
    return found


def of_headers(headers: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of every request by stage, 0 where a request had no such stage. `total` comes last."""
    read = [of_header(header) for header in headers]
    names = list(dict.fromkeys(name for one in read for name in one if name != "total"))
    return {name: [one.get(name, 0.0) for one in read] for name in [*names, "total"]}

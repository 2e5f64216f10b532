"""The page at /docs: rank, click and look, in one file without a single foreign asset.

Served by the routes. The page speaks to the same public endpoints as everyone; it has no rights of its own.
"""

from functools import cache
from importlib.resources import files

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def page() -> bytes:
    """The HTML, as packaged."""
    return files("service.api").joinpath("docs.html").read_bytes()

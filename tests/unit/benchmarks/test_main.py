"""What the command asks for becomes the plan; what it cannot have is said."""

from argparse import Namespace

import pytest

from benchmarks.__main__ import planned
from benchmarks.plan import QUICK, Plan


def asked(quick: bool = False, servers: str = "", load_s: float | None = None) -> Namespace:
    return Namespace(quick=quick, servers=servers, load_s=load_s)


def test_what_is_not_asked_for_stays_as_planned() -> None:
    assert (planned(asked()), planned(asked(quick=True))) == (Plan(), QUICK)


def test_some_servers_and_a_shorter_load() -> None:
    plan = planned(asked(servers="KServe,LitServe", load_s=2.0))
    assert (plan.servers, plan.load_s) == (("KServe", "LitServe"), 2.0)


def test_a_server_that_nobody_knows_is_named() -> None:
    with pytest.raises(SystemExit, match="no such server: Tensorflow; there are LitServe"):
        planned(asked(servers="KServe,Tensorflow"))

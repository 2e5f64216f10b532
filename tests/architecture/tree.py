"""Where the project's files are, for the tests of this folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "training", "models_export")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def shown(path: Path) -> str:
    """A path as a reader knows it: relative to the project's root."""
    return path.relative_to(ROOT).as_posix()

"""The report of a comparison: numbers of all runs -> report.json, report.md and one self-contained report.html.

Called by `daian compare`. `training.report_numbers` computes, `training.report_sections` says it,
`training.report_page` writes it down.
"""

from collections.abc import Mapping
from pathlib import Path

from service.contract.strict_json import strict_json
from training.compare import Comparison, RowState, all_states
from training.data.whole_files import write_whole
from training.report_numbers import report_numbers
from training.report_page import html, markdown
from training.report_sections import sections


def write_report(comparison: Comparison, states: Mapping[str, RowState]) -> list[Path]:
    """Writes the report of `states` and of whatever else the folder holds; the files' paths."""
    numbers = report_numbers(comparison, all_states(comparison, states))
    blocks = sections(numbers)
    title = f"Table of rivals: {comparison.table}, {numbers['comparison']['data']}"
    files = {
        "report.json": strict_json(numbers, indent=1),
        "report.md": markdown(title, blocks),
        "report.html": html(title, blocks),
    }
    for name, text in files.items():
        write_whole(comparison.out / name, text.encode())
    return [comparison.out / name for name in files]

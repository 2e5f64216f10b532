"""The report of a comparison: numbers of all runs -> report.json, report.md and one self-contained report.html.

Called by `daian compare`. `training.report_numbers` computes, `training.report_page` says it in Markdown and HTML.
"""

from collections.abc import Mapping
from pathlib import Path

from service.contract.strict_json import strict_json
from training.compare import Comparison, RowState
from training.data.whole_files import write_whole
from training.report_numbers import report_numbers


def write_report(comparison: Comparison, states: Mapping[str, RowState]) -> list[Path]:
    """Writes the report of what is finished; the files' paths."""
    numbers = report_numbers(comparison, states)
    path = comparison.out / "report.json"
    write_whole(path, strict_json(numbers, indent=1).encode())
    return [path]

"""A report as Markdown, and as one HTML file that needs nothing else.

`training.report_sections` (a comparison) and `training.evaluation_report` (one run) say what is in it, as blocks; here
they are written down. Figures are in the HTML alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
.wide{overflow-x:auto}.wide+.wide{margin-top:1.2rem}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .55rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}tr.group td{font-weight:600;background:#f4f4f4;text-align:left}
figure{display:inline-block;width:560px;max-width:100%;margin:.5rem 1rem .5rem 0}
svg{width:100%;height:auto;font-size:12px}
"""


_WIDEST = 56  # of a padded column; what is longer sticks out


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; a row of one cell is the title of a group of rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """An inline SVG."""

    svg: str


Block = Heading | Paragraph | Table | Figure


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report without its figures."""
    return "\n\n".join([f"# {title}", *(_markdown(block) for block in blocks if not isinstance(block, Figure))]) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The whole report; no script, no request to anywhere."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Table):
        return _markdown_table(block)
    return block.text if isinstance(block, Paragraph) else ""


def _markdown_table(table: Table) -> str:
    """Padded, so that the columns also stand below each other where nobody renders them: in a terminal."""
    n_columns = len(table.header)
    found = [
        table.header,
        *((f"**{row[0]}**", *[""] * (n_columns - 1)) if len(row) == 1 else row for row in table.rows),
    ]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in found]
    widths = [max([4, *(len(line[at]) for line in cells if len(line[at]) <= _WIDEST)]) for at in range(n_columns)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    head, *rows = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Figure):
        return f"<figure>{block.svg}</figure>"
    head = "".join(f"<th>{escape(cell)}</th>" for cell in block.header)
    rows = "\n".join(_html_row(row, len(block.header)) for row in block.rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>'


def _html_row(row: tuple[str, ...], width: int) -> str:
    if len(row) == 1:
        return f'<tr class="group"><td colspan="{width}">{escape(row[0])}</td></tr>'
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"

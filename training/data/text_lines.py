"""The lines of a text file and where they are, for readers of public data sets: their errors name file and line.

Called by `movielens_files` and `wikispeedia_files`; what a line means is said there.
"""

from collections.abc import Iterator
from pathlib import Path

from training.data.errors import DataError


def numbered_lines(path: Path, get_it: str) -> Iterator[tuple[str, str]]:
    """Every line that is not blank, without its end, after where it is: `<path>, line <n>`.

    `get_it` ends the errors: how to come by the file. Raises DataError for a file that is missing or not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {get_it}.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 ({error.reason}); {get_it}.") from error
            if line.strip():
                yield where, line

"""The public files of Wikispeedia, read and checked: articles, categories, links, games; for `prepare_wikispeedia`.

The files are SNAP's `wikispeedia_paths-and-graph` (West & Leskovec, WWW 2012; West, Pineau & Precup, IJCAI 2009). This
module says what a line means; what a request is, is said in `prepare_wikispeedia`. Errors name file and line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from training.data.errors import DataError
from training.data.text_lines import numbered_lines

BACK = "<"
TIMEOUT_IDLE_S = 1_800  # a game times out after 30 minutes without a click: they are in its duration
Outcome = Literal["finished", "restart", "timeout"]


@dataclass(frozen=True)
class Game:
    """One game. `steps`: articles and BACK, the first is the start page. `ended_at_s`: epoch seconds.

    The files do not say whether a game's time stamp is its start or its end; the games do: read as ends, 4 % of the
    games ended by "restart" reach into the same user's next game, read as starts 18 %, and half of all restarts are
    followed by a game that begins within a minute.
    """

    user: str
    ended_at_s: int
    duration_s: int
    steps: tuple[str, ...]
    goal: str
    outcome: Outcome

    @property
    def played_ms(self) -> int:
        """Time from the first page to the last action, epoch-free milliseconds."""
        idle = TIMEOUT_IDLE_S if self.outcome == "timeout" else 0
        return max(self.duration_s - idle, 0) * 1_000

    @property
    def started_at_ms(self) -> int:
        """When the first page was opened, epoch ms."""
        return (self.ended_at_s - self.duration_s) * 1_000


@dataclass(frozen=True)
class Graph:
    """Articles in file order, their category paths (without `subject.`) and their links in file order."""

    articles: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    links: dict[str, tuple[str, ...]]


def read_graph(source: Path) -> Graph:
    """Articles, categories and links. Raises DataError naming file and line, also for names that are no article."""
    articles = tuple(cells[0] for _, cells in _lines(source / "articles.tsv", 1))
    known = set(articles)
    if len(known) != len(articles):
        raise DataError(f"{source / 'articles.tsv'}: {len(articles) - len(known)} articles are listed twice.")
    categories: dict[str, list[str]] = {}
    for where, (article, category) in _pairs(source / "categories.tsv", known, both=False):
        if not category.startswith("subject."):
            raise DataError(f"{where}: category {category!r}, expected a path that starts with 'subject.'.")
        categories.setdefault(article, []).append(category.removeprefix("subject."))
    links: dict[str, list[str]] = {}
    for _, (article, target) in _pairs(source / "links.tsv", known, both=True):
        links.setdefault(article, []).append(target)
    return Graph(
        articles,
        {article: tuple(paths) for article, paths in categories.items()},
        {article: tuple(dict.fromkeys(targets)) for article, targets in links.items()},
    )


def read_games(source: Path, articles: frozenset[str]) -> list[Game]:
    """The games of `paths_unfinished.tsv` and `paths_finished.tsv`, whichever are there, in order of their ends.

    Raises DataError naming file and line, or the folder when neither file is there.
    """
    games: list[Game] = []
    for name, n_cells in (("paths_unfinished.tsv", 6), ("paths_finished.tsv", 5)):
        if (source / name).is_file():
            games += [_to_game(where, cells, articles) for where, cells in _lines(source / name, n_cells)]
    if not games:
        raise DataError(f"{source}: no games; paths_unfinished.tsv or paths_finished.tsv (or both) must be there.")
    return sorted(games, key=lambda game: game.ended_at_s)


def readable(name: str) -> str:
    """An article's name or a category as a person writes it: `Mount_St._Helens` -> `Mount St. Helens`."""
    return unquote(name).replace("_", " ")


def _to_game(where: str, cells: list[str], articles: frozenset[str]) -> Game:
    user, ended_at, duration, path = cells[:4]
    steps = tuple(path.split(";"))
    depth = 0
    for step in steps:
        if step != BACK and step not in articles:
            raise DataError(f"{where}: {step!r} in the path is not in articles.tsv.")
        depth += -1 if step == BACK else 1
        if depth < 1:
            raise DataError(f"{where}: a back step ({BACK}) where there is no page to go back to.")
    if len(cells) == 5:
        return Game(
            user, _whole(where, ended_at), _whole(where, duration), steps, _goal_of_finished(where, steps), "finished"
        )
    if cells[5] not in ("restart", "timeout"):
        raise DataError(f"{where}: ended by {cells[5]!r}, expected 'restart' or 'timeout'.")
    outcome: Outcome = "restart" if cells[5] == "restart" else "timeout"
    return Game(user, _whole(where, ended_at), _whole(where, duration), steps, cells[4], outcome)


def _goal_of_finished(where: str, steps: tuple[str, ...]) -> str:
    if steps[-1] == BACK:
        raise DataError(f"{where}: a finished game must end at its goal, not with a back step.")
    return steps[-1]


def _whole(where: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{where}: {text!r} where whole seconds were expected.")
    return int(text)


def _pairs(path: Path, known: set[str], both: bool) -> Iterator[tuple[str, list[str]]]:
    for where, cells in _lines(path, 2):
        for name in cells if both else cells[:1]:
            if name not in known:
                raise DataError(f"{where}: {name!r} is not in articles.tsv.")
        yield where, cells


def _lines(path: Path, n_cells: int) -> Iterator[tuple[str, list[str]]]:
    """The cells of each line and where it is; comments and empty lines left out."""
    for where, line in numbered_lines(path, "unpack SNAP's wikispeedia_paths-and-graph here"):
        if line.startswith("#"):
            continue
        cells = line.split("\t")
        if len(cells) != n_cells or not all(cells):
            raise DataError(f"{where}: {len(cells)} cells, expected {n_cells} that are not empty, parted by tabs.")
        yield where, cells

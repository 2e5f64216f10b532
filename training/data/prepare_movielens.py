"""`daian data prepare movielens`: the ratings of MovieLens-100k, as RecBole packs them -> a prepared data set.

The files log ratings, not pages below a trigger. A rating of 4 or 5 stands for a click and a lower one for an
impression without one: a declared deviation, since people rate what they chose to see. The trigger of a rating is made
by DIHN's rule (section 4.1 there), by the same code as Alimama's: the user's latest click strictly before it and at
most 4 hours old, of several at that time the one on the largest film id; ratings without one are left out.

- A request is a user's ratings at one time: people rated films by the page, so half of the requests hold several.
- Behaviours are the user's clicks strictly before the request. The trigger click is kept in the file and dropped by the
  history rules (`opening_window_s` is the 4 hours here), so that trainer and service drop it alike.
- The last tenth of the ratings that are left is the test, the tenth before it the validation, cut at a whole minute.

Called by the command line; reads through `movielens_files`, writes through `PreparedWriter`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from service.contract.requests import objects
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from training.data.alimama_files import Part
from training.data.alimama_rules import TRIGGER_WINDOW_S, Impressions
from training.data.content_encoders import AUTO, ContentEncoder
from training.data.dataset import SPLITS, Dataset, Items, PreparedWriter
from training.data.embed import Vectors, embed, open_vectors
from training.data.errors import DataError
from training.data.mapping import SplitRule
from training.data.movielens_files import RATINGS, Film, People, Ratings, read_films, read_people, read_ratings
from training.data.prepare_logs import Cuts, split_times
from training.data.triggered_requests import TriggeredRequests, by_split

CITATION = "Harper & Konstan, ACM TiiS 2015 (GroupLens); not to be redistributed"
DEVIATION = "ratings stand for impressions: 4 and 5 are clicks, 1 to 3 are impressions without one"
CLICK_FROM = 4.0


def prepare_movielens(
    source: Path,
    out: Path,
    encoder: str | ContentEncoder = AUTO,
    *,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Dataset:
    """Prepares RecBole's `ml-100k.inter`, `.item` and `.user` in `source` as a data set in `out`; returns it.

    Vectors of the films are kept beside it, in `<out>.vectors`, and made again only when text or encoder changed.
    Raises DataError naming file, line and column, or the file whose ratings leave no request or no split.
    """
    films, people = read_films(source), read_people(source)
    ratings = read_ratings(source, films, people)
    requests = TriggeredRequests.of(impressions_of(ratings), "time", ())
    if not len(requests.starts):
        raise DataError(
            f"{source / RATINGS}: no rating comes within 4 hours after one of {CLICK_FROM:.0f} or more by its user, "
            "so none has a trigger; nothing was written. Are the times those of the public file?"
        )
    cuts = _cuts(requests)
    vectors = _embed_films(films, out.with_name(f"{out.name}.vectors"), encoder, show_progress)
    dataset = Dataset("movielens", schema_of(), HistoryRules(opening_window_s=TRIGGER_WINDOW_S))
    with PreparedWriter(out, dataset, _items(films, vectors), overwrite) as writer:
        _write(writer, requests, cuts, people)
        writer.note("ratings", len(ratings.user))
        writer.note("ratings_repeated", requests.impressions.n_repeated)
        writer.note("ratings_without_trigger", len(requests.impressions.user) - len(requests.shown.user))
        writer.note("samples", len(requests.shown.user))
        writer.note("users_with_samples", len(np.unique(requests.shown.user)))
        writer.note("films_without_year", sum(film.year is None for film in films.values()))
        writer.note("source", f"MovieLens-100k ({CITATION})")
        writer.note("deviation", DEVIATION)
        writer.note("vectors", {key: vectors.meta[key] for key in ("encoder", "dimensions", "notes")})
    return writer.dataset


def schema_of() -> FeatureSchema:
    """The fields of the data set. `genre` is the first that the file names, in its own order; `genres` are all."""
    return FeatureSchema(
        user=(
            Field("user", "user", "id", min_count=2),
            Field("age", "user", "category"),
            Field("gender", "user", "category"),
            Field("occupation", "user", "category"),
        ),
        context=(),
        item=(
            Field("item", "item", "id"),
            Field("genre", "item", "category"),
            Field("genres", "item", "category"),
            Field("year", "item", "number"),
        ),
        leaf_category="genres",
    )


def impressions_of(ratings: Ratings) -> Impressions:
    """Ratings as Alimama's rules read them: a film is an ad, a rating of 4 or more a click, there are no positions."""
    position = np.full(len(ratings.user), "", dtype=object)
    clicked = (ratings.rating >= CLICK_FROM).astype(np.int64)
    return Impressions.of(Part(ratings.user, ratings.at_s, ratings.film, position, clicked))


def film_text(film: Film) -> str | None:
    """What the encoder reads: `The Clockwork Orchard. Animation, Comedy`; None for a film of which nothing is known."""
    return ". ".join(part for part in (film.title, ", ".join(film.genres)) if part) or None


def _cuts(requests: TriggeredRequests) -> Cuts:
    """The last tenth of the ratings tests, the tenth before it validates."""
    minutes, n_ratings = np.unique(requests.shown.at_s // 60, return_counts=True)
    return split_times(Counter(dict(zip(minutes.tolist(), n_ratings.tolist(), strict=True))), SplitRule())


def _write(writer: PreparedWriter, requests: TriggeredRequests, cuts: Cuts, people: People) -> None:
    user, at_s = requests.shown.user[requests.starts], requests.shown.at_s[requests.starts]
    for split, some in by_split(np.array(SPLITS)[cuts.split_of(at_s * 1_000)]):
        names = objects(f"{u}-{t}" for u, t in zip(user[some].tolist(), at_s[some].tolist(), strict=True))
        writer.write(split, *requests.batch(some, names, people.columns(user[some]), {}))


def _items(films: Mapping[int, Film], vectors: Vectors) -> Items:
    return Items(
        ids=[str(film) for film in films],
        fields={
            "title": [film.title for film in films.values()],  # for people; no field of the schema
            "genre": [film.genres[0] if film.genres else None for film in films.values()],
            "genres": [" ".join(film.genres) or None for film in films.values()],
            "year": [film.year for film in films.values()],
        },
        vectors=np.asarray(vectors.vectors),
    )


def _embed_films(
    films: Mapping[int, Film], folder: Path, encoder: str | ContentEncoder, show_progress: bool
) -> Vectors:
    folder.mkdir(parents=True, exist_ok=True)
    items = folder / "items.ndjson"
    with items.open("w", encoding="utf-8") as file:
        for film_id, film in films.items():
            file.write(json.dumps({"id": str(film_id), "text": film_text(film)}) + "\n")
    embed(items, folder, encoder, show_progress=show_progress)
    return open_vectors(folder)

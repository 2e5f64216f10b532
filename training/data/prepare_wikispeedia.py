"""`daian data prepare wikispeedia`: games of finding a way through an encyclopedia -> a prepared data set.

Every page view is a trigger-induced request as it stands: the trigger is the article being read, the candidates are all
links on its page, the click is the link taken. Nothing is invented but the times of the steps inside a game, which are
spread evenly over it. Called by the command line; reads through `wikispeedia_files`, writes through `PreparedWriter`.

- A page left by the back button is a view without a forward click: no request. The page gone back to is the next
  trigger.
- The last page of an unfinished game is a request without a click; the last page of a finished one is the goal: no
  request.
- A click that is not among the page's links (a picture, the licence) says nothing about the links: no request, but the
  click is a behaviour of the user. Both are counted in the report.
- Behaviours are the user's clicks of all games, strictly before the page was opened, at most `behaviour_days` old.
- The goal is what the player wants to reach. A shop has no such field, so it is left out unless `with_goal`.
"""

import bisect
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int8
from rich.console import Console
from rich.progress import track

from service.contract.requests import RequestBatch, objects
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from training.data.content_encoders import AUTO, ContentEncoder
from training.data.dataset import Dataset, Items, PreparedWriter, Split
from training.data.embed import Vectors, embed, open_vectors
from training.data.wikispeedia_files import BACK, Game, Graph, read_games, read_graph, readable

CITATION = "West & Leskovec, WWW 2012; West, Pineau & Precup, IJCAI 2009"
MAX_BEHAVIOURS = 1_000  # what the longest history rule searches
WRITE_REQUESTS = 2_048
DAY_MS = 86_400_000

Text = Literal["title and category", "title"]


@dataclass(frozen=True)
class PageView:
    """A page that a player looked at: `clicked` is None when the game ended there."""

    article: str
    at_ms: int
    clicked: str | None
    number: int  # pages seen in this game, this one included


@dataclass(frozen=True)
class Request:
    """A page view that is a request, with what was known when the page opened."""

    request_id: str
    user: str
    view: PageView
    goal: str
    behaviours: tuple[tuple[int, str], ...]  # (at_ms, article), oldest first


def prepare_wikispeedia(
    source: Path,
    out: Path,
    encoder: str | ContentEncoder = AUTO,
    with_goal: bool = False,
    *,
    text: Text = "title and category",
    behaviour_days: float = 14,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Dataset:
    """Prepares SNAP's files in `source` as a data set in `out`; returns it with its report.

    Vectors of the articles are kept beside it, in `<out>.vectors`, and made again only when text or encoder changed.
    The last tenth of the games is the test, the tenth before it the validation. Raises DataError naming file and line.
    """
    graph = read_graph(source)
    games = read_games(source, frozenset(graph.articles))
    vectors = _embed_articles(graph, out.with_name(f"{out.name}.vectors"), encoder, text, show_progress)
    dataset = Dataset(_name(with_goal), schema_of(with_goal), HistoryRules())
    counts: Counter[str] = Counter()
    with PreparedWriter(out, dataset, _items(graph, vectors), overwrite) as writer:
        requests = requests_of(games, graph.links, behaviour_days, counts)
        shown = track(requests, "wikispeedia", total=None, disable=not show_progress, console=Console(stderr=True))
        for split, some in _groups(_with_split(shown, games, counts)):
            writer.write(split, *_to_batch(some, graph, with_goal))
        for name, value in counts.items():
            writer.note(name, value)
        writer.note("source", f"Wikispeedia ({CITATION})")
        writer.note("games", dict(Counter(game.outcome for game in games)))
        writer.note("vectors", {key: vectors.meta[key] for key in ("encoder", "dimensions", "notes")} | {"text": text})
    return writer.dataset


def schema_of(with_goal: bool) -> FeatureSchema:
    """The fields of the data set; numbers of links are those of the page graph, which no click changes."""
    goal = (Field("goal", "context", "id"), Field("goal_category", "context", "category"))
    return FeatureSchema(
        user=(Field("user", "user", "id", min_count=2),),
        context=(Field("page_number", "context", "number", n_bins=8), *(goal if with_goal else ())),
        item=(
            Field("item", "item", "id"),
            Field("category", "item", "category"),
            Field("leaf_category", "item", "category"),
            Field("links_on_page", "item", "number"),
            Field("links_to_page", "item", "number"),
        ),
        leaf_category="leaf_category",
    )


def split_games(n_games: int) -> list[Split]:
    """The split of each game, in order of time: the last tenth is test, the tenth before it validation."""
    n_test = n_games // 10
    n_train = n_games - 2 * n_test
    return ["train" if i < n_train else "validation" if i < n_train + n_test else "test" for i in range(n_games)]


def _with_split(
    requests: Iterable[tuple[int, Request]], games: list[Game], counts: Counter[str]
) -> Iterator[tuple[Split, Request]]:
    """Requests with the split of their game, without those opened before the split before it had ended."""
    splits = split_games(len(games))
    begins = {split: games[max(splits.index(split) - 1, 0)].ended_at_s * 1_000 for split in set(splits) - {"train"}}
    counts["requests_before_their_split"] = 0
    for index, request in requests:
        split = splits[index]
        if split != "train" and request.view.at_ms <= begins[split]:
            counts["requests_before_their_split"] += 1
        else:
            yield split, request


def page_views(game: Game) -> list[PageView]:
    """The pages of a game that were left by a click on a link, or where it was given up, in order.

    Step k of n opens its page at start + k/n of the time played, rounded to ms, and at least 1 ms after step k - 1.
    In a finished game the last page is the goal, reached when the time is over.
    """
    times = step_times(game)
    views: list[PageView] = []
    trail: list[str] = []
    for k, step in enumerate(game.steps):
        trail = trail[:-1] if step == BACK else [*trail, step]
        is_last = k + 1 == len(game.steps)
        if (is_last and game.outcome == "finished") or (not is_last and game.steps[k + 1] == BACK):
            continue
        views.append(PageView(trail[-1], times[k], None if is_last else game.steps[k + 1], k + 1))
    return views


def step_times(game: Game) -> list[int]:
    """When each step opened its page, epoch ms, strictly increasing."""
    n_parts = max(len(game.steps) - (game.outcome == "finished"), 1)
    times: list[int] = []
    for k in range(len(game.steps)):
        at = game.started_at_ms + game.played_ms * k // n_parts
        times.append(max(at, times[-1] + 1) if times else at)
    return times


def clicks_by_user(games: list[Game]) -> dict[str, list[tuple[int, str]]]:
    """Every forward click (time, article) of each user over all games, in time order."""
    clicks: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for game in games:
        steps = zip(step_times(game), game.steps, strict=True)
        next(steps)  # the start page was given, not clicked
        clicks[game.user] += [(at, step) for at, step in steps if step != BACK]
    for of_user in clicks.values():
        of_user.sort()
    return dict(clicks)


def requests_of(
    games: list[Game], links: Mapping[str, tuple[str, ...]], behaviour_days: float, counts: Counter[str]
) -> Iterator[tuple[int, Request]]:
    """All requests with the index of their game, in order of the games; what is left out is counted in `counts`."""
    clicks = clicks_by_user(games)
    counts.update(views_of_pages_without_links=0, clicks_outside_the_page=0, views_left_by_back=0)
    for index, game in enumerate(games):
        counts["views_left_by_back"] += game.steps.count(BACK)
        for view in page_views(game):
            if view.article not in links:
                counts["views_of_pages_without_links"] += 1
            elif view.clicked is not None and view.clicked not in links[view.article]:
                counts["clicks_outside_the_page"] += 1
            else:
                seen = _before(clicks.get(game.user, []), view.at_ms, behaviour_days)
                yield index, Request(f"{index}-{view.number}", game.user, view, game.goal, seen)


def _before(clicks: list[tuple[int, str]], at_ms: int, days: float) -> tuple[tuple[int, str], ...]:
    """The clicks strictly before `at_ms` and at most `days` old."""
    end = bisect.bisect_left(clicks, (at_ms, ""))
    start = bisect.bisect_left(clicks, (at_ms - int(days * DAY_MS), ""))
    return tuple(clicks[max(start, end - MAX_BEHAVIOURS) : end])


def _groups(requests: Iterator[tuple[Split, Request]]) -> Iterator[tuple[Split, list[Request]]]:
    """Requests of one split together, at most WRITE_REQUESTS of them."""
    waiting: list[Request] = []
    of: Split = "train"
    for split, request in requests:
        if waiting and (split != of or len(waiting) == WRITE_REQUESTS):
            yield of, waiting
            waiting = []
        of = split
        waiting.append(request)
    if waiting:
        yield of, waiting


def _to_batch(requests: list[Request], graph: Graph, with_goal: bool) -> tuple[RequestBatch, Int8[np.ndarray, " N"]]:
    shown = [graph.links[request.view.article] for request in requests]
    behaviours = [behaviour for request in requests for behaviour in request.behaviours]
    context = {"page_number": objects(float(request.view.number) for request in requests)}
    if with_goal:
        context["goal"] = objects(request.goal for request in requests)
        context["goal_category"] = objects(_top(graph, request.goal) for request in requests)
    batch = RequestBatch(
        request_id=objects(request.request_id for request in requests),
        requested_at=np.array([request.view.at_ms for request in requests], dtype=np.int64),
        user={"user": objects(request.user for request in requests)},
        context=context,
        trigger=objects(request.view.article for request in requests),
        behaviour_item=objects(article for _, article in behaviours),
        behaviour_at=np.array([at for at, _ in behaviours], dtype=np.int64),
        behaviour_type=objects(["click"] * len(behaviours)),
        behaviour_offsets=_offsets([len(request.behaviours) for request in requests]),
        candidate=objects(article for links in shown for article in links),
        candidate_offsets=_offsets([len(links) for links in shown]),
    )
    clicked = [article == r.view.clicked for r, links in zip(requests, shown, strict=True) for article in links]
    return batch, np.array(clicked, dtype=np.int8)


def _items(graph: Graph, vectors: Vectors) -> Items:
    links_to = Counter(target for targets in graph.links.values() for target in targets)
    return Items(
        ids=graph.articles,
        fields={
            "title": [readable(article) for article in graph.articles],  # for people; no field of the schema
            "category": [_top(graph, article) for article in graph.articles],
            "leaf_category": [graph.categories.get(article, (None,))[0] for article in graph.articles],
            "links_on_page": [float(len(graph.links.get(article, ()))) for article in graph.articles],
            "links_to_page": [float(links_to[article]) for article in graph.articles],
        },
        vectors=np.asarray(vectors.vectors),
    )


def _top(graph: Graph, article: str) -> str | None:
    """The first part of an article's first category path; None for an article without one (and for unknown goals)."""
    paths = graph.categories.get(article)
    return paths[0].split(".")[0] if paths else None


def _embed_articles(
    graph: Graph, folder: Path, encoder: str | ContentEncoder, text: Text, show_progress: bool
) -> Vectors:
    folder.mkdir(parents=True, exist_ok=True)
    items = folder / "items.ndjson"
    with items.open("w", encoding="utf-8") as file:
        for article in graph.articles:
            file.write(json.dumps({"id": article, "text": article_text(graph, article, text)}) + "\n")
    embed(items, folder, encoder, show_progress=show_progress)
    return open_vectors(folder)


def article_text(graph: Graph, article: str, text: Text) -> str:
    """What the encoder reads: `Åland. Geography, European Geography, European Countries`, or the title alone."""
    paths = graph.categories.get(article)
    if text == "title" or not paths:
        return readable(article)
    return f"{readable(article)}. {', '.join(readable(part) for part in paths[0].split('.'))}"


def _name(with_goal: bool) -> str:
    return "wikispeedia_with_goal" if with_goal else "wikispeedia"


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

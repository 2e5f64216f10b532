"""Part `servers`: model servers with the same ONNX graphs on the same machine, and our service beside them.

Each server gets ready-made ids as JSON, so it pays no store, no encoding and no validation of items; our service is
asked by item ids, as a shop asks it. Two workers each: processes, or what else the server has. One server after the
other, each in rounds: ours, theirs with one row per pair, theirs with our two graphs; a server lives only for its turn,
ours stays and is idle. Before anything is timed the scores must be those of our graphs. A server that does not install,
start or score right is named with its reason.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.bundles import bundle_of
from benchmarks.graphs import NOW_MS, open_pair, scores_of_pair, tiled_path
from benchmarks.page import Found, Goal, Table
from benchmarks.plan import Plan
from benchmarks.scene import Scene
from benchmarks.servers.graph_files import FOLDER, KIND, write_ranks
from benchmarks.servers.known import SERVERS, ModelServer, environment, installed
from benchmarks.shop_load import check_whole, pages, send_behaviours
from service.bench.asking import Load, LoadError, ask_once, closed_loop, post, run
from service.bench.served import BenchError, Placement, Served, last_words, serving, stop, tree, wait_until_ready
from service.bench.turns import Spread, ratio
from service.contract.bundle import current_path
from service.contract.encoder import CANDIDATE_SIDE, REQUEST_SIDE, ModelInputs

WORKERS = 2
CONNECTIONS = (1, 4)
KINDS = ("tiled", "pair")
N_REQUESTS = 50
TOLERANCE = 1e-5
AHEAD_OF_TILED = 8.0
OURS = Placement(WORKERS, 1)
Case = tuple[int, int]  # candidates, connections


class Turn(NamedTuple):
    """One load."""

    per_s: float
    p50_ms: float
    p99_ms: float
    n_bad: int

    @classmethod
    def of(cls, load: Load, allowed: float) -> "Turn":
        """Raises LoadError where more than this share of the answers was refused or not whole."""
        n_bad = load.n_failed + load.n_degraded
        if n_bad > allowed * (len(load.seconds) + load.n_failed):
            raise LoadError(f"{load.n_failed} failed, {load.n_degraded} not whole: {load.first_failure}")
        return cls(load.per_s, load.ms(50), load.ms(99), n_bad)


class Compared(NamedTuple):
    """A server beside ours: turns by subject and case, its memory, or why there is nothing."""

    turns: dict[tuple[str, Case], list[Turn]]
    pss_mb: dict[str, float]
    trouble: str = ""
    version: str = ""


def measure(plan: Plan, tell: Callable[[str], None] = print) -> Found:
    """Every server that is known, or those of the plan."""
    scene = Scene(n_items=plan.n_items)
    root = bundle_of(scene, "daian", plan.bundles, tell)
    cases = [(n, connections) for n in plan.candidates if 1 < n <= 500 for connections in CONNECTIONS]
    inputs = {n: [_given(scene, number, n) for number in range(N_REQUESTS)] for n in {n for n, _ in cases}}
    compared: dict[str, Compared] = {}
    with TemporaryDirectory(prefix="daian-bench-") as folder, ExitStack() as stack:
        graphs = _graphs_folder(scene, root, Path(folder) / "graphs", tell)
        ours = stack.enter_context(serving(root, Path(folder) / "ours", OURS, {}))
        send_behaviours(ours, scene)
        for name in plan.servers or tuple(SERVERS):
            compared[name] = _compare(SERVERS[name], ours, scene, root, graphs, inputs, cases, plan, tell)
    return _report(compared, cases, plan)


def _given(scene: Scene, number: int, n_candidates: int) -> ModelInputs:
    return scene.encoder.encode(scene.batch([number], n_candidates, NOW_MS))


def _graphs_folder(scene: Scene, root: Path, folder: Path, tell: Callable[[str], None]) -> Path:
    """Both kinds of graph in one folder, as `graph_files` opens them."""
    bundle = current_path(root)
    folder.mkdir(parents=True)
    for name in ("request.onnx", "candidates.onnx"):
        shutil.copy(bundle / name, folder / name)
    shutil.copytree(bundle / "tables", folder / "tables")
    shutil.copy(tiled_path(scene, "daian", root, tell), folder / "tiled.onnx")
    write_ranks(folder, named(_given(scene, 0, 1)))
    return folder


def named(inputs: ModelInputs) -> dict[str, np.ndarray]:
    """What a server is sent of one request: the request's side once, a row per candidate."""
    names = (*REQUEST_SIDE, *(name for name in CANDIDATE_SIDE if name != "candidate_request"))
    return {name: getattr(inputs, name) for name in names}


def _compare(
    server: ModelServer, ours: Served, scene: Scene, root: Path, graphs: Path, inputs: Mapping[int, list[ModelInputs]],
    cases: list[Case], plan: Plan, tell: Callable[[str], None],
) -> Compared:  # fmt: skip
    found = Compared({}, {})
    try:
        tell(f"{server.name}: installing, where it is not yet")
        python = environment(server, Path("artifacts/bench-servers").absolute())
        requests = {n: [post(server.path, server.body(named(one))) for one in of] for n, of in inputs.items()}
        own_requests = {n: pages(scene, n) for n in inputs}
        for n, of_size in own_requests.items():
            check_whole(ours, of_size, n, scene.n_behaviours)
        for number in range(plan.server_rounds):
            _loads(found, "ours", ours.port, own_requests, cases, plan)
            for kind in KINDS:
                with running(server, python, graphs, kind) as theirs:
                    _check_scores(server, theirs, root, inputs)
                    _loads(found, kind, theirs.port, requests, cases, plan)
                    found.pss_mb[kind] = theirs.pss_mb()
            tell(f"{server.name}: round {number + 1} of {plan.server_rounds}")
    except (BenchError, LoadError, OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
        return Compared({}, {}, _reason(error))
    return found._replace(version=installed(server, python))


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or error.stdout or "").strip().splitlines()
        return f"pip failed: {said[-1] if said else error.returncode}"
    return f"{type(error).__name__}: {error}"


def _loads(
    found: Compared, subject: str, port: int, requests: Mapping[int, list[bytes]], cases: list[Case], plan: Plan
) -> None:
    for n in requests:
        run(closed_loop(port, requests[n], max(CONNECTIONS), plan.warm_up_s))
    for n, connections in cases:
        turn = Turn.of(run(closed_loop(port, requests[n], connections, plan.load_s)), plan.allowed_bad)
        found.turns.setdefault((subject, (n, connections)), []).append(turn)


@contextmanager
def running(server: ModelServer, python: Path, graphs: Path, kind: str) -> Iterator[Served]:
    """The server on a free port of this machine, until the block ends. Raises BenchError when it does not start."""
    with TemporaryDirectory(prefix="daian-bench-") as work, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
        free.close()
        environ = os.environ | {FOLDER: str(graphs), KIND: kind, "BENCH_PORT": str(port), "BENCH_WORK": work}
        environ |= {"BENCH_WORKERS": str(WORKERS), "PYTHONPATH": os.getcwd(), "BENTOML_DO_NOT_TRACK": "True"}
        environ |= {"BENTOML_HOME": work, "RAY_USAGE_STATS_ENABLED": "0"}
        log = Path(work) / "server.log"
        command = [str(python), *(part.format(port=port) for part in server.command)]
        with log.open("w") as output:
            process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(process, port, server.ready, log)
            served = Served(process.pid, port)
            served.rest(within_s=30)
            yield served
        except LoadError as error:
            raise BenchError(f"{error}; its last words: {last_words(log)}") from error
        finally:
            _stop_tree(process)


def _stop_tree(process: "subprocess.Popen[bytes]") -> None:
    """The server first, then whatever it leaves of what it started."""
    started = tree(process.pid)
    stop(process)
    for pid in started[1:]:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue


def _check_scores(server: ModelServer, theirs: Served, root: Path, inputs: Mapping[int, list[ModelInputs]]) -> None:
    """Raises BenchError when the server's logits are not those of our graphs."""
    scorer = open_pair(root)
    for of_size in inputs.values():
        answer = run(ask_once(theirs.port, post(server.path, server.body(named(of_size[0])))))
        if answer.status != 200:
            raise BenchError(f"{server.name} answers {answer.status}: {answer.body[:300]!r}")
        found = np.asarray(server.logits(json.loads(answer.body)), np.float32)
        expected = scores_of_pair(scorer, of_size[0])
        if found.shape != expected.shape or not np.abs(found - expected).max() <= TOLERANCE:
            raise BenchError(f"{server.name} scores otherwise than our graphs: {found[:3]} and {expected[:3]}")


# --- the tables -------------------------------------------------------------------------------------------------------


def _report(compared: Mapping[str, Compared], cases: list[Case], plan: Plan) -> Found:
    tables = [_table(compared, case) for case in cases]
    memory = [
        [name, *(f"{found.pss_mb[kind]:,.0f}" for kind in KINDS)]
        for name, found in compared.items()
        if not found.trouble
    ]
    tables.append(Table("Memory of the servers' processes (PSS), MB.", ["server", *KINDS], memory))
    notes = [f"{name} is not in the tables: {found.trouble}" for name, found in compared.items() if found.trouble]
    notes += [f"{name} was not asked for in this run" for name in SERVERS if name not in compared]
    notes.append("Servers: " + ", ".join(found.version for found in compared.values() if found.version))
    notes.append(f"{plan.server_rounds} rounds, {plan.load_s:g} s a load, {WORKERS} workers each")
    raw: dict[str, Any] = {
        name: {f"{subject} {case}": turns for (subject, case), turns in found.turns.items()}
        for name, found in compared.items()
    }
    return Found("servers", "Model servers with the same graphs", tables, _goals(compared, cases), notes, raw)


def _table(compared: Mapping[str, Compared], case: Case) -> Table:
    rows = []
    for name, found in compared.items():
        if found.trouble:
            continue
        ours = found.turns["ours", case]
        rows.append(["daian, beside " + name, *_shown(ours), ""])
        for kind in KINDS:
            theirs = found.turns[kind, case]
            rows.append([f"{name}, {kind}", *_shown(theirs), _gain(ours, theirs).shown()])
    caption = f"{case[0]} candidates, {case[1]} connection{'s' if case[1] > 1 else ''}."
    head = ["server", "answers/s", "p50, ms", "p99, ms", "failed or not whole", "daian's answers / its answers"]
    return Table(caption, head, rows)


def _shown(turns: list[Turn]) -> list[str]:
    return [
        *(Spread.of([turn[place] for turn in turns]).shown() for place in range(3)),
        str(sum(t.n_bad for t in turns)),
    ]


def _gain(ours: list[Turn], theirs: list[Turn]) -> Spread:
    return ratio([turn.per_s for turn in ours], [turn.per_s for turn in theirs])


def _goals(compared: Mapping[str, Compared], cases: list[Case]) -> list[Goal]:
    """Against the best of them, which is the one that ours is least ahead of."""
    measured = [found for found in compared.values() if not found.trouble]
    goals: list[Goal] = []
    for case in cases if measured else []:
        n, connections = case
        where = f"N = {n}, {connections} connection{'s' if connections > 1 else ''}"
        tiled, own = (min(_gain(f.turns["ours", case], f.turns[kind, case]).median for f in measured) for kind in KINDS)
        if n == 500:
            what = f"throughput against the best server with the tiled graph, {where}"
            goals.append(Goal(what, AHEAD_OF_TILED, tiled))
        goals.append(Goal(f"throughput against the best server with our graphs and ready ids, {where}", 1.0, own))
        tails = [_p99_over_ours(found, case) for found in measured]
        goals.append(Goal(f"p99 of the best server with our graphs over ours, {where}", 1.0, min(tails)))
    return goals


def _p99_over_ours(found: Compared, case: Case) -> float:
    theirs, ours = ([turn.p99_ms for turn in found.turns[subject, case]] for subject in ("pair", "ours"))
    return ratio(theirs, ours).median

"""`daian export`, `daian parity` and `daian demo`. Found through the entry point group `daian.commands`.

Nothing heavy is imported before a verb runs: `daian --help` stays quick.
"""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

Json = Annotated[bool, Parameter(name="--json", help="print JSON")]


def register(app: App) -> None:
    """Adds the exporter's verbs to the `daian` command."""
    for verb in (export, parity, demo):
        app.command(verb)


def export(
    run: Path,
    *,
    data: Path,
    bundles: Path = Path("artifacts/bundles"),
    name: str = "daian",
    promote: bool = True,
    prerank: Path | None = None,
    allow_low_recall: bool = False,
    allow_drift: bool = False,
    as_json: Json = False,
) -> None:
    """Turn a finished run into a bundle: graphs, tables, encoder, catalogue, index, golden requests, parity.

    Parameters
    ----------
    run
        The run folder that `daian train` wrote.
    data
        The data folder that it was trained on.
    bundles
        Where bundles are published.
    name
        The bundle's name.
    promote
        Make the bundle the current one once it has passed its gates.
    prerank
        A second run over the same data, to cut what is recalled before it is ranked (such as TARQ-lite).
    allow_low_recall
        Publish also when the recall index finds less than 0.95 of the nearest items.
    allow_drift
        Publish also when the held-out days lie too far from the training days; the manifest says so.
    """
    from models_export.export import ExportPlan
    from models_export.export import export as export_run

    plan = ExportPlan(run, data, bundles, name, promote, prerank, allow_low_recall, allow_drift)
    bundle = export_run(plan, (lambda _: None) if as_json else print)
    if as_json:
        print(json.dumps({"path": str(bundle.path), "version": bundle.version, "checks": bundle.manifest["checks"]}))


def parity(run: Path, *, data: Path, bundle: Path, as_json: Json = False) -> None:
    """Compare a bundle in ONNX Runtime with its run in PyTorch, over all odd requests.

    Parameters
    ----------
    run
        The run folder that `daian train` wrote.
    data
        The data folder that it was trained on.
    bundle
        The bundle's folder, or the folder of bundles that holds `current`.
    """
    from models_export.export import compare_bundle

    report = compare_bundle(run, data, bundle)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        print(f"{report.n_cases} cases agree within {report.max_difference:.2e} (worst: {report.worst_case})")


def demo(*, data: Path | None = None, short: bool = False, port: int = 8000, serve: bool = False) -> None:
    """From nothing to a ranked, explained page: data, DAIAN and DIN, export, a real store, the running service.

    Parameters
    ----------
    data
        A prepared data folder, or Wikispeedia's files; none: a small simulated shop.
    short
        A smaller simulated shop, for automatic runs; no matter of --data.
    port
        Where the service listens; another one is taken when it is in use.
    serve
        Keep serving at the end, until Ctrl-C.
    """
    if short and data is not None:
        raise ValueError(
            "--short makes the simulated shop smaller, and --data names data of your own, which are taken whole: "
            "leave one of them out"
        )
    from models_export.demo import DemoPlan
    from models_export.demo import demo as run_demo

    run_demo(DemoPlan(data, short, port, serve))

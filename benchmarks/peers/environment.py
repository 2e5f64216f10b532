"""The peers' virtual environment: made once, apart from the project's own. Called by `benchmarks.peers`.

Apart, because the peers bring versions and names of their own (one of them a top-level package `tests`).
"""

import subprocess
import sys
from pathlib import Path

FUXICTR = "fuxictr==2.3.10"
DEEPCTR = "deepctr-torch==0.3.0"


def peers_python(folder: Path, torch: str) -> Path:
    """The interpreter of the environment in `folder`, which is made when it is not there.

    `torch` is the requirement of the build to use, the same as ours: named beside the peers, it keeps them from
    choosing one. jaxtyping is what our metrics are annotated with. Raises CalledProcessError when pip fails.
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = "\n".join([torch, FUXICTR, DEEPCTR, "jaxtyping"])
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    print(f"Installing {FUXICTR} and {DEEPCTR} into {folder}; this takes a few minutes and about 2 GB.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted.split("\n")], check=True)
    ready.write_text(wanted, encoding="utf-8")
    return python

"""What every test runs under: shapes and types in our signatures are checked wherever a tensor or array is handed over.

pytest reads this first, before any module of ours is imported; the hook below must see each of them loaded.
"""

import os
import sys

import hypothesis
import jaxtyping

PACKAGES = ("service", "training", "models_export")
# beartype, where an int may be a float, as mypy has it too. A string, because the hook keeps compiled modules by it.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

# Small products on few cores: threads that wait for each other would be most of the time. Before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_loaded = sorted(name for name in sys.modules if name.partition(".")[0] in PACKAGES)
if _loaded:
    raise RuntimeError(f"imported before the shape checks were on: {', '.join(_loaded)}; no pytest plugin may do that")
jaxtyping.install_import_hook(PACKAGES, CHECKER)

# How long an example takes says how busy the machine is; no property of ours is about time.
hypothesis.settings.register_profile("daian", deadline=None)
hypothesis.settings.load_profile("daian")

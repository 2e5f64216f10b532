"""A ranked page through the pre-ranker, from the command to the socket; and a start that is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.test_serving import serving
from tests.small_bundle import HandMade, make_encoder, row, write_small_bundle

pytestmark = pytest.mark.e2e


def test_a_recalled_page_goes_through_the_preranker(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundles", prerank=True)
    settings = {"DAIAN_PRERANK": "on", "DAIAN_PRERANK_RECALL": "589", "DAIAN_PRERANK_KEEP": "30"}
    with serving(bundle, tmp_path, **settings) as served:
        answer = served.rank(trigger="i0", top_k=30).json()
        assert answer["degraded"] == []
        assert answer["timing_ms"]["prerank"] > 0
        found = [item["id"] for item in answer["items"]]
        given = served.rank(trigger="i0", candidates=found[::-1]).json()
        assert [item["id"] for item in given["items"]] == found  # the ranker's order, not the pre-ranker's
    encoder = make_encoder()
    everything = [f"i{number}" for number in range(1, 590)]
    logits = HandMade.preranker(encoder).logits(encoder, row(everything, user=None))
    best = [everything[place] for place in np.argsort(-logits)[:30]]
    assert len(set(found) & set(best)) >= 29  # recall leaves out a handful of the far ones


def test_a_bundle_without_one_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundles")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAIAN_")}
    environment |= {"DAIAN_PORT": "0", "DAIAN_PRERANK": "on", "OMP_NUM_THREADS": "1"}
    code = "import sys; from service.commands import serve; from pathlib import Path; "
    code += f"sys.exit(serve(Path({str(bundle.path)!r}), store_folder=Path({json.dumps(str(tmp_path / 'store'))})))"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode != 0
    assert "has no pre-ranker and DAIAN_PRERANK is on" in ended.stdout + ended.stderr

"""Bundles of a scene: an untrained model of real size, exported and published as `daian export` does it.

Called by the parts that measure the service. What a graph costs does not depend on what it has learnt, so the weights
are drawn; wide enough that two ways of computing them would differ if they could. A bundle is kept in the folder of the
benchmark, under a name made of all that went into it, our own sources included.
"""

import json
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import faiss
import torch
from torch import nn

from benchmarks.scene import Scene
from models_export.golden import GOLDEN_FILE, pick, record
from models_export.graph import export_graphs
from models_export.index import build_index, write_index
from service.contract.bundle import Bundle, current_path, point_to, read_bundle, write_bundle
from service.contract.encoder import Encoder, EncoderSizes
from service.contract.errors import BundleError
from service.settings import usable_cores
from training.models import MODELS, build_model

SOURCES = ("models_export", "service/contract", "training/models", "training/layers", "benchmarks/scene.py")
EMBEDDING_SPREAD = 0.5
N_GOLDEN_PAGES = 64
ROOT = Path(__file__).resolve().parents[1]


def drawn_model(name: str, sizes: EncoderSizes, seed: int = 1) -> nn.Module:
    """The registry's model in the paper's sizes (its config's defaults), weights drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(MODELS[name].config(), sizes)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Embedding):
                    module.weight.normal_(0.0, EMBEDDING_SPREAD)
                    module.weight[0].zero_()
    return model.eval()


def bundle_of(scene: Scene, name: str, folder: Path, tell: Callable[[str], None] = print) -> Path:
    """The bundle root with the scene's bundle of this model, made when it is not there."""
    root = folder / f"bundle-{name}-{scene.n_items}-{_key(scene, name)}"
    try:
        read_bundle(current_path(root))
        return root
    except BundleError:
        pass
    tell(f"making a {name} over {scene.n_items:,} items")
    started_s = time.perf_counter()
    _write(scene, name, root)
    tell(f"made {root} in {time.perf_counter() - started_s:.0f} s")
    return root


def _write(scene: Scene, name: str, root: Path) -> Bundle:
    encoder = scene.encoder
    model = drawn_model(name, encoder.sizes)
    graphs = export_graphs(model, encoder.sizes, {"fingerprint": encoder.fingerprint, "name": name})
    root.mkdir(parents=True, exist_ok=True)

    def fill(work: Path) -> None:
        encoder.save(work / "encoder")
        encoder.catalogue.save(work / "catalogue")
        graphs.save(work)
        _fill_index(encoder, work / "catalogue")
        pages = scene.batch(range(N_GOLDEN_PAGES), 100, now_ms=1_790_000_000_000)
        record(model, encoder, pick(pages), work / GOLDEN_FILE)

    manifest = {"fingerprint": encoder.fingerprint, "prior": 0.05, "graphs": graphs.describe()}
    bundle = write_bundle(root, "daian", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), manifest, fill)
    point_to(root, bundle)
    return bundle


def _fill_index(encoder: Encoder, folder: Path) -> None:
    """On all cores: nothing is timed yet, and a million items keep one core busy for long."""
    faiss.omp_set_num_threads(usable_cores())
    try:
        built = build_index(encoder.catalogue)
    finally:
        faiss.omp_set_num_threads(1)
    assert built is not None, "every item of a scene has a vector"
    write_index(built[0], folder)


def _key(scene: Scene, name: str) -> str:
    digest = sha256(json.dumps([repr(scene), name, torch.__version__]).encode())
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:10]

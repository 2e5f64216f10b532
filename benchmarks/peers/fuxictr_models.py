"""FuxiCTR's DIN and DIEN over our rows. Imported by `train_theirs` alone, in the peers' environment.

Its wheel has no DeepFM, and its DIEN has no auxiliary loss. A history's age is a field of an item there; candidates get
an age of their own.
"""

import tempfile
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap  # type: ignore[import-not-found]
from model_zoo.LongCTR.DIEN import DIEN  # type: ignore[import-not-found]
from model_zoo.LongCTR.DIN import DIN  # type: ignore[import-not-found]
from torch import Tensor, nn

from benchmarks.peers.rows import Heights, Rows
from benchmarks.peers.terms import Terms


class FuxiCtrPeer:
    """One of its models with its own loss."""

    def __init__(self, name: str, heights: Heights, terms: Terms, seed: int, items: np.ndarray) -> None:  # noqa: ARG002
        self._heights = heights
        torch.manual_seed(seed)
        self.module: nn.Module = self._build(name, terms)

    def _build(self, name: str, terms: Terms) -> Any:
        shared = {
            "embedding_dim": terms.width,
            "dnn_hidden_units": list(terms.top),
            "learning_rate": terms.learning_rate,
            "attention_hidden_units": list(terms.attention),
            "batch_norm": False,
            "optimizer": "adam",
            "loss": "binary_crossentropy",
            "metrics": ["AUC"],
            "verbose": 0,
            "model_root": tempfile.gettempdir(),
        }
        features = self._feature_map(terms.width)
        if name == "din":
            return DIN(features, attention_hidden_activations="ReLU", din_use_softmax=True, **shared)
        unit = {"attention_type": "bilinear_attention", "use_attention_softmax": True}  # the form of ours, h_t W e_a
        return DIEN(features, gru_type="AUGRU", **unit, **shared)

    def _feature_map(self, width: int) -> Any:
        made = FeatureMap("rows", tempfile.gettempdir())
        made.features = OrderedDict(self._features())
        made.labels = ["click"]
        made.default_emb_dim = width
        made.num_fields = made.get_num_fields()
        return made

    def _features(self) -> dict[str, dict[str, Any]]:
        heights = self._heights
        of = {f"candidate_{i}": ("item", n) for i, n in enumerate(heights.item)} | {"age": ("item", heights.age + 1)}
        of |= {f"user_{i}": ("user", n) for i, n in enumerate(heights.user)}
        of |= {f"context_{i}": ("context", n) for i, n in enumerate(heights.context)}
        of |= {f"trigger_{i}": ("context", n) for i, n in enumerate(heights.item)}
        of |= {"similarity": ("context", heights.similarity)}
        features: dict[str, dict[str, Any]] = {
            name: {"type": "categorical", "source": source, "vocab_size": n, "padding_idx": 0}
            for name, (source, n) in of.items()
        }
        for i in range(len(heights.item)):
            features[f"trigger_{i}"]["share_embedding"] = f"candidate_{i}"
        return features

    def _inputs(self, rows: Rows, taken: np.ndarray) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """(other fields, items [B·(L+1)] with the candidate last, mask [B L]), as its own loader makes them."""
        request = rows.request[taken]
        found = {"similarity": rows.similarity[taken]}
        for name, of_request in (("user", rows.user), ("context", rows.context), ("trigger", rows.trigger)):
            found |= {f"{name}_{i}": of_request[request, i] for i in range(of_request.shape[1])}
        age = np.pad(rows.age[request], ((0, 0), (0, 1)), constant_values=self._heights.age)
        items = np.concatenate([rows.history[request], rows.candidate[taken][:, None]], axis=1)
        of_items = {f"candidate_{i}": items[:, :, i] for i in range(items.shape[2])} | {"age": age}
        mask = torch.from_numpy(rows.age[request] > 0).float()
        fields = {name: torch.from_numpy(ids).long() for name, ids in found.items()}
        flat = {name: torch.from_numpy(np.ascontiguousarray(ids)).long().flatten() for name, ids in of_items.items()}
        return {**fields, "click": torch.from_numpy(rows.click[taken])}, flat, mask

    def loss(self, rows: Rows, taken: np.ndarray) -> Tensor:
        """The model's `compute_loss`."""
        inputs = self._inputs(rows, taken)
        model: Any = self.module
        loss: Tensor = model.compute_loss(model(inputs), model.get_labels(inputs))
        return loss

    def score(self, rows: Rows, taken: np.ndarray) -> Tensor:
        """Probabilities [B]."""
        found: Tensor = self.module(self._inputs(rows, taken))["y_pred"].squeeze(-1)
        return found

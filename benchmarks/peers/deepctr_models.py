"""DeepCTR-Torch's DIN, DeepFM and DIEN over our rows. Imported by `train_theirs` alone, in the peers' environment.

What an item is made of are the fields `candidate_*`; histories, negatives and the trigger look up the same tables.
A history has an age field, to which its query needs a counterpart: candidates get an age of their own. The library
starts dense and recurrent layers from N(0, 0.0001^2); `by_glorot` starts them as ours and FuxiCTR's are.
"""

import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.glorot import by_glorot
from benchmarks.peers.rows import Heights, Rows
from benchmarks.peers.terms import Terms

# On import the library asks PyPI over the network whether it is the newest: a measurement does not.
_utils = types.ModuleType("deepctr_torch.utils")
_utils.check_version = lambda _version: None  # type: ignore[attr-defined]
sys.modules["deepctr_torch.utils"] = _utils

from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat  # type: ignore[import-not-found]  # noqa: E402
from deepctr_torch.models import DIEN, DIN, DeepFM  # type: ignore[import-not-found]  # noqa: E402


class DeepCtrPeer:
    """One of its models: `loss` as its `fit` has it (the mean in the place of the sum), `score` its probabilities."""

    def __init__(
        self, name: str, heights: Heights, terms: Terms, seed: int, items: np.ndarray, glorot: bool = False
    ) -> None:
        """`items`: the fields of all items, to draw DIEN's negatives from; int32 [M I]. `glorot`: see `by_glorot`."""
        self._heights, self._terms = heights, terms
        self._items = torch.from_numpy(items).long()
        self._negatives = name == "dien"
        torch.manual_seed(seed)
        self.module: Any = self._build(name, seed)
        if glorot:
            by_glorot(self.module)

    def _build(self, name: str, seed: int) -> Any:
        top = {"dnn_hidden_units": self._terms.top, "l2_reg_embedding": 0.0, "seed": seed}
        history = [*self._item_names("candidate"), "age"]
        if name == "deepfm":
            columns = self._columns(False, False)
            return DeepFM(self._columns(False, True), columns, l2_reg_linear=0.0, **top)
        if name == "din":
            unit = {"att_hidden_size": self._terms.attention, "att_activation": "relu"}
            return DIN(self._columns(True, False), history, att_weight_normalization=True, **unit, **top)
        unit = {"att_hidden_units": self._terms.attention, "att_activation": "relu"}
        return DIEN(
            self._columns(True, False),
            history,
            gru_type="AUGRU",
            use_negsampling=True,
            alpha=1.0,
            att_weight_normalization=True,
            **unit,
            **top,
        )

    def _item_names(self, prefix: str) -> list[str]:
        return [f"{prefix}_{place}" for place in range(len(self._heights.item))]

    def _columns(self, attended: bool, linear: bool) -> list[Any]:
        """`attended`: candidates have an age too. `linear`: an item has a weight in each of its parts, as in ours."""
        heights, width = self._heights, self._terms.width
        columns = [SparseFeat(f"user_{i}", n, width) for i, n in enumerate(heights.user)]
        columns += [SparseFeat(f"context_{i}", n, width) for i, n in enumerate(heights.context)]
        columns += [SparseFeat(f"candidate_{i}", n, width) for i, n in enumerate(heights.item)]
        for i, n in enumerate(heights.item):
            table = f"trigger_{i}" if linear else f"candidate_{i}"
            columns.append(SparseFeat(f"trigger_{i}", n, width, embedding_name=table))
        columns.append(SparseFeat("similarity", heights.similarity, width))
        if attended:
            columns.append(SparseFeat("age", heights.age + 1, width))
        names = [(f"candidate_{i}", n) for i, n in enumerate(heights.item)] + [("age", heights.age + 1)]
        for prefix in ("hist_", "neg_hist_") if self._negatives else ("hist_",):
            for name, n in names:
                table = f"hist_{name}" if linear else name
                feature = SparseFeat(f"{prefix}{name}", n, width, embedding_name=table)
                columns.append(VarLenSparseFeat(feature, self._terms.history, "mean", "n_behaviours"))
        return columns

    def _inputs(self, rows: Rows, taken: np.ndarray) -> Tensor:
        """The library's one float matrix, columns in the order of its own index."""
        request = rows.request[taken]
        found = {"similarity": rows.similarity[taken], "age": np.full(len(taken), self._heights.age)}
        for name, of_request in (("user", rows.user), ("context", rows.context), ("trigger", rows.trigger)):
            found |= {f"{name}_{i}": of_request[request, i] for i in range(of_request.shape[1])}
        history, age = rows.history[request], rows.age[request]
        found |= {"hist_age": age, "n_behaviours": (age > 0).sum(axis=1)}
        for i, name in enumerate(self._item_names("candidate")):
            found[name] = rows.candidate[taken, i]
            found[f"hist_{name}"] = history[:, :, i]
        tensors = {name: torch.from_numpy(np.ascontiguousarray(ids)).float() for name, ids in found.items()}
        if self._negatives:
            tensors |= self._drawn(tensors["hist_age"])
        columns = [tensors[name] for name in self.module.feature_index]
        return torch.cat([column.view(len(taken), -1) for column in columns], dim=1)

    def _drawn(self, age: Tensor) -> dict[str, Tensor]:
        """An item drawn at random in the place of each behaviour."""
        drawn = self._items[torch.randint(len(self._items), age.shape)].float()
        return {"neg_hist_age": age} | {f"neg_hist_candidate_{i}": drawn[:, :, i] for i in range(drawn.shape[2])}

    def loss(self, rows: Rows, taken: np.ndarray) -> Tensor:
        """Cross-entropy and, for DIEN, the auxiliary loss."""
        inputs = self._inputs(rows, taken)
        probability = self.module(inputs).squeeze(-1)
        click = nn.functional.binary_cross_entropy(probability, torch.from_numpy(rows.click[taken]))
        loss: Tensor = click + self.module.aux_loss.sum()
        return loss

    def score(self, rows: Rows, taken: np.ndarray) -> Tensor:
        """Probabilities [B]."""
        found: Tensor = self.module(self._inputs(rows, taken)).squeeze(-1)
        return found

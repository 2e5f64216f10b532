"""MIAN's interactions against their equations, pair by pair, and what it does with no or one field."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.contract.encoder import EncoderSizes, ModelInputs
from tests.unit.training.random_inputs import SIZES, one_request, random_inputs, with_large_weights
from training.layers.embedding import EmbeddingWidths
from training.models import mian
from training.models.mian import Mian, MianConfig

CONFIG = MianConfig(EmbeddingWidths(8, 6, 4, 4), width=16, top=(24, 12), similarity_width=8)
COUNTS = (3, 1, 4)


def built(config: MianConfig = CONFIG, sizes: EncoderSizes = SIZES) -> Mian:
    torch.manual_seed(1)
    model = with_large_weights(Mian(config, sizes), spread=0.35).double().eval()
    assert isinstance(model, Mian)
    return model


def met(e_i: Tensor, others: list[Tensor], of_candidate: list[Tensor], others_layers: list[object]) -> Tensor:
    """Eq. 7-11 as printed: V = e_i ⊕ x, one score for each from a W over all of V, Σ α V."""
    v = [torch.cat([e_i, x]) for x in others]
    w = [torch.cat([mine, layer.weight[0]]) for mine, layer in zip(of_candidate, others_layers, strict=True)]  # type: ignore[attr-defined]
    b = [layer.bias[0] for layer in others_layers]  # type: ignore[attr-defined]
    scores = torch.stack([torch.tanh(x @ y + z) for x, y, z in zip(v, w, b, strict=True)])
    return (torch.softmax(scores, dim=0).unsqueeze(1) * torch.stack(v)).sum(0)


@torch.no_grad()
def slow(model: Mian, inputs: ModelInputs) -> Tensor:
    """One candidate of one request after the other, with every equation as the paper prints it."""
    logits = []
    for row, request in enumerate(inputs.candidate_request.tolist()):
        one = one_request(inputs, request)
        page = model.page
        e_i = page.candidate(inputs, page.item(inputs))[row]
        n = int((one.history_age > 0).sum())
        plain, mask = page.history(one)
        encoded = model.inward(plain[:, :n])
        for layer in model.encoder:
            encoded = layer(encoded, mask[:, :n])
        ibim, width = model.with_behaviours, model.config.width
        r_ibim = torch.zeros(ibim.out_width, dtype=e_i.dtype)
        if n:
            r_ibim = met(e_i, list(encoded[0]), [ibim.of_candidate.weight[0]] * n, [ibim.of_behaviour] * n)
        e_u, e_c = page.user(one.user_fields)[0], page.context(one.context_fields)[0]
        if model.config.use_trigger:
            e_c = torch.cat([e_c, page.trigger(one)[0]])
        results = []
        for name, fields in (("user", e_u), ("context", e_c)):
            unit = model.interactions[name]
            pieces = torch.split(fields, list(unit.field_widths))
            mapped = [inward(piece) for inward, piece in zip(unit.inward, pieces, strict=True)]
            if len(mapped) == 1:
                results.append(torch.cat([e_i, mapped[0]]))
            else:
                results.append(met(e_i, mapped, list(unit.of_candidate.weight), list(unit.of_field)))
        e_b = plain[0, :n].mean(0) if n else torch.zeros(plain.shape[-1], dtype=e_i.dtype)
        parts = [layer(x) for layer, x in zip(model.candidate_parts, (e_i, r_ibim, *results), strict=True)]
        parts += [model.request_parts[name](x) for name, x in (("behaviours", e_b), ("user", e_u), ("context", e_c))]
        r_g = torch.stack(parts)  # eq. 14-15
        assert r_g.shape == (7, width)
        scores = torch.stack([torch.tanh(r @ w + b) for r, w, b in zip(r_g, *model.fusion.parameters(), strict=True)])
        logits.append(model.top((torch.softmax(scores, dim=0).unsqueeze(1) * r_g).sum(0))[0])
    return torch.stack(logits)


@torch.no_grad()
def check(config: MianConfig) -> None:
    model = built(config)
    inputs = random_inputs(COUNTS, n_history=5)
    found = model.score(model.encode_request(inputs), inputs).logits
    torch.testing.assert_close(found, slow(model, inputs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("use_trigger", [True, False])
def test_every_pair_as_the_equations_say(use_trigger: bool) -> None:
    check(replace(CONFIG, use_trigger=use_trigger))


def test_without_the_tanh_it_would_be_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of IBIM, IUIM and ICIM are bounded; the unbounded ones are another model."""
    honest = torch.tanh
    monkeypatch.setattr(mian.BehaviourInteraction, "forward", _unbounded(mian.BehaviourInteraction.forward))
    with pytest.raises(AssertionError):
        check(CONFIG)
    assert torch.tanh is honest


def _unbounded(forward: object) -> object:
    def changed(self: object, *given: object) -> Tensor:
        bounded = torch.tanh
        torch.tanh = lambda x: x  # type: ignore[assignment]
        try:
            return forward(self, *given)  # type: ignore[operator]
        finally:
            torch.tanh = bounded

    return changed


@torch.no_grad()
def test_an_entity_without_fields_has_no_parts() -> None:
    bare = replace(SIZES, context=(), context_kinds=())
    model = built(replace(CONFIG, use_trigger=False), bare)
    assert set(model.interactions) == {"user"}
    inputs = random_inputs(COUNTS)
    inputs = inputs._replace(context_fields=inputs.context_fields[:, :0])
    assert torch.isfinite(model.score(model.encode_request(inputs), inputs).logits).all()

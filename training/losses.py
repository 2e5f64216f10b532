"""The two losses: cross-entropy of clicks and divergence of intent. Called by `training.loop`."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# Far below any softmax output that is not itself zero; keeps the logarithm finite and leaves its gradient alone.
SMALLEST_PROBABILITY = 1e-30


def click_loss(logits: Float[Tensor, " N"], clicks: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean binary cross-entropy over the candidates (DAIAN eq. 20, 21)."""
    return functional.binary_cross_entropy_with_logits(logits, clicks)


def intent_loss(predicted: Float[Tensor, "R S"], label: Float[Tensor, "R S"]) -> Float[Tensor, ""]:
    """Mean over requests of KL(label ‖ predicted), in nats (DAIAN eq. 19).

    In this direction: labels hold zeros, the other one would be infinite. One row per request, so long pages weigh no
    more. 0 without a request.
    """
    log_predicted = predicted.clamp_min(SMALLEST_PROBABILITY).log()
    return functional.kl_div(log_predicted, label, reduction="sum") / max(len(label), 1)

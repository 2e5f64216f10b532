"""Residual quantisation: a vector as the sum of one code of each of a few codebooks (van den Oord et al., NeurIPS 2017;
Lee et al., CVPR 2022). Used by TARQ.

    r_0 = z,  k_l = argmin_k ||r_{l-1} - c^l_k||,  r_l = r_{l-1} - c^l_{k_l},  ẑ = Σ_l c^l_{k_l}

Vectors and codes are compared in fixed point, in whole steps of 1/128: every sum is then an integer that float32 holds
exactly, so that the choice of a code does not depend on the order of additions. In floating point PyTorch and ONNX
Runtime would take different codes wherever two are nearly as near, and a different code is a different item.
Codes are no parameters: they start by k-means and follow by moving means (`follow`); gradients go straight through.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

STEPS = 128  # per unit: a power of two, so that scaling is exact
LIMIT = 255  # steps: 32 products of two such numbers, and half a square, add up to less than 2^24
MAX_WIDTH = 64
KMEANS_ROUNDS = 8
START_SPREAD = 0.25
DEAD = 0.05  # a code that is chosen less than so often, as a share of the even load, begins anew


class ResidualQuantiser(nn.Module):
    """`n_levels` codebooks of `n_codes` codes of `width`. `decay` is that of the moving means."""

    codes: Tensor
    loads: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, width: int, n_levels: int, n_codes: int, decay: float) -> None:
        """Raises ValueError for a width at which sums would no longer be exact."""
        super().__init__()
        if width > MAX_WIDTH:
            raise ValueError(f"codes of width {width}: in fixed point sums are exact up to {MAX_WIDTH}; choose less")
        self.n_levels, self.n_codes, self.decay = n_levels, n_codes, decay
        self.register_buffer("codes", torch.randn(n_levels, n_codes, width) * START_SPREAD)
        self.register_buffer("loads", torch.zeros(n_levels, n_codes))
        self.register_buffer("sums", torch.zeros(n_levels, n_codes, width))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def all_codes(self) -> Float[Tensor, "J D"]:
        """Every code as it is used, level after level, on the fixed-point grid."""
        return self._steps().reshape(-1, self.codes.shape[2]) / STEPS

    def choose(self, z: Float[Tensor, "N D"]) -> Int64[Tensor, "N V"]:
        """The places in `all_codes` of each vector's codes, one per level."""
        books, rest = self._steps(), torch.round(z * STEPS)
        chosen = []
        for level in range(self.n_levels):
            code, rest = _nearest(books[level], rest)
            chosen.append(code + level * self.n_codes)
        return torch.stack(chosen, dim=1)

    def straight_through(self, z: Float[Tensor, "N D"], chosen: Int64[Tensor, "N V"]) -> Float[Tensor, "N D"]:
        """ẑ, with the gradient of z."""
        return z + (self.all_codes()[chosen].sum(1) - z).detach()

    @torch.no_grad()
    def follow(self, z: Float[Tensor, "N D"]) -> None:
        """One training step of the codes: towards the mean of what chose them. The first call places them."""
        if not bool(self.started):
            self._start(z)
        books, rest = self._steps(), torch.round(z * STEPS)
        for level in range(self.n_levels):
            code, left = _nearest(books[level], rest)
            self._move(level, code, rest / STEPS)
            rest = left

    def _steps(self) -> Float[Tensor, "V K D"]:
        return torch.round(self.codes * STEPS).clamp(-LIMIT, LIMIT)

    def _start(self, z: Tensor) -> None:
        rest = torch.round(z * STEPS)
        for level in range(self.n_levels):
            self.codes[level] = k_means(rest / STEPS, self.n_codes, KMEANS_ROUNDS)
            rest = _nearest(self._steps()[level], rest)[1]
        self.loads.fill_(len(z) / self.n_codes)
        self.sums.copy_(self.codes * self.loads.unsqueeze(2))
        self.started.fill_(True)

    def _move(self, level: int, code: Tensor, rest: Tensor) -> None:
        loads = torch.bincount(code, minlength=self.n_codes).to(rest.dtype)
        sums = torch.zeros_like(self.sums[level]).index_add(0, code, rest)
        self.loads[level].lerp_(loads, 1 - self.decay)
        self.sums[level].lerp_(sums, 1 - self.decay)
        dead = self.loads[level] < DEAD * len(rest) / self.n_codes
        others = rest[torch.randint(len(rest), (self.n_codes,))]
        self.sums[level] = torch.where(dead.unsqueeze(1), others, self.sums[level])
        self.loads[level] = torch.where(dead, 1.0, self.loads[level])
        self.codes[level] = self.sums[level] / self.loads[level].unsqueeze(1)


def k_means(x: Float[Tensor, "N D"], n_means: int, n_rounds: int) -> Float[Tensor, "K D"]:
    """Means of `n_rounds` of Lloyd's algorithm, begun at rows drawn by torch's generator."""
    means = x[torch.randperm(len(x))[:n_means]]
    if len(means) < n_means:
        more = x[torch.randint(len(x), (n_means - len(means),))]
        means = torch.cat([means, more + torch.randn_like(more) * x.std(0, correction=0)])
    for _ in range(n_rounds):
        nearest = torch.cdist(x, means).argmin(1)
        loads = torch.bincount(nearest, minlength=n_means).to(x.dtype).unsqueeze(1)
        sums = torch.zeros_like(means).index_add(0, nearest, x)
        means = torch.where(loads > 0, sums / loads.clamp_min(1), means)
    return means


def _nearest(
    book: Float[Tensor, "K D"], rest: Float[Tensor, "N D"]
) -> tuple[Int64[Tensor, " N"], Float[Tensor, "N D"]]:
    """The nearest code, the first of equal ones, and what it leaves; all in whole steps."""
    near = rest.clamp(-LIMIT, LIMIT)
    # ||r - c||² without what is the same for all codes, halved
    distance = 0.5 * (book * book).sum(1) - near @ book.T
    code = distance.argmin(1)
    return code, rest - book[code]

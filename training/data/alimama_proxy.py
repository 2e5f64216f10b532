"""Stand-ins for the content vectors that the public Alimama files do not have. A DECLARED DEVIATION from DAIAN.

DAIAN compares items by frozen vectors of a multimodal model. The public set has neither text nor image, so similarity
here is made of what there is: which categories the same users click, and equal category, brand, advertiser and price.
Called by `prepare_alimama`, which writes `DEVIATION` into the report; nothing else may use it.
"""

import numpy as np
import torch
from jaxtyping import Float32, Int64

from training.data.alimama_files import Ads
from training.data.embed import normalise

DEVIATION = (
    "proxy vectors: the public files have no text or image, so a vector is a spectral embedding of the category by "
    "the users who click it on the training days, beside a random direction for each category, brand, advertiser and "
    "price bin; DAIAN used a multimodal model"
)
SPECTRAL_DIMENSIONS = 32
BLOCK_DIMENSIONS = 32
PRICE_BINS = 16
ITERATIONS = 12
SEED = 56
# Share of the squared length that each block has where the ad has all of them: so the cosine of two ads of one category
# starts near 0.75, and clicks decide how near two categories are.
WEIGHTS = {"spectral": 0.5, "cate_id": 0.25, "brand": 0.1, "customer": 0.1, "price": 0.05}


def proxy_vectors(
    ads: Ads, click_user: Int64[np.ndarray, " C"], click_ad: Int64[np.ndarray, " C"]
) -> Float32[np.ndarray, "M D"]:
    """One vector an ad, of length 1, from attributes and the clicks of the TRAINING DAYS (nothing later, trap T7)."""
    names, category = np.unique(ads.texts["cate_id"].astype(str), return_inverse=True)
    place = ads.places(click_ad)
    known = place >= 0
    spectral = spectral_categories(click_user[known], category[place[known]], len(names))
    blocks = [np.sqrt(WEIGHTS["spectral"]) * normalise(spectral)[category]]
    blocks += [
        np.sqrt(WEIGHTS[name]) * random_directions(ads.texts[name], name) for name in ("cate_id", "brand", "customer")
    ]
    blocks.append(np.sqrt(WEIGHTS["price"]) * random_directions(_price_bins(ads.price), "price"))
    return normalise(np.concatenate(blocks, axis=1).astype(np.float32))


def spectral_categories(
    user: Int64[np.ndarray, " C"], category: Int64[np.ndarray, " C"], n_categories: int
) -> Float32[np.ndarray, "K D"]:
    """Categories by who clicks them: the leading singular vectors of D_u^-1/2 A D_c^-1/2 (correspondence analysis).

    A counts a user's clicks in a category once. The first singular vector says only how often a category is clicked
    and is left out. Block power iteration on the category side: memory is the clicks and a few columns. A category
    without a click has zeros.
    """
    wide = SPECTRAL_DIMENSIONS + 1
    vectors = np.zeros((n_categories, SPECTRAL_DIMENSIONS), dtype=np.float32)
    if not len(user):
        return vectors
    pairs = np.unique(np.stack([user, category]), axis=1)
    _, row = np.unique(pairs[0], return_inverse=True)
    column = pairs[1]
    values = 1 / np.sqrt(np.bincount(row)[row] * np.bincount(column, minlength=n_categories)[column])
    shape = (int(row.max()) + 1, n_categories)
    indices = torch.from_numpy(np.stack([row, column]))
    matrix = torch.sparse_coo_tensor(indices, torch.from_numpy(values.astype(np.float32)), shape, check_invariants=True)
    matrix = matrix.coalesce()
    turned = matrix.t().coalesce()
    random = np.random.default_rng(SEED).standard_normal((n_categories, wide)).astype(np.float32)
    basis = torch.from_numpy(random)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(turned @ (matrix @ basis))[0]
    strength, turn = torch.linalg.eigh(basis.T @ (turned @ (matrix @ basis)))
    leading = (basis @ turn * strength.clamp_min(0)).flip(1).numpy()
    found = leading[:, 1 : 1 + SPECTRAL_DIMENSIONS]
    vectors[:, : found.shape[1]] = found
    return vectors


def random_directions(values: np.ndarray, name: str) -> Float32[np.ndarray, "M D"]:
    """A seeded random direction of length 1 for each distinct value, zeros for None: equal values have cosine 1."""
    distinct, code = np.unique(
        np.array([str(value) for value in values], dtype=object).astype(str), return_inverse=True
    )
    seed = int.from_bytes(f"{SEED}/{name}".encode(), "big")
    directions = normalise(
        np.random.default_rng(seed).standard_normal((len(distinct), BLOCK_DIMENSIONS)).astype(np.float32)
    )
    directions[distinct == "None"] = 0
    return directions[code]


def _price_bins(price: np.ndarray) -> np.ndarray:
    """Quantile bins of the price, None where there is none."""
    known = np.isfinite(price)
    edges = np.quantile(price[known], np.linspace(0, 1, PRICE_BINS + 1)[1:-1]) if known.any() else np.empty(0)
    bins = np.searchsorted(edges, price, side="right").astype(object)
    bins[~known] = None
    return bins

"""G11: memory and descriptors over many requests.

A line is laid through resident memory after the first third of the requests, in which pools fill; its slope is given
with its 95 % interval. A run too short to tell says so. Called by `__main__.py`.
"""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from benchmarks.goals.lab import LIGHT, PATIENT, PATIENT_MS, Lab
from benchmarks.goals.outcome import Check, Outcome, none_of
from tests.chaos.open_loop import LoadClient, load_client, post
from tests.chaos.service_process import ServiceProcess

N_CLIENTS = 4
N_SAMPLES = 60
LIMIT = 1.0  # per cent per million requests
ENOUGH = 200_000  # requests; with fewer the slope is that of pools that fill
MILLION = 1e6


@dataclass
class Soak:
    """Samples along the way: requests answered, resident bytes, descriptors."""

    n_failed: int = 0
    n_done: int = 0
    samples: list[tuple[int, int, int]] = field(default_factory=list)

    def descriptors(self) -> tuple[float, float]:
        """The most that were open in the middle third, and in the last."""
        open_then = self.settled()[:, 2]
        half = len(open_then) // 2
        return float(open_then[:half].max()), float(open_then[half:].max())

    def settled(self) -> np.ndarray:
        return np.array(self.samples[len(self.samples) // 3 :], float)

    def slope(self) -> tuple[float, float]:
        """Per cent per million requests, and half of its 95 % interval."""
        done, resident, _ = self.settled().T
        x, y = done / MILLION, 100 * resident / resident.mean()
        spread = x - x.mean()
        slope = float((spread * (y - y.mean())).sum() / (spread**2).sum())
        rest = y - y.mean() - slope * spread
        error = float(np.sqrt((rest**2).sum() / max(1, len(x) - 2) / (spread**2).sum()))
        return slope, 1.96 * error


async def soak(lab: Lab, service: ServiceProcess, n: int) -> Soak:
    """Rankings, clicks and refusals, `n` in all."""
    found = Soak()
    every = max(1, n // N_SAMPLES)
    ranks = lab.ranks(LIGHT, deadline_ms=PATIENT_MS)
    refused = post("/v1/rank", {"trigger": 1})

    async def one(client: LoadClient, number: int) -> None:
        while found.n_done < n:
            found.n_done += 1
            turn = found.n_done
            is_refusal = turn % 50 == number
            reply = await client.ask(refused if is_refusal else ranks[turn % len(ranks)])
            found.n_failed += reply.status != (422 if is_refusal else 200)
            if turn % every == 0:
                found.samples.append((turn, service.resident_bytes(), service.n_descriptors()))

    with load_client(service.host, service.port) as client:
        await asyncio.gather(*(one(client, number) for number in range(N_CLIENTS)))
    return found


def measure(lab: Lab) -> Outcome:
    """G11."""
    with lab.service("g11", {**PATIENT, "DAIAN_LOG_LEVEL": "warning"}) as service:
        found = asyncio.run(soak(lab, service, lab.sizes.n_soak))
    slope, half = found.slope()
    resident, (before, after) = found.settled()[:, 1], found.descriptors()
    how = (
        f"closed loop of {N_CLIENTS}, rankings and one refusal in fifty; memory {resident.min() / 2**20:.1f} to "
        f"{resident.max() / 2**20:.1f} MB over the last two thirds"
    )
    checks = [
        none_of("requests not answered as they should be", found.n_failed, found.n_done),
        Check("descriptors, last third", f"{after:.0f}", f"≤ {before:.0f}, as in the middle third", after <= before),
    ]
    text = f"{slope:+.2f} ± {half:.2f} % per million"
    if found.n_done < ENOUGH or slope - half <= LIMIT < slope + half:
        why = f"{found.n_done:,} requests are too few to tell: memory {text}, asked for < {LIMIT:g}"
        return Outcome(how, checks, why)
    memory = Check("memory", text, f"< {LIMIT:g} % per million", slope + half <= LIMIT)
    return Outcome(how, [*checks, memory])

"""G19: clients that ask again the moment they are refused, whatever Retry-After says.

They stand beside a load of a little more than the capacity, so that there are refusals at all. Four connections, each
with the next request on its way as soon as an answer is there; where there is room they are let in like anybody, and
what they are given in time counts as goodput too. What must not happen is that telling them no costs answers, or that
they get theirs in the others' stead: everybody's answers together are judged, and the others' alone. They keep their
connections: who makes a new one for each request is not held up (docs/operate.md).
Called by `__main__.py`.
"""

import asyncio
from dataclasses import dataclass, field

from benchmarks.goals.lab import Lab
from benchmarks.goals.outcome import D_S, Check, Outcome, at_least, none_of
from benchmarks.goals.overload import capacity_of
from tests.chaos.open_loop import Sent, closed_loop, load_client, open_loop
from tests.chaos.service_process import ServiceProcess

N_SPINNING = 4
TIMES = 1.2  # of the capacity: what the well-behaved ask
LEAST_LEFT = 0.8  # of the goodput, whoever gets it
# Of their own answers, to the others. Who is let in waits in one queue: four connections hold no more than four of its
# places, some 32 at a capacity of 550/s (0.7 of 100 ms, by 1.2 for safety). So 28 in 32 are fair, of the goodput above.
LEAST_TO_OTHERS = 0.7


@dataclass
class Storm:
    """Answers by who asked; `quiet` is without the spinning ones, `loud` and `spun` are of the same time."""

    capacity_per_s: float
    seconds: float = 0.0  # of each
    quiet: list[Sent] = field(default_factory=list)
    loud: list[Sent] = field(default_factory=list)
    spun: list[Sent] = field(default_factory=list)

    @property
    def refused(self) -> list[Sent]:
        """What the spinning ones were refused."""
        return [one for one in self.spun if one.status == 503]

    @property
    def left(self) -> float:
        """Goodput beside the spinning ones, theirs included, of that without them."""
        return in_time([*self.loud, *self.spun]) / max(1, in_time(self.quiet))

    @property
    def left_to_others(self) -> float:
        """What the others alone are given in time beside them, of that without them."""
        return in_time(self.loud) / max(1, in_time(self.quiet))


def in_time(answers: list[Sent]) -> int:
    return sum(one.status == 200 and one.seconds <= D_S for one in answers)


async def storm(lab: Lab, service: ServiceProcess, times: float = TIMES) -> Storm:
    """Capacity, then `times` that without and with the spinning ones, in turn, twice in each round."""
    seconds = lab.sizes.overload_s / 2
    with load_client(service.host, service.port) as client, load_client(service.host, service.port) as spinning:
        found = Storm(await capacity_of(client, lab.unhurried(), lab.sizes.capacity_s))
        stream = lab.ranking(times * found.capacity_per_s)
        for turn in range(2 * lab.sizes.n_rounds):
            found.quiet += await open_loop(client, [stream], seconds, seed=2 * turn)
            loud, spun = await asyncio.gather(
                open_loop(client, [stream], seconds, seed=2 * turn + 1),
                closed_loop(spinning, lab.ranks(user="spinning"), seconds, N_SPINNING),
            )
            found.loud += loud
            found.spun += spun
            found.seconds += seconds
    return found


def measure(lab: Lab) -> Outcome:
    """G19."""
    with lab.service("g19") as service:
        found = asyncio.run(storm(lab, service))
    how = (
        f"capacity {found.capacity_per_s:.0f}/s; Poisson arrivals at {TIMES:g} times that, without and with "
        f"{N_SPINNING} connections that ask again at once, {2 * lab.sizes.n_rounds} pairs of "
        f"{lab.sizes.overload_s / 2:g} s in turn; {in_time(found.quiet):,} answers in time without them, "
        f"{in_time(found.loud):,} and {in_time(found.spun):,} of their own with them, who were refused "
        f"{len(found.refused) / found.seconds:.0f} times a second"
    )
    return Outcome(how, checks_of(found))


def checks_of(found: Storm) -> list[Check]:
    """Nothing breaks, refusals say when to come again, and goodput stays, of all and of the others."""
    every = [*found.quiet, *found.loud, *found.spun]
    refused = [one for one in every if one.status == 503]
    return [
        none_of(
            "answers that are neither 200 nor 503, and broken connections",
            sum(one.status not in (200, 503) for one in every),
            len(every),
        ),
        none_of("503 without Retry-After", sum(not one.has_retry_after for one in refused), len(refused)),
        at_least("answers in time with them, of that without, to all", 100 * found.left, 100 * LEAST_LEFT, "%"),
        at_least("the same, to the others alone", 100 * found.left_to_others, 100 * LEAST_TO_OTHERS, "%"),
    ]

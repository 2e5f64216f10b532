"""Worker processes: results come back, failures and deaths cost one task each, the rest goes on."""

import os
from collections.abc import Callable
from typing import Any

from training.compare_pool import Done, Said, WorkerPool


def double(task: Any, say: Callable[[str], None]) -> Any:
    if task == "raise":
        raise ValueError("this row cannot be built")
    if task == "die":
        os._exit(9)
    say(f"at {task}")
    return task * 2


def test_a_failure_and_a_death_cost_one_task_each() -> None:
    tasks = [1, "raise", 2, "die", 3, 4]
    with WorkerPool(double, 2) as pool:
        for task in tasks:
            pool.add(task)
        events = list(pool.events())
    done = {event.task: event for event in events if isinstance(event, Done)}
    assert set(done) == set(tasks)
    assert [done[n].result for n in (1, 2, 3, 4)] == [2, 4, 6, 8]
    assert done["raise"].failure == "ValueError: this row cannot be built"
    assert "Traceback" in done["raise"].trace
    assert "exit code 9" in str(done["die"].failure)
    assert {event.text for event in events if isinstance(event, Said)} == {f"at {n}" for n in (1, 2, 3, 4)}


def test_tasks_may_be_added_while_others_run() -> None:
    seen = []
    with WorkerPool(double, 1) as pool:
        pool.add(1)
        for event in pool.events():
            if isinstance(event, Done):
                seen.append(event.result)
                if len(seen) < 3:
                    pool.add_first(event.result)
    assert seen == [2, 4, 8]

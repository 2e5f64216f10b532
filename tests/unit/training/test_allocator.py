"""training.allocator: pages that a step touched once stay. In processes of its own: the setting lasts."""

import subprocess
import sys

from training.allocator import keep_freed_memory

STEPS = """
import resource, sys
import torch
from training.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for step in range(16):
    if step == 6:  # the heap has found its size
        before = faults()
    blocks = [torch.ones(12 << 20) for _ in range(3)]  # 48 MB each: above all that it adapts to
    del blocks
print((faults() - before) / 10)
"""


def faults_per_step(how: str) -> float:
    ran = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def test_a_second_step_gets_the_memory_of_the_first() -> None:
    assert faults_per_step("keep") < 200


def test_saboteur_without_it_every_step_faults_all_of_its_pages_in() -> None:
    assert faults_per_step("leave") > 20_000


def test_it_may_be_called_again() -> None:
    assert keep_freed_memory()
    assert keep_freed_memory()

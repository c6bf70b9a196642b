"""Growth of the memory over repeated calls."""

import gc
import resource
from pathlib import Path


def resident():
    """Resident memory of this process now, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def least_growth(step, calls, rounds=4):
    """Smallest growth over some rounds of calls, in bytes and in objects.

    Caches and the allocator fill up at first; a leak grows in every round.
    """
    grown, objects = [], []
    for _ in range(rounds):
        before, known = resident(), len(gc.get_objects())
        for _ in range(calls):
            step()
        grown.append(resident() - before)
        objects.append(len(gc.get_objects()) - known)
    return min(grown), min(objects)

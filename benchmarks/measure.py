"""The rounds: every contender once, then every contender again, each time in a fresh process.

Interleaving spreads a busy minute of the machine over all of them; a fresh process each time lets none keep a lucky or
unlucky memory layout. Servers are pinned to one core and the client to another.
"""

import gc
import os
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.client import BadAnswer
from benchmarks.process import ServerProcess, StartFailed
from benchmarks.roster import Contender
from benchmarks.scenarios import Sample, Scenario

__all__ = ["Result", "prepare", "run_scenario"]


@dataclass
class Result:
    """What one contender did in one scenario: samples, or the reason why there are none."""

    scenario: Scenario
    contender: Contender
    samples: list[Sample] = field(default_factory=list)
    error: str = ""
    skipped: str = ""

    @property
    def best(self) -> float:
        """The quietest round's figure."""
        return min(sample.value for sample in self.samples)

    @property
    def median(self) -> float:
        """The middle round's figure."""
        return statistics.median(sample.value for sample in self.samples)

    @property
    def spread(self) -> float:
        """How far the worst round is above the best, as a part of the best."""
        worst = max(sample.value for sample in self.samples)
        return (worst - self.best) / self.best if self.best > 0 else 0.0

    @property
    def rate(self) -> float:
        """Requests per second of the fastest round."""
        return max(sample.rate for sample in self.samples)

    @property
    def measured(self) -> bool:
        """Whether there is a figure; a contender that failed once has none."""
        return bool(self.samples) and not self.error


def prepare() -> int | None:
    """Make this process the client: all descriptors it may have, no garbage collector, a core of its own.

    Returns the core for the servers, None where processes cannot be pinned.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    os.sched_setaffinity(0, {cores[0]})
    return cores[-1]


def run_scenario(
    scenario: Scenario, contenders: Sequence[Contender], *, size: int, rounds: int, core: int | None
) -> list[Result]:
    """All rounds of one scenario."""
    results = [Result(scenario, contender, skipped=contender.missing()) for contender in contenders]
    for number in range(1, rounds + 1):
        for result in results:
            if result.error or result.skipped:
                continue
            shown = _run_once(result, size, core)
            print(f"{scenario.name} {number}/{rounds} {result.contender.name}: {shown}", file=sys.stderr, flush=True)
    return results


def _run_once(result: Result, size: int, core: int | None) -> str:
    """Add a sample, or the error instead; gives what to show of it."""
    try:
        with ServerProcess(result.contender, core) as server:
            try:
                sample = result.scenario.run(server, size)
            except (BadAnswer, OSError) as error:
                last_words = server.last_words()
                result.error = f"{error}" + (f" (stderr: {last_words})" if last_words else "")
                return result.error
    except StartFailed as error:
        result.error = str(error)
        return result.error
    result.samples.append(sample)
    return f"{sample.value:.2f}"

"""The comparisons that matter: whose figure over whose, and the bar it should stay under.

The bars are the project's promises to itself. A ratio is formed from the minima of one run. Where there is a bound to
keep, whatever others do, nobody stands on the right and the figure itself is held against the bar.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.measure import Result

__all__ = ["PAIRS", "Pair", "Ratio", "ratios"]


@dataclass(frozen=True)
class Pair:
    """`left`'s figure over `right`'s, or without a `right` the figure itself, should be at most `bar`."""

    scenario: str
    left: str
    right: str | None
    bar: float

    def __str__(self) -> str:
        return f"{self.left} / {self.right}" if self.right else self.left


@dataclass(frozen=True)
class Ratio:
    """A pair that was measured; the `unit` is empty when it is a quotient."""

    pair: Pair
    label: str
    value: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is at or under its bar."""
        return self.value <= self.pair.bar


PAIRS = (
    Pair("echo50", "aserver-uvloop", "asyncio-streams-uvloop", 0.95),
    Pair("echo50", "aserver-handler-uvloop", "asyncio-streams-uvloop", 0.95),
    Pair("echo50", "aserver-uvloop", "socketserver-threading", 0.95),
    Pair("echo50", "aserver-handler-uvloop", "socketserver-threading", 0.95),
    Pair("echo50", "aserver-asyncio", "asyncio-streams-asyncio", 0.95),
    Pair("echo50", "aserver-trio", "trio-serve-tcp", 0.80),
    Pair("pipelined16", "aserver-uvloop", "asyncio-streams-uvloop", 0.25),
    Pair("connect", "aserver-uvloop", "asyncio-streams-uvloop", 0.85),
    Pair("connect", "aserver-uvloop", "socketserver-threading", 0.40),
    Pair("reset", "aserver-uvloop", "asyncio-streams-uvloop", 0.85),
    Pair("reset", "aserver-uvloop", "socketserver-threading", 0.40),
    Pair("idle", "aserver-uvloop", "asyncio-streams-uvloop", 0.80),
    Pair("echo50", "compat-threading", "socketserver-threading", 1.05),
    Pair("echo50", "compat-thread-pool", "socketserver-threading", 1.05),
    Pair("connect", "compat-threading", "socketserver-threading", 0.95),
    Pair("connect", "compat-thread-pool", "socketserver-threading", 0.50),
    Pair("connect", "compat-forking", "socketserver-forking", 1.00),
    Pair("connect", "compat-processes", "socketserver-forking", 0.15),
    Pair("udp-echo", "compat-udp", "socketserver-udp", 1.00),
    Pair("udp-echo", "aserver-udp-uvloop", "socketserver-udp", 1.00),
    Pair("udp-echo", "aserver-udp-uvloop", "socketserver-udp-threading", 0.25),
    Pair("udp-echo", "aserver-udp-uvloop", "easynetwork-udp-uvloop", 0.45),
    Pair("udp-flood", "aserver-flood-uvloop", None, 10_240),
    Pair("udp-flood", "aserver-flood-asyncio", None, 10_240),
    Pair("udp-flood", "aserver-flood-trio", None, 10_240),
    Pair("udp-overload", "aserver-flood-uvloop", None, 10_240),
)


def ratios(results: Iterable[Result]) -> Iterator[Ratio]:
    """The pairs whose sides were measured."""
    measured = {(result.scenario.name, result.contender.name): result for result in results if result.measured}
    for pair in PAIRS:
        left = measured.get((pair.scenario, pair.left))
        if not left:
            continue
        if pair.right is None:
            yield Ratio(pair, left.scenario.label, left.best, left.scenario.unit)
        elif (right := measured.get((pair.scenario, pair.right))) and right.best > 0:
            yield Ratio(pair, left.scenario.label, left.best / right.best)

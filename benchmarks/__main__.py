"""``python -m benchmarks list`` and ``python -m benchmarks run``: arguments in, tables out."""

import argparse
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure import Result, prepare, run_scenario
from benchmarks.pairs import PAIRS, ratios
from benchmarks.report import as_json, machine, pair_line, table
from benchmarks.roster import CONTENDERS, Contender
from benchmarks.scenarios import SCENARIOS, Scenario


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status is 1 when a contender failed."""
    options = _parser().parse_args(arguments)
    if options.command == "list":
        _list()
        return 0
    if sys.platform != "linux":
        sys.exit("python -m benchmarks run: reading another process's CPU clock and memory needs Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the context managers that end the servers
    try:
        return _run(options)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a request costs each server.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the scenarios, the contenders and the pairs")
    run = commands.add_parser("run", help="measure")
    run.add_argument("--scenario", nargs="+", action="extend", choices=SCENARIOS, metavar="S", help="default: all")
    run.add_argument("--contender", nargs="+", action="extend", choices=CONTENDERS, metavar="C", help="default: all")
    run.add_argument("--rounds", type=int, metavar="N", help="instead of the scenarios' own number")
    run.add_argument("--quick", action="store_true", help="smaller and fewer rounds: some minutes for everything")
    run.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    return parser


def _list() -> None:
    print("scenarios")
    for scenario in SCENARIOS.values():
        print(f"  {scenario.name:28} {scenario.title} ({scenario.unit})")
    print("contenders")
    for contender in CONTENDERS.values():
        file = f"contenders/{contender.module}.py"
        print(f"  {contender.name:28} {contender.serves:8}  {file} {contender.missing()}".rstrip())
    print("pairs")
    for pair in PAIRS:
        print(f"  {pair.scenario:28} {pair}  (bar {pair.bar:,.2f})")


def _run(options: argparse.Namespace) -> int:
    plan = _plan(options.scenario or SCENARIOS, options.contender or CONTENDERS)
    if not plan:
        sys.exit("python -m benchmarks run: none of these contenders serves what one of these scenarios asks for")
    core = prepare()
    about = machine()
    print(f"{about['python']}, {about['system']}, {about['cores']} cores, {about['packages']}")
    if core is None:
        print("not pinned: the client shares its core with the servers")
    results: list[Result] = []
    for scenario, contenders in plan:
        size = scenario.quick if options.quick else scenario.full
        rounds = options.rounds or (scenario.quick_rounds if options.quick else scenario.rounds)
        found = run_scenario(scenario, contenders, size=size, rounds=rounds, core=core)
        results += found
        print("\n" + table(found, size, rounds), flush=True)
    compared = list(ratios(results))
    if compared:
        print("\npairs")
        for ratio in compared:
            print("  " + pair_line(ratio))
    if options.json:
        options.json.write_text(json.dumps(as_json(results, compared), indent=1) + "\n")
    return 1 if any(result.error for result in results) else 0


def _plan(scenarios: Iterable[str], contenders: Iterable[str]) -> list[tuple[Scenario, list[Contender]]]:
    """The scenarios that somebody takes part in, each with the contenders that serve what it asks for."""
    chosen = [CONTENDERS[name] for name in contenders]
    matched = [
        (SCENARIOS[name], [each for each in chosen if each.serves == SCENARIOS[name].serves]) for name in scenarios
    ]
    return [(scenario, matching) for scenario, matching in matched if matching]


if __name__ == "__main__":
    sys.exit(main())

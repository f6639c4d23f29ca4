"""Runs the benchmark: in each round every row, and for each row the configurations in turns.
Started by `run`, which does the set-up and creates its namespaces.
"""

import argparse
import os
import resource
import shutil
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import report
from envoy import EnvoyPair
from load import Place
from machine import machine, versions
from measure import resident_kib
from naru import NaruPair
from network import Network
from pair import NoProxy
from processes import BenchError, run
from rows import MEMORY, MEMORY_SETTLE_S, QUICK, ROWS
from servers import Servers

# For each process. In the worst case 5,000 connections have two ends in one proxy.
OPEN_FILES = 65536
FEWEST_OPEN_FILES = 12_000
PAIRS = {pair.name: pair for pair in (NoProxy, EnvoyPair, NaruPair)}


class Configuration:
    """One configuration with its network, servers and proxies."""

    def __init__(self, name, variant, scratch, programs):
        self.name, self.programs = name, programs
        self.scratch = scratch / f"{variant.name}-{name}"
        self.scratch.mkdir()
        self.network = Network(f"{variant.name}-{name}")
        self.servers = Servers(self.network)
        self.pair = PAIRS[name](self.network)
        try:
            self.servers.start(self.scratch)
            self.pair.start(self.scratch, programs, variant.workers, variant.large)
        except BaseException:
            self.stop()
            raise

    def measure(self, row, seconds):
        address, port = self.pair.target(row.service)
        place = Place(self.network.client, address, port, self.programs, self.scratch)
        self.servers.check()
        return row.measure(row, self.pair, place, seconds)

    def stop(self):
        self.pair.stop()
        self.servers.stop()
        self.network.remove()
        shutil.rmtree(self.scratch)


class Run:
    """All that is measured."""

    def __init__(self, options, scratch):
        self.options, self.scratch = options, scratch
        self.measured, self.failures = {}, []

    def failed(self, what):
        self.failures.append(what)
        say(f"FAILED {what}")

    def keep(self, row, name, figures):
        self.measured.setdefault(row, {}).setdefault(name, []).append(figures)

    def variant(self, number, variant, rows):
        """One round of the rows of one variant, with new processes."""
        turns = [name for name in PAIRS if variant.without or name != "none"]
        # The order of the variants rotates, so that each goes first in turn.
        turns = turns[number % len(turns) :] + turns[: number % len(turns)]
        configurations, memory = [], {}
        try:
            for name in turns:
                configurations.append(
                    Configuration(name, variant, self.scratch, self.scratch / "programs")
                )
            if rows[0].key == "h1":
                memory = self.memory(configurations)
            for row in rows:
                for configuration in configurations:
                    self.row(number, row, configuration, memory)
        except BenchError as error:
            # Its processes are stopped below; the next round or variant starts its own.
            self.failed(f"round {number + 1}, {variant.name}: {error}")
        finally:
            for configuration in configurations:
                configuration.stop()
        for name, figures in memory.items():
            if "after_mib" in figures:
                self.keep(MEMORY, name, figures)

    @staticmethod
    def memory(configurations):
        """Resident memory before any load."""
        time.sleep(MEMORY_SETTLE_S)
        pairs = [configuration.pair for configuration in configurations]
        return {
            pair.name: {"idle_mib": resident_kib(pair.pids()) / 1024}
            for pair in pairs
            if pair.pids()
        }

    def row(self, number, row, configuration, memory):
        name, pids = configuration.name, configuration.pair.pids()
        try:
            figures = configuration.measure(row, self.options.seconds)
        except BenchError as error:
            self.failed(f"round {number + 1}, {row.key}, {name}: {error}")
            return
        self.keep(row.key, name, figures)
        if memory and row.key == "h1" and pids:
            time.sleep(MEMORY_SETTLE_S)
            memory[name].update(
                load_mib=figures["rss_peak_mib"], after_mib=resident_kib(pids) / 1024
            )
        shown = ", ".join(
            f"{key} {value:.4g}" for key, value in figures.items() if not isinstance(value, bool)
        )
        disturbed = "  DISTURBED" if figures.get("disturbed") else ""
        say(f"round {number + 1}/{self.options.rounds}  {row.key:11} {name:6} {shown}{disturbed}")


def say(text):
    print(text, flush=True)


def options():
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description="Measures Naru beside Envoy and no proxy at all."
    )
    parser.add_argument("--quick", action="store_true", help="the first two rows, one round")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often all is measured (default: 3)"
    )
    parser.add_argument(
        "--seconds", type=int, default=10, help="how long a load runs (default: 10)"
    )
    parser.add_argument(
        "--rows",
        default=",".join(row.key for row in ROWS),
        help="which rows (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("target/bench"),
        help="directory for report.md and report.json (default: %(default)s)",
    )
    parser.add_argument("--programs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--open-loop", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--envoy", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--commit", default="", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.rows = 1, ",".join(QUICK)
    chosen.rows = chosen.rows.split(",")
    unknown = set(chosen.rows) - {row.key for row in ROWS}
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    if not (1 <= chosen.rounds <= 100 and 1 <= chosen.seconds <= 600):
        parser.error("1 to 100 rounds of 1 to 600 seconds are possible")
    return chosen


def own_run():
    """A directory in the benchmark's own /run, which is removed with its mount namespace."""
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
    scratch = Path("/run/naru-bench")
    (scratch / "programs").mkdir(parents=True)
    return scratch


def raise_open_files():
    """Raises the limit of open files to the maximum for every process."""
    hardest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = OPEN_FILES if hardest == resource.RLIM_INFINITY else min(hardest, OPEN_FILES)
    if files < FEWEST_OPEN_FILES:
        sys.exit(
            f"tests/bench/run: {FEWEST_OPEN_FILES} open files are needed, and "
            f"`ulimit -Hn` is {hardest}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hardest))


def main():
    chosen = options()
    if chosen.check:
        return 0
    # Background processes of a shell ignore SIGINT by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise_open_files()
    os.umask(0o022)
    chosen.out.mkdir(parents=True, exist_ok=True)
    scratch = own_run()
    # The build directory may be inaccessible to the proxies' user.
    sources = [chosen.programs / name for name in ("naru-proxy", "naru-controller")]
    for source in (*sources, chosen.open_loop, chosen.envoy):
        shutil.copy(source, scratch / "programs" / source.name)
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(scratch / "programs", chosen.commit),
        "programs": chosen.programs.name,
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
    }
    rows = [row for row in ROWS if row.key in chosen.rows]
    variants = list(dict.fromkeys(row.variant for row in rows))
    state = Run(chosen, scratch)
    try:
        for number in range(chosen.rounds):
            for variant in variants:
                state.variant(number, variant, [row for row in rows if row.variant == variant])
    except KeyboardInterrupt:
        state.failures.append("interrupted")
    for path in report.write(chosen.out, report.document(about, state.measured, state.failures)):
        say(str(path))
    return 1 if state.failures else 0


if __name__ == "__main__":
    sys.exit(main())

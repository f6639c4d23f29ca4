"""The rows of the table, and how each is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import load
from measure import Watch, resident_kib
from processes import BenchError
from topology import BULK, OPAQUE, RPC, WEB, Service

GIB = 1 << 30
# Warm-up before a measurement: connections are opened, tables filled, code paged in.
WARM_UP_S = 2
WARM_UP_BYTES = 256 << 20
# Time for a proxy to finish requests in flight and to update its counters.
SETTLE_S = 0.5
# Time for memory to be released or allocated before it is measured.
MEMORY_SETTLE_S = 5


@dataclass(frozen=True)
class Variant:
    """The set-up of the proxies. Rows of one variant share their processes in a round."""

    name: str
    workers: int = 1
    large: bool = False
    # Whether the row is also measured without a proxy.
    without: bool = True


PLAIN = Variant("plain")
# New processes: memory that other rows have freed would hide the connections' memory.
FRESH = Variant("fresh", without=False)
WORKERS = Variant("workers", workers=2, without=False)
LARGE = Variant("large", large=True, without=False)


@dataclass(frozen=True)
class Row:
    """One row. `measure` takes the row, a pair and a place, and returns one round's figures by
    name.
    """

    key: str
    title: str
    unit: str
    service: Service
    measure: Callable
    variant: Variant = PLAIN
    load: Callable = None


def _round(row, pair, place, size, warm_up, per):
    """Runs a load between two reads of the proxies' counters, and verifies that it went through
    both. `per` computes the figure from CPU seconds and the amount of work.
    """
    row.load(place, warm_up)
    time.sleep(SETTLE_S)
    before = pair.totals()
    with Watch(pair.pids()) as watch:
        done = row.load(place, size)
    time.sleep(SETTLE_S)
    pair.check()
    pair.prove(row.service, before, pair.totals(), done.count, done.in_flight)
    figures = {"done": done.count, "rate": done.count / done.seconds, **done.more}
    if pair.pids():
        if watch.cpu_s == 0:
            raise BenchError(f"{pair.name}: the proxies used no CPU time")
        figures.update(per(watch.cpu_s, done.count))
        figures["rss_peak_mib"] = watch.peak_kib / 1024
    figures.update(others=watch.others, stolen=watch.stolen, disturbed=watch.disturbed)
    return figures


def timed(row, pair, place, seconds):
    """A load of this duration: CPU µs for each request or connection."""
    return _round(
        row, pair, place, seconds, WARM_UP_S, lambda cpu_s, count: {"cpu_us": cpu_s * 1e6 / count}
    )


def bulk(row, pair, place, _seconds):
    """A number of bytes: CPU seconds for each GiB."""
    figures = _round(
        row,
        pair,
        place,
        load.BULK_BYTES,
        WARM_UP_BYTES,
        lambda cpu_s, count: {"cpu_s_per_gib": cpu_s * GIB / count},
    )
    figures["gib_per_s"] = figures.pop("rate") / GIB
    return figures


def idle(row, pair, place, _seconds):
    """Memory of both proxies for each idle connection."""
    # A few requests, for one-time allocations that are independent of the number of connections.
    load.open_loop(place, WARM_UP_S)
    time.sleep(MEMORY_SETTLE_S)
    before, counted = resident_kib(pair.pids()), pair.totals()
    with load.Idle(place) as connections:
        time.sleep(MEMORY_SETTLE_S)
        held = resident_kib(pair.pids())
        pair.prove(row.service, counted, pair.totals(), load.IDLE_CONNECTIONS, 0)
        connections.finish()
    pair.check()
    return {
        "kib_per_connection": (held - before) / load.IDLE_CONNECTIONS,
        "rss_before_mib": before / 1024,
        "rss_held_mib": held / 1024,
    }


ROWS = [
    Row(
        "h1",
        "HTTP/1.1 GET 1 KiB, 64 kept connections, saturated",
        "µs/request",
        WEB,
        timed,
        load=load.wrk,
    ),
    Row(
        "h2",
        "h2 POST 128 B, 10 connections × 10 streams, saturated",
        "µs/request",
        RPC,
        timed,
        load=load.h2load,
    ),
    Row("h1_rate", "HTTP/1.1 at 2,000/s, open loop", "µs/request", WEB, timed, load=load.open_loop),
    Row("bulk", "bulk TCP, one stream", "s/GiB", BULK, bulk, load=load.iperf3),
    Row(
        "tcp_new",
        "opaque TCP, new connections",
        "µs/connection",
        OPAQUE,
        timed,
        load=load.wrk_close,
    ),
    Row("h1_close", "HTTP/1.1, `Connection: close`", "µs/request", WEB, timed, load=load.wrk_close),
    Row(
        "idle",
        "5,000 idle kept HTTP/1.1 connections, memory of both",
        "KiB/connection",
        WEB,
        idle,
        FRESH,
    ),
    Row(
        "h1_workers",
        "the first row with 2 workers each",
        "µs/request",
        WEB,
        timed,
        WORKERS,
        load.wrk,
    ),
    Row(
        "h1_large",
        "the first row with 500 Services and 5,000 endpoints in the tables",
        "µs/request",
        WEB,
        timed,
        LARGE,
        load.wrk,
    ),
]
# Not a load of its own: measured before and after the rows with plain processes.
MEMORY = "rss"
QUICK = ["h1", "h2"]

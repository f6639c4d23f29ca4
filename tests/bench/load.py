"""The loads: each runs a program in the client's namespace for a bounded time or count, and
returns its results.

A single failure invalidates the measurement, and is an error.
"""

import json
import re
import subprocess
from dataclasses import dataclass, field

from processes import STOP_S, BenchError, in_namespace, run

# In addition to a load's duration.
GRACE_S = 60
KEPT_CONNECTIONS = 64
H2_CONNECTIONS = 10
H2_STREAMS = 10
H2_BODY = 128
OPEN_LOOP_RATE = 2000
IDLE_CONNECTIONS = 5000
BULK_BYTES = 2 << 30
# At most this much is in the buffers of sockets and proxies when iperf3 has sent all, including its
# control connection on the same port.
ON_THE_WAY = 128 << 20
# wrk opens one connection to check the address before it begins.
WRK_TRIES = 1


@dataclass
class Done:
    """The result of a load. `count` is in the unit of its row; `in_flight` bounds how many more
    were started but not finished.
    """

    count: int
    seconds: float
    in_flight: int
    # Latencies in µs, and further results of the program, by their names in the report.
    more: dict = field(default_factory=dict)


@dataclass
class Place:
    """The namespace and the target of a load, and the directory of the benchmark's programs."""

    namespace: str
    address: str
    port: int
    programs: object
    scratch: object

    def run(self, command, seconds):
        return run(
            in_namespace(self.namespace, [str(part) for part in command]), timeout=seconds + GRACE_S
        )


def wrk(place, seconds, header=None):
    """Saturates with HTTP/1.1 requests on 64 connections; with `Connection: close`, on a new one
    for each request.
    """
    command = ["wrk", "-t1", f"-c{KEPT_CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s"]
    if header:
        command += ["-H", header]
    written = place.run([*command, f"http://{place.address}:{place.port}/"], seconds)
    if "Socket errors" in written or "Non-2xx" in written:
        raise BenchError(f"wrk had failures:\n{written}")
    found = re.search(r"(\d+) requests in ([\d.]+)(m?s|m),", written)
    if not found or int(found[1]) == 0:
        raise BenchError(f"wrk did nothing:\n{written}")
    unit = {"ms": 0.001, "s": 1, "m": 60}[found[3]]
    return Done(int(found[1]), float(found[2]) * unit, KEPT_CONNECTIONS + WRK_TRIES)


def wrk_close(place, seconds):
    """Saturates with requests, each on a new connection."""
    return wrk(place, seconds, "Connection: close")


def h2load(place, seconds):
    """Saturates with HTTP/2: POSTs of 128 bytes, 10 connections with 10 streams each."""
    body = place.scratch / "post"
    body.write_bytes(b"x" * H2_BODY)
    written = place.run(
        [
            "h2load",
            f"--clients={H2_CONNECTIONS}",
            f"--max-concurrent-streams={H2_STREAMS}",
            f"--duration={seconds}",
            f"--data={body}",
            f"http://{place.address}:{place.port}/index.html",
        ],
        seconds,
    )
    found = re.search(
        r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", written
    )
    if not found:
        raise BenchError(f"h2load said something else:\n{written}")
    done, succeeded, failed, errored, late = map(int, found.groups())
    if succeeded == 0 or done != succeeded or failed or errored or late:
        raise BenchError(f"h2load had failures:\n{written}")
    return Done(succeeded, float(seconds), H2_CONNECTIONS * H2_STREAMS)


def open_loop(place, seconds):
    """2,000 requests a second, independent of earlier responses; latencies count from the time at
    which a request was due.
    """
    written = place.run(
        [
            place.programs / "open-loop",
            "rate",
            f"{place.address}:{place.port}",
            "--rate",
            OPEN_LOOP_RATE,
            "--seconds",
            seconds,
            "--connections",
            KEPT_CONNECTIONS,
        ],
        seconds,
    )
    said = json.loads(written)
    if said["failed"] or said["reconnects"]:
        raise BenchError(f"the open-loop client had failures: {written}")
    latencies = {name: said[name] for name in ("p50_us", "p99_us", "p999_us")}
    return Done(said["ok"], said["seconds"], 0, latencies)


def iperf3(place, size):
    """Sends this number of bytes on one connection. Only received bytes count: at the end, some are
    still in flight.
    """
    written = place.run(
        [
            "iperf3",
            "--client",
            place.address,
            "--port",
            place.port,
            "--bytes",
            size,
            "--json",
            "--connect-timeout",
            5000,
        ],
        GRACE_S,
    )
    said = json.loads(written)
    end = said.get("end", {}).get("sum_received")
    if "error" in said or not end or end["bytes"] < size - ON_THE_WAY:
        raise BenchError(f"iperf3 had a failure:\n{written}")
    return Done(end["bytes"], end["seconds"], ON_THE_WAY)


class Idle:
    """5,000 connections with one completed request each, kept open until the end of the block."""

    def __init__(self, place):
        self.child = subprocess.Popen(
            in_namespace(
                place.namespace,
                [
                    str(place.programs / "open-loop"),
                    "idle",
                    f"{place.address}:{place.port}",
                    "--connections",
                    str(IDLE_CONNECTIONS),
                ],
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        # Each of its waits is bounded, and so is this one.
        if self.child.stdout.readline() != "open\n":
            raise BenchError(f"the connections could not be opened: {self.child.stderr.read()}")
        return self

    def finish(self):
        """Sends another request on each connection; fails if one of them was closed."""
        written, said = self.child.communicate(timeout=GRACE_S)
        if self.child.returncode != 0 or json.loads(written)["kept"] != IDLE_CONNECTIONS:
            raise BenchError(f"not all idle connections were kept: {written}{said}")

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

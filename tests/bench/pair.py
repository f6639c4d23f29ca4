"""The interface of the configurations: two proxies or none, with a check that traffic went
through them.
"""

from dataclasses import dataclass, field

from processes import BenchError
from topology import SERVER


@dataclass
class Totals:
    """The counts of two proxies since their start, by Service: requests; connections for opaque
    Services; bytes for `bulk`.
    """

    outbound: dict = field(default_factory=dict)
    inbound: dict = field(default_factory=dict)
    handshakes_outbound: float = 0
    handshakes_inbound: float = 0
    # Counts of rejected and unproven connections, by metric: empty in a valid run.
    refused: dict = field(default_factory=dict)


class Pair:
    """Two proxies, each in its namespace."""

    name = ""

    def __init__(self, network):
        self.network = network
        self.proxies = []
        self.others = []

    def start(self, scratch, programs, workers, large):
        """Starts the proxies, and returns when they are ready. `large`: with large tables."""

    def target(self, service):
        """The address and port at which the client calls a Service."""
        return service.address, service.port

    def pids(self):
        return [proxy.pid for proxy in self.proxies]

    def check(self):
        """Fails if a program has ended."""
        for process in self.proxies + self.others:
            process.check()

    def stop(self):
        for process in self.proxies + self.others:
            process.stop()

    def totals(self):
        """The counts of the proxies."""
        raise NotImplementedError

    def prove(self, service, before, after, done, in_flight):
        """Fails unless all traffic went through both proxies with mutual TLS: their counts must
        equal the result of the load, and exceed it at most by what was in flight at its end.
        """
        for side in ("outbound", "inbound"):
            counted = getattr(after, side).get(service.name, 0) - getattr(before, side).get(
                service.name, 0
            )
            if not done <= counted <= done + in_flight:
                raise BenchError(
                    f"{self.name}: the load did {done} of {service.name}, and the {side} proxy "
                    f"counted {counted} "
                    f"(at most {in_flight} more are expected)"
                )
        if not (after.handshakes_outbound and after.handshakes_inbound):
            raise BenchError(f"{self.name}: there was no TLS handshake: {after}")
        if after.refused:
            raise BenchError(f"{self.name}: something was refused or not proven: {after.refused}")


class NoProxy(Pair):
    """The client calls the server itself."""

    name = "none"

    def target(self, service):
        return SERVER, service.target

    def totals(self):
        return Totals()

    def prove(self, service, before, after, done, in_flight):
        pass

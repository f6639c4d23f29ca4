"""CPU time and memory of processes from /proc, and whether other work disturbed a measurement.

The benchmark has its own PID namespace: /proc has only its processes, while /proc/stat covers the
whole machine.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.2
# A measurement is disturbed if other processes or the hypervisor use more than this share of the
# machine's CPU time.
DISTURBED_SHARE = 0.10


def _stat(pid):
    """The fields of /proc/PID/stat that follow the program's name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def cpu_seconds(pids):
    """User and system time of processes, including that of ended threads."""
    return sum(int(ticks) for pid in pids for ticks in _stat(pid)[11:13]) / TICKS_PER_S


def resident_kib(pids):
    """Resident memory of processes: VmRSS."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def _own_seconds():
    """CPU time of all processes of the benchmark, including ended ones."""
    ticks = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                ticks += sum(map(int, _stat(entry.name)[11:15]))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return ticks / TICKS_PER_S


@dataclass
class Machine:
    """CPU times of the whole machine, in seconds since its start."""

    at: float
    own: float
    # User, nice and system time of all processes, without interrupts, which belong to no process.
    busy: float
    stolen: float

    @classmethod
    def now(cls):
        own = _own_seconds()
        ticks = [
            int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ]
        seconds = [value / TICKS_PER_S for value in ticks]
        return cls(time.monotonic(), own, sum(seconds[:3]), seconds[7])

    def shares_since(self, before):
        """The shares of the machine's CPU time used by other processes and stolen, 0 to 1."""
        total = (self.at - before.at) * os.cpu_count()
        others = self.busy - before.busy - (self.own - before.own)
        return max(others, 0) / total, max(self.stolen - before.stolen, 0) / total


class Watch:
    """Measures processes and the machine while a load runs: `with Watch(pids) as watch`."""

    def __init__(self, pids):
        self.pids = pids
        self.peak_kib = 0
        self.cpu_s = 0.0
        self.others = self.stolen = 0.0
        self.ended = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)

    def _sample(self):
        while not self.ended.wait(SAMPLE_S):
            self.peak_kib = max(self.peak_kib, resident_kib(self.pids))

    def __enter__(self):
        self.sampler.start()
        self.machine = Machine.now()
        self.cpu_before = cpu_seconds(self.pids)
        return self

    def __exit__(self, *_):
        self.cpu_s = cpu_seconds(self.pids) - self.cpu_before
        self.others, self.stolen = Machine.now().shares_since(self.machine)
        self.ended.set()
        self.sampler.join()

    @property
    def disturbed(self):
        return self.others + self.stolen > DISTURBED_SHARE

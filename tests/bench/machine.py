"""The machine and the versions behind the figures."""

import os
import platform
import re
import subprocess
from pathlib import Path


def _first(command, pattern):
    """The version that a program reports."""
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(pattern, said.stdout + said.stderr)
    return found[1] if found else "unknown"


def machine():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / (1 << 20), 1),
        "kernel": platform.release(),
    }


def versions(programs, commit):
    return {
        "naru": _first([str(programs / "naru-proxy"), "--version"], r"(\d[\w.-]*)")
        + (f" ({commit})" if commit else ""),
        "envoy": _first([str(programs / "envoy"), "--version"], r"version: \w+/([\w.-]+)"),
        "nginx": _first(["nginx", "-v"], r"nginx/([\d.]+)"),
        "nghttp2": _first(["h2load", "--version"], r"nghttp2/([\d.]+)"),
        "wrk": _first(["wrk", "--version"], r"wrk (\S+)"),
        "iperf3": _first(["iperf3", "--version"], r"iperf ([\d.]+)"),
    }

"""Programs in a network namespace: start, wait until ready, stop. Each has a log file.

They run in the benchmark's own PID namespace, and therefore end with it.
"""

import subprocess
import time

from topology import PROXY_UID

# How long a program may take to become ready on a busy machine.
START_S = 60
STOP_S = 10
POLL_S = 0.05
# Timeout of a short command.
COMMAND_S = 60
# Log lines to show after a failure.
SHOWN_LINES = 20


class BenchError(Exception):
    """A reason why a figure is worthless, as text for the report."""


def run(command, timeout=COMMAND_S):
    """Runs a command, which must succeed, and returns its output."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise BenchError(f"{' '.join(command)}: not done in {timeout} s") from late
    if done.returncode != 0:
        raise BenchError(
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def in_namespace(namespace, command):
    """The command line that runs a command in a network namespace, as a single process."""
    return ["ip", "netns", "exec", namespace, *command]


def as_proxy(command):
    """The command line that runs a command as the proxy's user."""
    user = str(PROXY_UID)
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]


class Process:
    """A program that runs until it is stopped."""

    def __init__(self, name, namespace, command, logs):
        self.name = name
        self.log = logs / f"{name}.log"
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                in_namespace(namespace, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self):
        return self.child.pid

    def wait_until(self, ready):
        """Waits until `ready()` is true; the program may not end before."""
        deadline = time.monotonic() + START_S
        while not ready():
            if self.child.poll() is not None:
                raise BenchError(
                    f"{self.name} ended ({self.child.returncode}):\n{self.last_lines()}"
                )
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{self.name} was not ready within {START_S} s:\n{self.last_lines()}"
                )
            time.sleep(POLL_S)

    def check(self):
        """Fails if the program has ended."""
        if self.child.poll() is not None:
            raise BenchError(f"{self.name} ended ({self.child.returncode}):\n{self.last_lines()}")

    def last_lines(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])

    def stop(self):
        """Terminates it, and kills it if it does not end in time."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            self.child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def succeeds(namespace, command):
    """Whether a short command in a network namespace succeeds."""
    done = subprocess.run(
        in_namespace(namespace, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_S,
        check=False,
    )
    return done.returncode == 0


def get(namespace, url):
    """GET of a URL in a network namespace."""
    return run(in_namespace(namespace, ["curl", "--silent", "--fail", "--max-time", "20", url]))

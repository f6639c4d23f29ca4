"""Measures the delay between writing a route to the API server and its effect in each pod.

usage: convergence.py API-SERVER PKI NAMESPACE URL ROUNDS PID…
PKI: a folder with ca.crt, admin.crt and admin.key. URL: a Service of the namespace, by its
address. PID: a process of each pod, whose network namespace sends the requests. The API server
must be reachable.

Every round creates, changes and deletes an HTTPRoute whose effect is a response header. Prints a
line of JSON: for each of the three, the seconds from the start of the write to each pod's first
response in accordance with it.
"""

import ctypes
import http.client
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse

CLONE_NEWNET = 0x40000000
# Interval between two requests of one pod, in seconds.
EVERY = 0.02
# Timeout of a change, in seconds.
PATIENCE = 60.0
HEADER = "x-route"


class Pod(threading.Thread):
    """Sends requests continuously in a pod's network, and records when the responses changed."""

    def __init__(self, pid, url):
        super().__init__(daemon=True)
        self.pid, self.url = pid, url
        self.seen = None
        # The first time of each response: [value, time].
        self.changes = []
        self.failure = None

    def run(self):
        try:
            with open(f"/proc/{self.pid}/ns/net") as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            connection = http.client.HTTPConnection(
                self.url.hostname, self.url.port or 80, timeout=10
            )
            while True:
                connection.request("GET", "/")
                response = connection.getresponse()
                response.read()
                value = response.getheader(HEADER, "")
                if response.status != 200:
                    raise RuntimeError(
                        f"status {response.status}, {response.getheader('naru-reason')}"
                    )
                if value != self.seen:
                    self.seen = value
                    self.changes.append((value, time.monotonic()))
                time.sleep(EVERY)
        except Exception as error:  # whatever it is, the report is what is wanted of it
            self.failure = f"{type(error).__name__}: {error}"


def main():
    server, pki, namespace, url, rounds = sys.argv[1:6]
    url, rounds = urllib.parse.urlsplit(url), int(rounds)
    context = ssl.create_default_context(cafile=os.path.join(pki, "ca.crt"))
    context.load_cert_chain(os.path.join(pki, "admin.crt"), os.path.join(pki, "admin.key"))
    api = http.client.HTTPSConnection(server, context=context, timeout=30)
    routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"

    def ask(method, path, body=None, kind="application/json"):
        api.request(
            method, path, None if body is None else json.dumps(body), {"Content-Type": kind}
        )
        response = api.getresponse()
        text = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status}: {text[:300]}")

    def route(value):
        headers = {"set": [{"name": HEADER, "value": value}]}
        rule = {
            "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": headers}],
            "backendRefs": [{"name": "v1", "port": 80}],
        }
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "convergence", "namespace": namespace},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "echo", "port": 80}],
                "rules": [rule],
            },
        }

    pods = [Pod(pid, url) for pid in sys.argv[6:]]
    started = time.monotonic()
    for pod in pods:
        pod.start()

    def obeyed(value, began):
        """Seconds from `began` until each pod's first response with this value."""
        deadline = began + PATIENCE
        found = []
        for pod in pods:
            while True:
                if pod.failure:
                    sys.exit(f"the pod of process {pod.pid}: {pod.failure}")
                times = [when for seen, when in pod.changes if seen == value and when >= began]
                if times:
                    found.append(times[0] - began)
                    break
                if time.monotonic() > deadline:
                    sys.exit(
                        f"the pod of process {pod.pid} has not seen {value!r} but "
                        f"{pod.seen!r} after {PATIENCE} s"
                    )
                time.sleep(0.005)
        return found

    obeyed("", started)
    seconds = {"create": [], "change": [], "delete": []}
    for number in range(rounds):
        for what, value in (
            ("create", f"{number}-created"),
            ("change", f"{number}-changed"),
            ("delete", ""),
        ):
            began = time.monotonic()
            match what:
                case "create":
                    ask("POST", routes, route(value))
                case "change":
                    ask(
                        "PATCH",
                        f"{routes}/convergence",
                        {"spec": route(value)["spec"]},
                        "application/merge-patch+json",
                    )
                case "delete":
                    ask("DELETE", f"{routes}/convergence")
            seconds[what] += obeyed(value, began)
    print(
        json.dumps(
            {what: [round(second, 4) for second in found] for what, found in seconds.items()}
        )
    )


main()

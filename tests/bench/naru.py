"""The Naru pair: two sidecars with the tables of a real controller, which reads manifests.

The controller runs in the server's namespace, on a port that is not redirected. Its CPU time does
not count for the sidecars.
"""

import json
import re

import certificates
from pair import Pair, Totals
from processes import BenchError, Process, as_proxy, get, in_namespace, run, succeeds
from topology import (
    BULK,
    CLIENT,
    LAST_OF_NETWORK,
    MORE_SERVICES,
    NAMESPACE,
    SERVER,
    SERVICES,
    identity,
    more_services,
)

CONTROLLER_PORT = 15010
CONTROLLER_ADMIN = "127.0.0.1:15014"
CONTROLLER_IDENTITY = "spiffe://cluster.local/ns/naru-system/sa/naru-controller"
ADMIN = "http://127.0.0.1:15020"
SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def _pod(name, account, address):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"app": account, "naru.dev/injected": "true"},
        },
        "spec": {"serviceAccountName": account, "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


def _service(service, endpoints):
    """A Service and its EndpointSlice. `endpoints` is a list of pod names and addresses."""
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "namespace": NAMESPACE},
        "spec": {
            "clusterIP": service.address,
            "selector": {"app": "server"},
            "ports": [
                {
                    "name": "main",
                    "port": service.port,
                    "targetPort": service.target,
                    "appProtocol": service.protocol,
                }
            ],
        },
    }
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service.name}-1",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service.name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": service.target, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": pod},
            }
            for pod, address in endpoints
        ],
    }


def _objects(large):
    yield {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"naru.dev/inject": "enabled"}},
    }
    yield _pod("client-1", "client", CLIENT)
    yield _pod("server-1", "server", SERVER)
    for service in SERVICES:
        yield from _service(service, [("server-1", SERVER)])
    for service, addresses in more_services() if large else []:
        endpoints = [
            (f"{service.name}-{number}", address) for number, address in enumerate(addresses)
        ]
        for pod, address in endpoints:
            yield _pod(pod, "server", address)
        yield from _service(service, endpoints)


class NaruPair(Pair):
    """Two sidecars and their controller."""

    name = "naru"

    def start(self, scratch, programs, workers, large):
        network = self.network
        manifests = scratch / "manifests"
        manifests.mkdir()
        # JSON is YAML.
        (manifests / "all.yaml").write_text(
            "\n---\n".join(json.dumps(one) for one in _objects(large))
        )
        certificates.token_key(scratch)
        network.redirect(str(programs / "naru-proxy"), [CONTROLLER_PORT])
        self._start_controller(scratch, programs, manifests)
        for side, namespace in (("client", network.client), ("server", network.server)):
            pod = f"{side}-1"
            token = scratch / f"{side}.jwt"
            token.write_text(certificates.token(scratch, side, pod))
            command = [
                str(programs / "naru-proxy"),
                "run",
                f"--controller={SERVER}:{CONTROLLER_PORT}",
                f"--controller-identity={CONTROLLER_IDENTITY}",
                f"--trust-anchors={scratch}/state/trust-anchors.pem",
                f"--token={token}",
                f"--namespace={NAMESPACE}",
                f"--pod={pod}",
                f"--workers={workers}",
                "--log=warn",
            ]
            self.proxies.append(
                Process(f"naru-proxy-{side}", namespace, as_proxy(command), scratch)
            )
        for proxy, namespace in zip(self.proxies, (network.client, network.server)):
            proxy.wait_until(
                lambda namespace=namespace: succeeds(namespace, ["curl", "-sf", f"{ADMIN}/ready"])
            )
        if large:
            self._fill_tables()

    def _start_controller(self, scratch, programs, manifests):
        command = [
            str(programs / "naru-controller"),
            "run",
            f"--manifests={manifests}",
            f"--state-dir={scratch}/state",
            f"--token-public-key={scratch}/token.pub",
            f"--token-issuer={certificates.TOKEN_ISSUER}",
            f"--listen={SERVER}:{CONTROLLER_PORT}",
            f"--admin={CONTROLLER_ADMIN}",
            "--mtls=strict",
            "--log=warn",
        ]
        controller = Process("naru-controller", self.network.server, command, scratch)
        self.others.append(controller)
        ready = ["curl", "-sf", f"http://{CONTROLLER_ADMIN}/ready"]
        controller.wait_until(lambda: succeeds(self.network.server, ready))

    def _fill_tables(self):
        """Calls each Service once: a sidecar's tables contain what its pod calls."""
        urls = f"http://10.97.[0-{(MORE_SERVICES - 1) // LAST_OF_NETWORK}].[1-{LAST_OF_NETWORK}]/"
        command = [
            "curl",
            "--silent",
            "--max-time",
            "50",
            "--output",
            "/dev/null",
            "--write-out",
            r"%{http_code}\n",
            urls,
        ]
        codes = run(in_namespace(self.network.client, command)).split()
        if codes != ["200"] * MORE_SERVICES:
            raise BenchError(
                f"naru: of {MORE_SERVICES} Services, {codes.count('200')} answered with 200"
            )
        held = _sum(_metrics(self.network.client), "naru_table_resources")
        if held < MORE_SERVICES:
            raise BenchError(
                f"naru: the client's tables have {held} resources, and not {MORE_SERVICES} Services"
            )

    def totals(self):
        client, server = (
            _metrics(namespace) for namespace in (self.network.client, self.network.server)
        )
        totals = Totals()
        for service in SERVICES:
            family = "naru_requests_total" if service.http else "naru_tcp_connections_total"
            more = {}
            if service is BULK:
                family, more = "naru_tcp_bytes_total", {"way": "sent"}
            totals.outbound[service.name] = _sum(
                client, family, direction="outbound", service=service.name, **more
            )
            # Only requests from a client with this identity.
            totals.inbound[service.name] = _sum(
                server,
                family,
                direction="inbound",
                port=str(service.target),
                client=identity("client"),
                **more,
            )
        handshakes = "naru_tls_handshakes_total"
        totals.handshakes_outbound = _sum(client, handshakes, direction="outbound", outcome="ok")
        totals.handshakes_inbound = _sum(server, handshakes, direction="inbound", outcome="ok")
        for side, metrics in (("client", client), ("server", server)):
            for name, labels, value in metrics:
                bad = (name == handshakes and labels["outcome"] != "ok") or labels.get(
                    "client"
                ) == "unauthenticated"
                if bad and value and name != "naru_tcp_connections_open":
                    totals.refused[f"{side} {name} {labels}"] = value
        return totals


def _metrics(namespace):
    """The series of a sidecar: name, labels, value."""
    series = []
    for line in get(namespace, f"{ADMIN}/metrics").splitlines():
        found = SERIES.match(line)
        if found:
            series.append((found[1], dict(LABEL.findall(found[2] or "")), float(found[3])))
    return series


def _sum(metrics, family, **labels):
    """The sum of the series of a family that have these labels."""
    return sum(
        value
        for name, with_labels, value in metrics
        if name == family
        and all(with_labels.get(label) == wanted for label, wanted in labels.items())
    )

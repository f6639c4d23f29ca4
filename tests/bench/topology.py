"""What all configurations share: addresses, Services and the ports of the servers.

client 10.244.0.1  ── outbound proxy ═══ veth ═══ inbound proxy ──  server 10.244.0.2
calls 10.96.0.N:port (a ClusterIP), or without proxies the server itself
"""

from dataclasses import dataclass

CLIENT = "10.244.0.1"
SERVER = "10.244.0.2"
PREFIX = 24
NAMESPACE = "bench"
TRUST_DOMAIN = "cluster.local"
# The user that the redirect rules exempt.
PROXY_UID = 1337


def identity(account):
    """The SPIFFE ID of a service account."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{account}"


@dataclass(frozen=True)
class Service:
    """A Service, and the port of its server. `protocol` is an appProtocol for meshes."""

    name: str
    address: str
    port: int
    target: int
    protocol: str

    @property
    def http(self):
        return self.protocol != "tcp"


WEB = Service("web", "10.96.0.10", 80, 8080, "http")
RPC = Service("rpc", "10.96.0.11", 80, 8082, "kubernetes.io/h2c")
# The same nginx as `web`, with an opaque port.
OPAQUE = Service("opaque", "10.96.0.12", 80, 8081, "tcp")
BULK = Service("bulk", "10.96.0.13", 5201, 5201, "tcp")
SERVICES = [WEB, RPC, OPAQUE, BULK]

# The row with large tables: Services like `web`, each with its own endpoints. The server's
# namespace has all of their addresses.
MORE_SERVICES = 500
ENDPOINTS_OF_EACH = 10
MORE_CLUSTER_IPS = "10.97.0.0/16"
MORE_ENDPOINTS = "10.245.0.0/16"
# curl iterates over them; the last part of the address is 1 to this.
LAST_OF_NETWORK = 250


def _address(first, number):
    return f"{first}.{number // LAST_OF_NETWORK}.{number % LAST_OF_NETWORK + 1}"


def more_services():
    """Yields the Services of the row with large tables, with the addresses of their endpoints."""
    for number in range(MORE_SERVICES):
        first = number * ENDPOINTS_OF_EACH
        addresses = [_address("10.245", first + n) for n in range(ENDPOINTS_OF_EACH)]
        yield (
            Service(
                f"more-{number}", _address("10.97", number), WEB.port, WEB.target, WEB.protocol
            ),
            addresses,
        )

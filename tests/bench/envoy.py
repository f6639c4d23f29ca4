"""The Envoy pair: a static configuration with what a mesh needs of its sidecars, and no more.

It has mutual TLS 1.3 with the SAN verified on both sides, original destinations, routes by host
and the default stats; no access log, retries, tracing or header about the peer. The limits of the
circuit breakers are raised, as meshes do.
"""

import json

import certificates
from pair import Pair, Totals
from processes import Process, as_proxy, get, succeeds
from topology import BULK, MORE_CLUSTER_IPS, RPC, SERVER, SERVICES, WEB, identity, more_services

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
ADMIN = "http://127.0.0.1:15000"
NO_LIMIT = 1_000_000_000
# The redirect rules recognize an inbound proxy's connection to its own app by this: SOL_SOCKET,
# SO_PRIORITY, 5.
APP_SOCKET = {"level": 1, "name": 12, "int_value": 5, "state": "STATE_PREBIND"}
TYPES = "type.googleapis.com/envoy.extensions"


def _typed(name, kind, **config):
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{kind}", **config}}


def _address(address, port):
    return {"socket_address": {"address": address, "port_value": port}}


def _tls(kind, scratch, own, peer, alpn, **more):
    version = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    return _typed(
        "envoy.transport_sockets.tls",
        f"transport_sockets.tls.v3.{kind}",
        common_tls_context={
            "tls_params": version,
            "alpn_protocols": alpn,
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(scratch / f"{own}.pem")},
                    "private_key": {"filename": str(scratch / f"{own}.key")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(scratch / "ca.pem")},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": identity(peer)}}
                ],
            },
        },
        **more,
    )


def _http_options(http2):
    version = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    options = {
        "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": version,
    }
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _cluster(name, service, **more):
    thresholds = {
        limit: NO_LIMIT
        for limit in ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    }
    cluster = {
        "name": name,
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [thresholds]},
        **more,
    }
    if service.http:
        cluster["typed_extension_protocol_options"] = _http_options(service is RPC)
    return cluster


def _outbound_cluster(service, addresses, scratch):
    endpoints = [
        {"endpoint": {"address": _address(address, service.target)}} for address in addresses
    ]
    alpn = [] if not service.http else ["h2"] if service is RPC else ["http/1.1"]
    return _cluster(
        service.name,
        service,
        type="STATIC",
        lb_policy="LEAST_REQUEST",
        load_assignment={"cluster_name": service.name, "endpoints": [{"lb_endpoints": endpoints}]},
        transport_socket=_tls("UpstreamTlsContext", scratch, "client", "server", alpn),
    )


def _inbound_cluster(service):
    return _cluster(
        f"in-{service.name}",
        service,
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        upstream_bind_config={"socket_options": [APP_SOCKET]},
    )


def _filter(prefix, service, cluster, hosts):
    """The network filter of a chain: HTTP with routes by host, or opaque bytes. `hosts` maps hosts
    to clusters.
    """
    if not service.http:
        return _typed(
            "envoy.filters.network.tcp_proxy",
            "filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix=prefix,
            cluster=cluster,
        )
    router = _typed("envoy.filters.http.router", "filters.http.router.v3.Router")
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=prefix,
        codec_type="AUTO",
        http_filters=[router],
        route_config={
            "name": prefix,
            "virtual_hosts": [
                {
                    "name": to,
                    "domains": domains,
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": to}}],
                }
                for to, domains in hosts.items()
            ],
        },
    )


def _outbound(scratch, large):
    more = list(more_services()) if large else []
    chains = []
    for service in SERVICES:
        ranges = [{"address_prefix": service.address, "prefix_len": 32}]
        hosts = {service.name: _names(service)}
        if service is WEB and more:
            network, length = MORE_CLUSTER_IPS.split("/")
            ranges.append({"address_prefix": network, "prefix_len": int(length)})
            hosts.update({other.name: _names(other) for other, _ in more})
        chains.append(
            {
                "filter_chain_match": {"destination_port": service.port, "prefix_ranges": ranges},
                "filters": [_filter(f"out-{service.name}", service, service.name, hosts)],
            }
        )
    clusters = [_outbound_cluster(service, [SERVER], scratch) for service in SERVICES]
    clusters += [_outbound_cluster(service, addresses, scratch) for service, addresses in more]
    listener = {
        "name": "outbound",
        "stat_prefix": "outbound",
        "address": _address("127.0.0.1", OUTBOUND_PORT),
        "listener_filters": [_original_destination()],
        "filter_chains": chains,
    }
    return [listener], clusters


def _names(service):
    """The host names of a Service that meshes configure."""
    short = f"{service.name}.bench"
    names = [service.name, short, f"{short}.svc", f"{short}.svc.cluster.local", service.address]
    return names + [f"{name}:{service.port}" for name in names]


def _inbound(scratch):
    chains = []
    for service in SERVICES:
        alpn = ["h2", "http/1.1"] if service.http else []
        chains.append(
            {
                "filter_chain_match": {
                    "destination_port": service.target,
                    "transport_protocol": "tls",
                },
                "transport_socket": _tls(
                    "DownstreamTlsContext",
                    scratch,
                    "server",
                    "client",
                    alpn,
                    require_client_certificate=True,
                ),
                "filters": [
                    _filter(
                        f"in-{service.name}",
                        service,
                        f"in-{service.name}",
                        {f"in-{service.name}": ["*"]},
                    )
                ],
            }
        )
    listener = {
        "name": "inbound",
        "stat_prefix": "inbound",
        "address": _address("0.0.0.0", INBOUND_PORT),
        "listener_filters": [
            _original_destination(),
            _typed(
                "envoy.filters.listener.tls_inspector",
                "filters.listener.tls_inspector.v3.TlsInspector",
            ),
        ],
        "filter_chains": chains,
    }
    return [listener], [_inbound_cluster(service) for service in SERVICES]


def _original_destination():
    return _typed(
        "envoy.filters.listener.original_dst", "filters.listener.original_dst.v3.OriginalDst"
    )


class EnvoyPair(Pair):
    """Two Envoys."""

    name = "envoy"

    def start(self, scratch, programs, workers, large):
        network = self.network
        certificates.authority(scratch)
        for account in ("client", "server"):
            certificates.certificate(scratch, account)
        network.redirect(str(programs / "naru-proxy"), [])
        sides = {
            "client": (network.client, _outbound(scratch, large)),
            "server": (network.server, _inbound(scratch)),
        }
        for side, (namespace, (listeners, clusters)) in sides.items():
            bootstrap = scratch / f"{side}.json"
            host, port = ADMIN.removeprefix("http://").split(":")
            bootstrap.write_text(
                json.dumps(
                    {
                        "node": {"id": side, "cluster": "bench"},
                        "admin": {"address": _address(host, int(port))},
                        "static_resources": {"listeners": listeners, "clusters": clusters},
                    }
                )
            )
            command = [
                str(programs / "envoy"),
                "-c",
                str(bootstrap),
                "--concurrency",
                str(workers),
                "--disable-hot-restart",
                "--log-level",
                "warning",
            ]
            self.proxies.append(Process(f"envoy-{side}", namespace, as_proxy(command), scratch))
        for proxy, namespace in zip(self.proxies, (network.client, network.server)):
            proxy.wait_until(
                lambda namespace=namespace: succeeds(namespace, ["curl", "-sf", f"{ADMIN}/ready"])
            )

    def totals(self):
        client, server = (
            _stats(namespace) for namespace in (self.network.client, self.network.server)
        )
        totals = Totals()
        for service in SERVICES:
            name = service.name
            if service.http:
                totals.outbound[name] = client.get(f"http.out-{name}.downstream_rq_total", 0)
                totals.inbound[name] = server.get(f"http.in-{name}.downstream_rq_total", 0)
            elif service is BULK:
                totals.outbound[name] = client.get(f"cluster.{name}.upstream_cx_tx_bytes_total", 0)
                totals.inbound[name] = server.get(
                    f"cluster.in-{name}.upstream_cx_tx_bytes_total", 0
                )
            else:
                totals.outbound[name] = client.get(f"tcp.out-{name}.downstream_cx_total", 0)
                totals.inbound[name] = server.get(f"tcp.in-{name}.downstream_cx_total", 0)
        totals.handshakes_outbound = sum(
            value
            for stat, value in client.items()
            if stat.startswith("cluster.") and stat.endswith(".ssl.handshake")
        )
        totals.handshakes_inbound = server.get("listener.inbound.ssl.handshake", 0)
        # Connections without TLS matched no chain, and those without the client's certificate
        # failed.
        bad = (
            "fail_verify_san",
            "fail_verify_error",
            "fail_verify_no_cert",
            "fail_verify_cert_hash",
            "connection_error",
            "no_filter_chain_match",
            "no_certificate",
        )
        totals.refused = {
            f"{side} {stat}": value
            for side, stats in (("client", client), ("server", server))
            for stat, value in stats.items()
            if value and stat.split(".")[-1] in bad
        }
        return totals


def _stats(namespace):
    """The counters and gauges of an Envoy that have been used."""
    stats = {}
    for line in get(namespace, f"{ADMIN}/stats?usedonly").splitlines():
        name, _, value = line.partition(": ")
        if value.isdigit():
            stats[name] = int(value)
    return stats

"""Two network namespaces joined by a veth pair, for one configuration.

Their names are in the benchmark's own /run, which is removed with its mount namespace.
"""

from processes import in_namespace, run
from topology import CLIENT, MORE_ENDPOINTS, PREFIX, SERVER

# Tens of thousands of connections a minute between two addresses: many ports, and quick reuse.
SETTINGS = {
    "net.ipv4.ip_local_port_range": "10000 65000",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.core.somaxconn": "4096",
    "net.ipv4.tcp_max_syn_backlog": "4096",
    # Exists only with connection tracking, which the redirect rules need.
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait": "5",
}


class Network:
    """The namespaces `client` and `server` of a configuration."""

    def __init__(self, name):
        self.client = f"{name}-client"
        self.server = f"{name}-server"
        for namespace in (self.client, self.server):
            run(["ip", "netns", "add", namespace])
            self._in(namespace, ["ip", "link", "set", "lo", "up"])
            for setting, value in SETTINGS.items():
                # -e ignores settings that this kernel does not have.
                self._in(namespace, ["sysctl", "-q", "-e", "-w", f"{setting}={value}"])
        run(
            [
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                self.client,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                self.server,
            ]
        )
        for namespace, own, other in ((self.client, CLIENT, SERVER), (self.server, SERVER, CLIENT)):
            self._in(namespace, ["ip", "address", "add", f"{own}/{PREFIX}", "dev", "eth0"])
            self._in(namespace, ["ip", "link", "set", "eth0", "up"])
            # No interface has a ClusterIP: connections to it are redirected, but the kernel needs a
            # route first.
            self._in(namespace, ["ip", "route", "add", "default", "via", other])
        self._in(self.server, ["ip", "route", "add", "local", MORE_ENDPOINTS, "dev", "lo"])

    @staticmethod
    def _in(namespace, command):
        run(in_namespace(namespace, command))

    def redirect(self, init, ports_left_alone):
        """Sets the redirect rules of a sidecar with `naru-proxy init` on both sides."""
        for namespace in (self.client, self.server):
            command = [init, "init"]
            if namespace == self.server and ports_left_alone:
                command.append("--skip-inbound-ports=" + ",".join(map(str, ports_left_alone)))
            self._in(namespace, command)

    def remove(self):
        for namespace in (self.client, self.server):
            run(["ip", "netns", "delete", namespace])

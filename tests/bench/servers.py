"""The servers: nginx for HTTP/1.1 and for opaque bytes, nghttpd for HTTP/2, iperf3 for bulk."""

from processes import Process, succeeds
from topology import BULK, OPAQUE, RPC, WEB

BODY = "x" * 1024
# Only the rows close persistent connections.
NGINX = """
user root; daemon off; worker_processes 1; pid {scratch}/nginx.pid; error_log stderr;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on;
  keepalive_timeout 1h; keepalive_requests 1000000000;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
  server {{
    listen {web} backlog=4096; listen {opaque} backlog=4096;
    location / {{ default_type text/plain; return 200 "{body}"; }}
  }}
}}
"""


class Servers:
    """All servers of one configuration, in its server namespace."""

    def __init__(self, network):
        self.network = network
        self.processes = []

    def start(self, scratch):
        """Starts them, and returns when they listen."""
        network = self.network
        htdocs = scratch / "htdocs"
        htdocs.mkdir()
        (htdocs / "index.html").write_text(BODY[:128])
        configuration = scratch / "nginx.conf"
        configuration.write_text(
            NGINX.format(scratch=scratch, web=WEB.target, opaque=OPAQUE.target, body=BODY)
        )
        commands = {
            "nginx": ["nginx", "-e", "stderr", "-c", str(configuration)],
            "nghttpd": [
                "nghttpd",
                "--no-tls",
                "--address=0.0.0.0",
                "-d",
                str(htdocs),
                str(RPC.target),
            ],
            "iperf3": ["iperf3", "--server", "--port", str(BULK.target)],
        }
        for name, command in commands.items():
            self.processes.append(Process(name, network.server, command, scratch))
        for process, service in zip(self.processes, (WEB, RPC, BULK)):
            # iperf3 takes a connection without data for a client that disconnected.
            listens = ["bash", "-c", f": < /dev/tcp/127.0.0.1/{service.target}"]
            process.wait_until(lambda listens=listens: succeeds(network.server, listens))

    def check(self):
        for process in self.processes:
            process.check()

    def stop(self):
        for process in self.processes:
            process.stop()

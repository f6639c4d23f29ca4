"""A server that speaks first and a client that waits for it, as in SMTP.

banner.py server PORT      greets, then answers every line with itself
banner.py client HOST PORT measures the delay of the greeting, and exchanges lines
"""

import socket
import socketserver
import sys
import time


class Greeter(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 at your service\r\n")
        for line in self.rfile:
            self.wfile.write(b"250 " + line)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def client(host, port):
    slowest = 0.0
    for _ in range(20):
        start = time.monotonic()
        with socket.create_connection((host, port), timeout=10) as stream:
            reader = stream.makefile("rb")
            if reader.readline() != b"220 at your service\r\n":
                sys.exit("no greeting")
            slowest = max(slowest, time.monotonic() - start)
            stream.sendall(b"HELO there\r\n")
            if reader.readline() != b"250 HELO there\r\n":
                sys.exit("no answer")
            # Our direction is closed; the peer's is still open.
            stream.sendall(b"last words\r\n")
            stream.shutdown(socket.SHUT_WR)
            if reader.read() != b"250 last words\r\n":
                sys.exit("the other half was closed with ours")
    print(f"slowest greeting: {slowest * 1000:.1f} ms")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        Server(("::", int(sys.argv[2])), Greeter).serve_forever()
    else:
        client(sys.argv[2], int(sys.argv[3]))

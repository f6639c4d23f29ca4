"""Sends every client the address that it appears with: as a line of bytes, or over HTTP together
with the header fields about it.

whoami.py server        on 8080 HTTP/1.1, on 5432 bytes
whoami.py client HOST   prints, for each family and port of HOST and for each of two connections,
                        the address that the server saw: `client` for one of this pod
"""

import socket
import socketserver
import sys
import threading


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        seen = self.client_address[0].removeprefix("::ffff:")
        if seen == self.request.getsockname()[0].removeprefix("::ffff:"):
            seen = "own"
        while line := self.rfile.readline():
            if line == b"\r\n":  # the PROXY protocol, version 2
                self.rfile.read(12)
                length = int.from_bytes(self.rfile.read(2), "big")
                client = self.rfile.read(length)[: 4 if length == 12 else 16]
                family = socket.AF_INET if length == 12 else socket.AF_INET6
                seen = "told " + socket.inet_ntop(family, client)
                continue
            if not line.startswith(b"GET"):
                self.wfile.write(seen.encode() + b"\n")
                return
            told = []
            while field := self.rfile.readline().strip():
                if field.lower().startswith((b"x-forwarded", b"forwarded")):
                    told.append(field)
            body = b"\n".join([seen.encode(), *told])
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    address_family = socket.AF_INET6


def serve():
    for port in (8080, 5432):
        threading.Thread(target=Server(("::", port), Handler).serve_forever).start()


# A Service address of one family may resolve to a pod address of the other.
own = set()


def ask(host, family, port, request):
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(socket.getaddrinfo(host, port, family)[0][4])
        own.add(connection.getsockname()[0])
        connection.sendall(request)
        answer = connection.recv(65536).decode()
    seen = answer.split("\r\n\r\n")[-1].split("\n")[0]
    return " ".join("client" if word in own else word for word in seen.split())


if sys.argv[1] == "server":
    serve()
else:
    for name, family in (("IPv4", socket.AF_INET), ("IPv6", socket.AF_INET6)):
        try:
            socket.getaddrinfo(sys.argv[2], None, family)
        except socket.gaierror:
            continue  # a Service of one family
        for what, port, request in (
            ("http", 8080, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("tcp", 5432, b"who\n"),
        ):
            for _ in range(2):
                print(name, what, ask(sys.argv[2], family, port, request))

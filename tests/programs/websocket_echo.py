"""A WebSocket server and client on the public library.

websocket_echo.py server PORT   echoes until SIGTERM
websocket_echo.py client URL    sends texts, bytes and a large message, and closes properly
"""

import os
import socket
import sys

from websockets.sync.client import connect
from websockets.sync.server import serve

LARGE = 2 * 1024 * 1024


def echo(connection):
    for message in connection:
        connection.send(message)


def client(url):
    large = os.urandom(LARGE)
    with connect(url, max_size=None) as connection:
        for message in ["hello", b"\x00\x01", large, "x" * 70_000]:
            connection.send(message)
            if connection.recv(timeout=20) != message:
                sys.exit("another message came back")
        connection.ping().wait(10)
    if connection.close_code != 1000:
        sys.exit(f"closed with {connection.close_code}")
    print("the WebSocket works")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        both = socket.create_server(
            ("::", int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True
        )
        serve(echo, sock=both, max_size=None).serve_forever()
    else:
        client(sys.argv[2])

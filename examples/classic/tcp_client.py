"""The TCP client of socketserver's documentation: ``python examples/classic/tcp_client.py hello world with TCP``.

It talks to tcp_server.py and prints::

    Sent:     hello world with TCP
    Received: HELLO WORLD WITH TCP
"""

from __future__ import annotations

import os
import socket
import sys

HOST, PORT = "localhost", int(os.environ.get("PORT", "9999"))
data = " ".join(sys.argv[1:])

# SOCK_STREAM: a TCP socket
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
    sock.connect((HOST, PORT))
    sock.sendall(bytes(data + "\n", "utf-8"))
    received = str(sock.recv(1024), "utf-8")

print(f"Sent:     {data}")
print(f"Received: {received}")

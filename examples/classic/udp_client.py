"""The UDP client of socketserver's documentation: ``python examples/classic/udp_client.py hello world with UDP``.

It talks to udp_server.py and prints::

    Sent:     hello world with UDP
    Received: HELLO WORLD WITH UDP

If nothing listens there it waits for ever, as the original does: a datagram is not a connection.
"""

from __future__ import annotations

import os
import socket
import sys

HOST, PORT = "localhost", int(os.environ.get("PORT", "9999"))
data = " ".join(sys.argv[1:])

# SOCK_DGRAM: a UDP socket, which needs no connect()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.sendto(bytes(data + "\n", "utf-8"), (HOST, PORT))
    received = str(sock.recv(1024), "utf-8")

print(f"Sent:     {data}")
print(f"Received: {received}")

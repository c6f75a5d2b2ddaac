"""A file server with TLS: the handlers of http.server, on a threading server of compat.

Make a certificate for this machine and serve a folder, here the examples, with it::

    openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 30 \\
        -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1
    python examples/classic/files_tls.py examples --cert cert.pem --key key.pem

and fetch something in a second terminal::

    curl --cacert cert.pem https://localhost:8443/upper.py

The listening socket is wrapped as all such programs do it: `server.socket = context.wrap_socket(…)`. With socketserver
one client that connects and says nothing stops everybody, because accept() makes the handshake; here it is made in the
thread of that client, with a deadline, and nobody else hears of it.
"""

from __future__ import annotations

import argparse
import ssl
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

from compat import socketserver


class Files(SimpleHTTPRequestHandler):
    """The library's, for connections that may stay, but not for ever."""

    protocol_version = "HTTP/1.1"
    timeout = 30.0  # seconds that a client may keep its thread waiting


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True  # Ctrl-C does not wait for downloads
    request_queue_size = 128  # clients that may wait for accept(); with the default, 5, more of them lose a second


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the files of a folder with HTTPS.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cert", type=Path, required=True, help="the certificate, in PEM")
    parser.add_argument("--key", type=Path, required=True, help="its private key, in PEM")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443)
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{str(options.folder)!r} is no folder")
    if options.key.resolve().is_relative_to(options.folder.resolve()):
        parser.error(f"{str(options.key)!r} is in the folder, so everybody could fetch it; keep it elsewhere")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.cert, options.key)

    with Server((options.host, options.port), partial(Files, directory=str(options.folder))) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        print("listening on https://{}:{}".format(*server.server_address), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("bye")


if __name__ == "__main__":
    main()

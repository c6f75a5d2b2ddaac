"""`python -m compat`: an unchanged program with our socketserver in the place of the standard library's."""

from __future__ import annotations

import http.client
import re
import signal
import urllib.request
import xmlrpc.client
from pathlib import Path

import pytest

from ..peers import TIMEOUT
from ..programs import Program, write

#: Prints what a program can see of how it was started.
LOOK = """
    import os, sys, socketserver
    print(socketserver.TCPServer.__module__, __name__, sys.argv, sys.path[0], os.environ.get("PYTHONPATH"))
"""
#: The folder that `Program` puts on PYTHONPATH.
CHECKOUT = str(Path(__file__).parents[2])


def test_a_script_sees_what_it_always_saw(tmp_path: Path) -> None:
    """Name, arguments, search path and environment are those of plain Python; only socketserver is ours."""
    file = write(tmp_path / "look.py", LOOK)
    with Program(tmp_path, "-m", "compat", file, "--some", "argument") as program:
        line = program.line()
        assert program.end() == (0, "", "")
    assert line.startswith(f"compat.socketserver __main__ {[str(file), '--some', 'argument']} {tmp_path} ")
    assert not line.endswith("_children")


def test_a_module_is_run_like_a_script(tmp_path: Path) -> None:
    """`-m package` runs the package's __main__, with its own arguments."""
    (tmp_path / "pack").mkdir()
    file = write(tmp_path / "pack" / "__main__.py", LOOK)
    with Program(tmp_path, "-m", "compat", "-m", "pack", "-x") as program:
        line = program.line()
        assert program.end() == (0, "", "")
    assert line.startswith(f"compat.socketserver __main__ {[str(file), '-x']} {tmp_path} ")


def test_a_failure_looks_like_plain_pythons(tmp_path: Path) -> None:
    """An exception gives status 1 and a traceback without a frame of ours; SystemExit gives its own status."""
    file = write(tmp_path / "fails.py", "import sys\nif sys.argv[1:]: sys.exit(7)\nraise ValueError('mine')\n")
    with Program(tmp_path, "-m", "compat", file) as program:
        ended = program.end()
    assert ended.status == 1
    assert re.findall(r'File "(.*?)"', ended.errors) == [str(file)]
    assert ended.errors.endswith("ValueError: mine\n")
    with Program(tmp_path, "-m", "compat", file, "7") as program:
        assert program.end() == (7, "", "")


def test_a_signal_ends_it_as_ever(tmp_path: Path) -> None:
    """Ctrl-C comes out of serve_forever() and gives the status that it gives without us."""
    file = write(
        tmp_path / "serves.py",
        """
        import socketserver
        with socketserver.TCPServer(("127.0.0.1", 0), None) as server:
            print("up", flush=True)
            server.serve_forever(None)
        """,
    )
    with Program(tmp_path, "-m", "compat", file) as program:
        assert program.line() == "up"
        program.signal(signal.SIGINT)
        assert program.end().status == -signal.SIGINT


@pytest.mark.parametrize(
    "arguments, status, text",
    [
        (["absent.py"], 2, "can't open file"),
        (["-m", "absent_module"], 1, "No module named absent_module"),
        ([], 2, "no program given"),
        (["-m"], 2, "-m without the name of a module"),
        (["--wrong", "x.py"], 2, "unknown option '--wrong'"),
        (["--executor", "x", "x.py"], 2, "unknown executor 'x'; there are inline, threads, thread-pool, processes"),
        (["--executor"], 2, "--executor without a value"),
        (["--max-workers", "2", "x.py"], 2, "--max-workers is for --executor thread-pool and processes"),
        (["--executor", "threads", "--max-workers=2", "x.py"], 2, "--max-workers is for"),
        (["--executor=processes", "--max-workers=0", "x.py"], 2, "--max-workers is '0'; it takes a number, 1 or more"),
        (["-x"], 2, "unknown option '-x'"),
    ],
)
def test_mistakes_are_said_clearly(tmp_path: Path, arguments: list[str], status: int, text: str) -> None:
    """What is missing or wrong is named, with the status that Python gives it."""
    with Program(tmp_path, "-m", "compat", *arguments) as program:
        ended = program.end()
    assert ended.status == status
    assert text in ended.errors
    assert "Traceback" not in ended.errors


def test_help(tmp_path: Path) -> None:
    """--help says how it is used."""
    with Program(tmp_path, "-m", "compat", "--help") as program:
        assert program.line().startswith("usage: python -m compat")


@pytest.mark.parametrize("option, module", [([], "socketserver"), (["--children"], "compat.socketserver")])
def test_children_when_asked(tmp_path: Path, option: list[str], module: str) -> None:
    """Processes that the program starts have the standard library's module, or ours with --children."""
    file = write(
        tmp_path / "parent.py",
        """
        import multiprocessing, subprocess, sys

        def look():
            import socketserver
            print(socketserver.TCPServer.__module__, flush=True)

        if __name__ == "__main__":
            look()
            code = "import socketserver as s; print(s.TCPServer.__module__)"
            subprocess.run([sys.executable, "-c", code], check=True)
            child = multiprocessing.get_context("spawn").Process(target=look)
            child.start()
            child.join()
        """,
    )
    with Program(tmp_path, "-m", "compat", *option, file) as program:
        ended = program.end()
    assert (ended.status, ended.errors) == (0, "")
    assert ended.output.split() == ["compat.socketserver", module, module]


def test_a_sitecustomize_of_the_users_own_runs(tmp_path: Path) -> None:
    """A sitecustomize that was there before still runs, once, and finds ours in place."""
    write(tmp_path / "sitecustomize.py", "import socketserver\nprint('custom', socketserver.TCPServer.__module__)\n")
    file = write(tmp_path / "program.py", "import sitecustomize\nprint(sitecustomize.__file__)\n")
    path = f"{tmp_path}:{CHECKOUT}"
    with Program(tmp_path, "-m", "compat", file, environment={"PYTHONPATH": path}) as program:
        ended = program.end()
    assert (ended.status, ended.errors) == (0, "")
    assert ended.output.split()[-3:] == ["custom", "compat.socketserver", str(tmp_path / "sitecustomize.py")]


#: Prints where each of three requests was served, and whether a request found the thread-local state of another.
WHERE = """
    import os, socket, socketserver, sys, threading

    local = threading.local()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            here = "same" if threading.current_thread().name == self.server.serving else "other"
            process = "same" if os.getpid() == self.server.pid else "other"
            self.wfile.write(f"{process} {here} {hasattr(local, 'seen')}".encode())
            local.seen = True

    if __name__ == "__main__":
        with getattr(socketserver, sys.argv[1])(("127.0.0.1", 0), Handler) as server:
            server.pid, server.serving = os.getpid(), "serving"
            thread = threading.Thread(target=server.serve_forever, name="serving")
            thread.start()
            for _ in range(3):
                with socket.create_connection(server.server_address) as client:
                    client.sendall(b"where?\\n")
                    print(client.makefile().read(), flush=True)
            server.shutdown()
            thread.join()
"""


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
@pytest.mark.parametrize(
    "executor, first, later",
    [
        (["--executor=inline"], "same same False", "same same True"),
        (["--executor", "threads"], "same other False", "same other False"),
        (["--executor", "thread-pool", "--max-workers=1"], "same other False", "same other True"),
        (["--executor=processes", "--max-workers", "1"], "other other False", "other other True"),
    ],
)
def test_executor_by_name(tmp_path: Path, kind: str, executor: list[str], first: str, later: str) -> None:
    """Any server of an unchanged program serves in the executor that was asked for, and closes it."""
    file = write(tmp_path / "where.py", WHERE)
    with Program(tmp_path, "-m", "compat", *executor, file, kind) as program:
        ended = program.end()
    assert (ended.status, ended.errors) == (0, "")
    assert ended.output.splitlines() == [first, later, later]


def test_a_handler_that_processes_cannot_import(tmp_path: Path) -> None:
    """--executor processes refuses at once a handler that no worker finds, and says what to do."""
    file = write(tmp_path / "lambda.py", "import socketserver\nsocketserver.TCPServer(('', 0), lambda *_: None)\n")
    with Program(tmp_path, "-m", "compat", "--executor", "processes", file) as program:
        ended = program.end()
    assert ended.status == 1
    assert "a worker process cannot import it; use a class or function that stands at the top" in ended.errors


# --- what stands on socketserver -------------------------------------------------------------------------------------


def test_http_server_serves_files(tmp_path: Path) -> None:
    """`python -m compat -m http.server` serves the files of its folder."""
    (tmp_path / "hello.txt").write_text("hello\n")
    with Program(tmp_path, "-u", "-m", "compat", "-m", "http.server", "0", "--bind", "127.0.0.1") as program:
        found = re.search(r"port (\d+)", program.line())
        assert found is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=TIMEOUT)
        connection.request("GET", "/hello.txt")
        with connection.getresponse() as response:
            assert (response.status, response.read()) == (200, b"hello\n")
        connection.close()
        program.signal(signal.SIGINT)
        assert program.end().status == 0


def test_xmlrpc_server_answers(tmp_path: Path) -> None:
    """xmlrpc.server stands on ours, and xmlrpc.client understands it."""
    file = write(
        tmp_path / "rpc.py",
        """
        from xmlrpc.server import SimpleXMLRPCServer
        with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
            server.register_function(pow)
            print(type(server).__mro__[1].__module__, server.server_address[1], flush=True)
            server.handle_request()
        """,
    )
    with Program(tmp_path, "-m", "compat", file) as program:
        module, port = program.line().split()
        assert module == "compat.socketserver"
        with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}") as proxy:
            assert proxy.pow(2, 10) == 1024
        assert program.end() == (0, "", "")


def test_wsgiref_answers(tmp_path: Path) -> None:
    """wsgiref's server stands on ours."""
    file = write(
        tmp_path / "wsgi.py",
        """
        from wsgiref.simple_server import WSGIRequestHandler, demo_app, make_server

        class Quiet(WSGIRequestHandler):
            def log_message(self, *args):
                pass

        with make_server("127.0.0.1", 0, demo_app, handler_class=Quiet) as server:
            print(server.server_port, flush=True)
            server.handle_request()
        """,
    )
    with Program(tmp_path, "-m", "compat", file) as program:
        with urllib.request.urlopen(f"http://127.0.0.1:{program.line()}/", timeout=TIMEOUT) as answer:
            assert answer.read().startswith(b"Hello world!")
        assert program.end() == (0, "", "")

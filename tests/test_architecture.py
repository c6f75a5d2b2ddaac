"""The rooms of the house keep their order: who may import whom, and what may be where.

The code is read as text and as syntax trees, never imported. Every rule is a function from sources to complaints, so
that it can be shown to fail: the second half of this file feeds each of them a house that breaks it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

#: The rooms of `aserver`, lowest first. A room imports only rooms of the rows above it in this list.
TIERS = [
    {"_errors"},
    {"_tasks"},
    {"_readiness"},
    {"_tls", "_limits", "_timeouts", "_proxy", "_buffer", "_addresses", "_endpoints", "_multicast"},
    {"_outbox", "_door", "_ancillary"},
    {"_stream", "_datagram", "_listener"},
    {"_session"},
    {"_registry", "_handlers"},
    {"_lifecycle"},
    {"_server"},
    {"_process", "_target"},
    {"_run"},
    {"_cli"},
]
#: Imports between two rooms of one row, each with its reason.
NEIGHBOURS: dict[tuple[str, str], str] = {
    ("_endpoints", "_addresses"): "one subject in two files: what an address means, and how it is bound",
}

LOOPS = {"asyncio", "uvloop", "trio"}
LOOP_ROOMS = {"_readiness", "_tasks"}
#: The only room that may ask whether a loop is installed, without importing it.
ASKING_ROOM = "_run"

#: Rooms without input and output, and what they therefore have no use for.
PURE_ROOMS = {"_buffer", "_proxy"}
IO_MODULES = LOOPS | {"socket", "ssl", "select", "selectors", "threading", "subprocess"}

MAX_LINES = 400
#: Files that may be longer, each with the reason why it is one room and not two.
LONGER: dict[str, str] = {
    "aserver/_stream.py": "the one class that handlers see: half of it is the text of its promises",
    "compat/socketserver.py": "one module is what is to be replaced, and half of it restates members: contract A13",
    "aserver/_server.py": "the servers' arguments and promises; the lives of a connection and a datagram in one place",
}

Sources = Mapping[str, str]


# --- reading ---------------------------------------------------------------------------------------------------------


def sources(package: str) -> dict[str, str]:
    """Every module of a package by its name inside the package, as the tests would import it: tree or wheel."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return {
        ".".join(file.relative_to(folder).with_suffix("").parts): file.read_text(encoding="utf-8")
        for folder in spec.submodule_search_locations
        for file in sorted(Path(folder).rglob("*.py"))
    }


class Import(NamedTuple):
    """One imported thing: `from module import name`, or `import module` with an empty name."""

    module: str
    name: str
    line: int

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]


def imports(package: str, source: str) -> Iterator[Import]:
    """All imports of a module of a flat package, wherever they stand, relative ones made absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"{package}.{module}".rstrip(".")
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)


def rooms_imported(package: str, modules: Sources, source: str) -> Iterator[tuple[str, int]]:
    """The modules of its own package that a module imports; "__init__" stands for the package itself."""
    for found in imports(package, source):
        if found.top != package:
            continue
        inner = found.module.partition(".")[2].partition(".")[0]
        if not inner and found.name in modules:  # from . import _room
            inner = found.name
        yield inner or "__init__", found.line


def public_names(source: str) -> set[str]:
    """The strings of `__all__`."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = getattr(node, "value", None)
            if isinstance(value, ast.List | ast.Tuple):
                return {item.value for item in value.elts if isinstance(item, ast.Constant)}  # type: ignore[misc]  # names are strings
    return set()


# --- the rules -------------------------------------------------------------------------------------------------------


def wrong_way(modules: Sources) -> list[str]:
    """Imports of `aserver` that do not go down."""
    tier = {room: number for number, row in enumerate(TIERS) for room in row}
    complaints = []
    for room, source in modules.items():
        if room not in tier and room not in ("__init__", "__main__"):
            complaints.append(f"{room} has no place in the list of rooms")
            continue
        for other, line in rooms_imported("aserver", modules, source):
            if other not in tier:
                complaints.append(f"{room}:{line} imports {other}, which is not a room below it")
            elif room == "__main__" and other != "_cli":
                complaints.append(f"{room}:{line} imports {other}; it is there to call _cli")
            elif room == "__init__" and other == "_cli":
                complaints.append(f"{room}:{line} imports _cli, which is for the command line only")
            elif room in tier and tier[other] >= tier[room] and (room, other) not in NEIGHBOURS:
                complaints.append(f"{room}:{line} imports {other}, which is not below it")
    return complaints


def cycles(package: str, modules: Sources) -> list[str]:
    """Circles of imports in a package, each once."""
    graph = {name: {o for o, _ in rooms_imported(package, modules, text)} for name, text in modules.items()}
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def loops_outside_the_seam(modules: Sources, seam: set[str], asking: str | None) -> list[str]:
    """Event loops imported, also by name in a string, anywhere but in the seam."""
    complaints = []
    for room, source in modules.items():
        if room in seam:
            continue
        complaints += [
            f"{room}:{found.line} imports {found.module}" for found in imports("", source) if found.top in LOOPS
        ]
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func).rpartition(".")[2]
            named = {
                a.value.partition(".")[0] for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            }
            if named & LOOPS and (
                called in ("import_module", "__import__") or (called == "find_spec" and room != asking)
            ):
                complaints.append(f"{room}:{node.lineno} names {sorted(named & LOOPS)} in {called}()")
    return complaints


def impure(modules: Sources) -> list[str]:
    """Input and output in the rooms that have none. Of anyio they may use the exceptions."""
    complaints = []
    for room in sorted(PURE_ROOMS & modules.keys()):
        used = []
        for found in imports("aserver", modules[room]):
            if found.top in IO_MODULES:
                complaints.append(f"{room}:{found.line} imports {found.module}")
            elif found.top == "anyio" and found.name:
                used.append((found.name, found.line))
        for node in ast.walk(ast.parse(modules[room])):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "anyio":
                used.append((node.attr, node.lineno))
            elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
                complaints.append(f"{room}:{node.lineno} waits")
        for name, line in used:
            thing = getattr(anyio, name, None)
            if not (isinstance(thing, type) and issubclass(thing, BaseException)):
                complaints.append(f"{room}:{line} uses anyio.{name}, which is no exception")
    return complaints


def private_names_used(modules: Sources, public: set[str]) -> list[str]:
    """What `compat` uses of `aserver` that is not a public name."""
    complaints = []
    for name, source in modules.items():
        bound = set()  # what the package is called here
        for found in imports("compat", source):
            if found.top != "aserver":
                continue
            if found.module != "aserver":
                complaints.append(f"{name}:{found.line} imports the module {found.module}")
            elif found.name and found.name not in public:
                complaints.append(f"{name}:{found.line} imports {found.name}, which is not public")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                bound |= {alias.asname or alias.name for alias in node.names if alias.name == "aserver"}
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound):
                continue
            if node.attr not in public:
                complaints.append(f"{name}:{node.lineno} uses {node.value.id}.{node.attr}, which is not public")
    return complaints


def too_long(package: str, modules: Sources, longer: Mapping[str, str]) -> list[str]:
    """Files that have outgrown a room, and entries of the list that nobody needs any more."""
    lines = {f"{package}/{name}.py": len(source.splitlines()) for name, source in modules.items()}
    complaints = [
        f"{file} has {count} lines: a design question, not a limit to dodge"
        for file, count in lines.items()
        if count > MAX_LINES and not longer.get(file)
    ]
    return complaints + [
        f"{file} has {lines.get(file, 0)} lines and needs no entry in the list"
        for file in longer
        if file.startswith(f"{package}/") and lines.get(file, 0) <= MAX_LINES
    ]


def without_docstring(modules: Sources) -> list[str]:
    """Modules that do not say what they are."""
    return [f"{name} has no docstring" for name, source in modules.items() if not ast.get_docstring(ast.parse(source))]


def careless_tests(modules: Sources) -> list[str]:
    """Test modules with a test that makes no promise, with mocks, or with both runners' marks."""
    complaints = []
    for name, source in modules.items():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")):
                continue
            if not ast.get_docstring(node) and not _is_nested(tree, node):
                complaints.append(f"{name}:{node.lineno} {node.name} has no docstring: the promise it holds")
        complaints += [
            f"{name}:{found.line} uses mocks"
            for found in imports("", source)
            if found.top == "mock"
            or (found.top == "unittest" and "mock" in (found.name, found.module.rpartition(".")[2]))
        ]
        marks = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if {"pytest.mark.anyio", "pytest.mark.asyncio"} <= marks:
            complaints.append(f"{name} carries the marks of both runners")
    return complaints


def _is_nested(tree: ast.Module, node: ast.AST) -> bool:
    """Whether a function stands inside another one."""
    return any(
        node is inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef) and outer is not node
        for inner in ast.walk(outer)
    )


# --- the house -------------------------------------------------------------------------------------------------------

AROUND_TESTS = Path(__file__).parent


def test_imports_go_down() -> None:
    """A room imports only rooms that lie below it."""
    assert wrong_way(sources("aserver")) == []


@pytest.mark.parametrize("package", ["aserver", "compat"])
def test_no_cycles(package: str) -> None:
    """No module imports itself by a detour."""
    assert cycles(package, sources(package)) == []


def test_one_file_knows_the_loops() -> None:
    """asyncio, uvloop and trio are imported by `_readiness.py` and by no other module, those of compat included."""
    assert loops_outside_the_seam(sources("aserver"), LOOP_ROOMS, ASKING_ROOM) == []
    assert loops_outside_the_seam(sources("compat"), set(), None) == []


def test_parsers_do_no_io() -> None:
    """The receive buffer and the PROXY parser import neither a socket nor a loop, and never wait."""
    assert impure(sources("aserver")) == []


def test_compat_stands_on_public_names() -> None:
    """compat uses of aserver what every user may use."""
    assert private_names_used(sources("compat"), public_names(sources("aserver").get("__init__", ""))) == []


@pytest.mark.parametrize("package", ["aserver", "compat"])
def test_rooms_are_small(package: str) -> None:
    """No file is longer than 400 lines unless the list says why; the list holds nothing else."""
    assert too_long(package, sources(package), LONGER) == []


@pytest.mark.parametrize("package", ["aserver", "compat"])
def test_every_module_says_what_it_is(package: str) -> None:
    """Every module opens with a docstring."""
    assert without_docstring(sources(package)) == []


@pytest.mark.parametrize("package", ["aserver", "compat"])
def test_types_are_for_users_too(package: str) -> None:
    """Both packages carry the marker by which type checkers read their annotations."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert any((Path(folder) / "py.typed").is_file() for folder in spec.submodule_search_locations or ())


def test_tests_make_promises() -> None:
    """Every test says in a sentence what it holds, without mocks, and each module has one runner."""
    files = {str(file.relative_to(AROUND_TESTS)): file for file in AROUND_TESTS.rglob("*.py")}
    assert careless_tests({name: file.read_text(encoding="utf-8") for name, file in sorted(files.items())}) == []


def test_test_folders_are_packages() -> None:
    """Every folder with tests is a package, so that two of them may hold files of one name."""
    folders = {file.parent for file in AROUND_TESTS.rglob("test_*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


# --- the rules can fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "room, source",
    [
        ("_errors", "from ._readiness import Loop"),
        ("_errors", "from . import _server"),
        ("_errors", "import aserver._server"),
        ("_errors", "from aserver._server import TCPServer"),
        ("_errors", "from aserver import TCPServer"),
        ("_errors", "def late():\n    from ._server import TCPServer"),
        ("_stream", "from ._listener import Listener"),
        ("_stream", "from ._cellar import Wine"),
        ("__main__", "from ._run import run"),
        ("__init__", "from ._cli import main"),
        ("_cellar", "import os"),
    ],
)
def test_wrong_way_is_seen(room: str, source: str) -> None:
    """An import that goes up, sideways or to a room that is not on the list is a complaint, in every spelling."""
    house = {"__init__": "", "_server": "", "_readiness": "", "_listener": "", "_run": "", "_cli": "", room: source}
    assert len(wrong_way(house)) == 1


def test_right_way_is_quiet() -> None:
    """Imports downwards and from outside are no complaint."""
    house = {
        "__init__": "from ._server import TCPServer\nfrom ._run import run",
        "__main__": "from ._cli import main",
        "_server": "import os, anyio\nfrom . import _errors\nfrom ._stream import Stream",
        "_stream": "from ._errors import E",
        "_errors": "",
    }
    assert wrong_way(house) == []
    assert cycles("aserver", house) == []


def test_cycles_are_seen() -> None:
    """A circle of imports is reported with its path."""
    house = {
        "a": "from .b import x",
        "b": "import os\nfrom . import c",
        "c": "import compat.a",
        "d": "from .a import y",
    }
    assert cycles("compat", house) == ["a -> b -> c -> a"]


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import asyncio.sslproto as x",
        "from asyncio import Event",
        "def f():\n    import trio",
        "import importlib\nimportlib.import_module('uvloop')",
        "__import__('asyncio.events')",
        "from importlib.util import find_spec\nfind_spec('uvloop')",
    ],
)
def test_loops_are_seen(source: str) -> None:
    """A loop that is imported outside of the seam is a complaint, also when its name is in a string."""
    assert len(loops_outside_the_seam({"_stream": source}, LOOP_ROOMS, ASKING_ROOM)) == 1
    assert loops_outside_the_seam({"_readiness": source}, LOOP_ROOMS, ASKING_ROOM) == []


def test_asking_is_not_importing() -> None:
    """`_run` may look whether uvloop is installed and name a backend, and may not import it."""
    asking = "import importlib.util\nimportlib.util.find_spec('uvloop')\nanyio.run(main, backend='asyncio')"
    assert loops_outside_the_seam({"_run": asking}, LOOP_ROOMS, ASKING_ROOM) == []
    assert loops_outside_the_seam({"_run": asking + "\nimport uvloop"}, LOOP_ROOMS, ASKING_ROOM) != []


@pytest.mark.parametrize(
    "source",
    [
        "import socket",
        "from socket import AF_INET",
        "import ssl",
        "import asyncio",
        "import anyio\nanyio.sleep",
        "from anyio import Event",
        "async def f(): pass",
    ],
)
def test_io_in_parsers_is_seen(source: str) -> None:
    """A socket, a loop or a wait in a parser is a complaint; an exception of anyio is none."""
    assert len(impure({"_proxy": source})) == 1
    assert impure({"_stream": source}) == []
    assert impure({"_buffer": "import anyio, struct\nraise anyio.IncompleteRead()"}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import aserver._server",
        "from aserver._server import TCPServer",
        "from aserver import _server",
        "from aserver import Hidden",
        "import aserver\naserver.Hidden()",
        "import aserver as a\na._server",
    ],
)
def test_private_names_in_compat_are_seen(source: str) -> None:
    """compat reaching for a private module or name is a complaint."""
    assert len(private_names_used({"hosting": source}, {"TCPServer"})) == 1
    fine = "import aserver\nfrom aserver import TCPServer\naserver.TCPServer()"
    assert private_names_used({"hosting": fine}, {"TCPServer"}) == []


def test_public_names_are_read() -> None:
    """`__all__` is understood as list, as tuple and with an annotation."""
    assert public_names("__all__ = ['a', 'b']") == {"a", "b"}
    assert public_names("__all__: tuple[str, ...] = ('a',)") == {"a"}
    assert public_names("a = 1") == set()


def test_long_files_are_seen() -> None:
    """400 lines are fine, 401 are not, unless listed with a reason; an entry nobody needs is a complaint."""
    assert too_long("aserver", {"_a": "\n" * 400}, {}) == []
    assert len(too_long("aserver", {"_a": "\n" * 401}, {})) == 1
    assert len(too_long("aserver", {"_a": "\n" * 401}, {"aserver/_a.py": ""})) == 1
    assert too_long("aserver", {"_a": "\n" * 401}, {"aserver/_a.py": "because"}) == []
    assert len(too_long("aserver", {"_a": "\n" * 400}, {"aserver/_a.py": "because"})) == 1
    assert too_long("compat", {"_a": ""}, {"aserver/_a.py": "because"}) == []


def test_missing_docstrings_are_seen() -> None:
    """A module without a docstring is a complaint."""
    assert without_docstring({"_a": '"""Words."""', "_b": "x = 1"}) == ["_b has no docstring"]


@pytest.mark.parametrize(
    "source",
    [
        "def test_a(): pass",
        "class TestA:\n    async def test_a(self): pass",
        "from unittest import mock",
        "from unittest.mock import Mock",
        "import unittest.mock",
        "pytestmark = pytest.mark.anyio\nx = pytest.mark.asyncio",
    ],
)
def test_careless_tests_are_seen(source: str) -> None:
    """A test without a promise, a mock, and a module with two runners are complaints."""
    assert len(careless_tests({"test_a": source})) == 1
    assert careless_tests({"test_a": 'def test_a():\n    """Promise."""\n    def test_inner(): pass'}) == []

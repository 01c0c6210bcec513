"""The house stands: imports go down, each outside thing has one home, what is public is documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.tables import together

ROOT = Path(__file__).parent.parent / "kie_async"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "states", "checks", "jsontext"),
    (
        "codes",
        "media",
        "models",
        "inputs",
        "signing",
        "poll_schedule",
        "durations",
        "look_curve",
        "lost_callbacks",
        "timetable",
    ),
    ("records", "wire"),
    ("limiter", "transport", "journal", "handle", "mounts", "sandbox"),
    (
        "attempts",
        "creates",
        "reader",
        "look_queue",
        "agenda",
        "setbacks",
        "poller",
        "callbacks",
        "uploads",
        "part_file",
        "downloads",
        "files",
        "sqlite_file",
        "sqlite_thread",
        "sqlite_journal",
    ),
    ("inflight", "adoption", "intents", "spending", "intake", "batch", "engine", "session"),
    ("__init__", "cli", "pytest_plugin", "__main__"),
)
"""Lowest first. A module imports from lower floors, and on its own from those named before it."""

CLIENT_HOMES = {"transport", "attempts", "uploads", "downloads", "sandbox"}
SERVER_HOMES = {"callbacks", "mounts", "sandbox"}
LIBRARY_HOMES = {
    "cattrs": {"durations"},
    "backoff": {"transport"},
    "sqlite3": {"sqlite_file", "sqlite_thread", "sqlite_journal"},
}

SERVICE_ANY = (r"Mapping\[str, Any\]", r"Attribute\[Any\]", r"Generator\[Any, ")
"""Where ``Any`` may stand: a model's own fields, attrs' validator protocol, the await protocol."""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    """Return the module's name on the floors: a package is one module."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def run_time_imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Return all imports of a file that are made when it runs, those inside functions too."""
    typed_only = {
        inner
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for inner in ast.walk(node)
    }
    return [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in typed_only
    ]


def modules_imported(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, packages as one."""
    package = ["kie_async", *path.relative_to(ROOT).parts[:-1]]
    for node in run_time_imports(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = package[: len(package) + 1 - node.level] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{home}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "kie_async":
                inner = parts[1] if len(parts) > 1 else "__init__"
                is_module = (ROOT / f"{inner}.py").exists() or (ROOT / inner).is_dir()
                yield inner if is_module else "__init__"


def libraries_imported(path: Path) -> set[str]:
    """Return dotted names of what a file imports from outside: ``aiohttp``, ``aiohttp.web``."""
    found: set[str] = set()
    for node in run_time_imports(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif not node.level and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if module in floor)


def height_of(module: str) -> int:
    return [name for floor in FLOORS for name in floor].index(module)


def of_package(path: Path) -> str:
    return path.relative_to(ROOT.parent).as_posix()


@together("path", files())
def test_every_module_has_a_floor(path: Path) -> None:
    assert any(module_of(path) in floor for floor in FLOORS), f"put {module_of(path)} on a floor"


@together("path", files())
def test_imports_only_go_down(path: Path) -> None:
    importer = module_of(path)
    for imported in modules_imported(path):
        if imported != importer or importer not in {"sandbox", "cli"}:
            assert height_of(imported) < height_of(importer), f"{importer} must not import {imported}"


@together("path", sorted((ROOT / "sandbox").glob("*.py")))
def test_the_sandbox_imports_nothing_of_the_client(path: Path) -> None:
    assert set(modules_imported(path)) <= {"sandbox"}


@together("path", files())
def test_the_http_client_and_the_http_server_have_their_homes(path: Path) -> None:
    names = {name for name in libraries_imported(path) if name.split(".")[0] == "aiohttp"}
    is_server = {name for name in names if name.startswith("aiohttp.web")}
    if names - is_server:
        assert module_of(path) in CLIENT_HOMES, f"{sorted(names - is_server)}"
    if is_server:
        assert module_of(path) in SERVER_HOMES, f"{sorted(is_server)}"


@pytest.mark.parametrize("library", LIBRARY_HOMES)
def test_a_library_has_one_home(library: str) -> None:
    homes = {
        module_of(path)
        for path in files()
        if any(name.split(".")[0] == library for name in libraries_imported(path))
    }
    strangers = {home for home in homes if not home.startswith(tuple(LIBRARY_HOMES[library]))}
    assert not strangers


def public_definitions(
    path: Path,
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the public functions, classes and methods of a file, with dotted names."""

    def walk(
        body: list[ast.stmt], prefix: str
    ) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if node.name.startswith("_") and not node.name.startswith("__"):
                    continue
                if any(ast.unparse(mark).endswith((".setter", "overload")) for mark in node.decorator_list):
                    continue  # described where it is first defined
                yield f"{prefix}{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(tree_of(path).body, "")


def is_private(path: Path) -> bool:
    return path.stem.startswith("_") and not path.stem.startswith("__")


@together("path", files())
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@together("path", files())
def test_everything_public_has_a_docstring(path: Path) -> None:
    bare = [
        name
        for name, node in public_definitions(path)
        if not node.name.startswith("__") and not ast.get_docstring(node)
    ]
    assert not bare


def annotations_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and not ast.unparse(line.target).startswith("_"):
                yield ast.unparse(line.annotation)
        return
    arguments = node.args
    everything = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    everything += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    yield from (ast.unparse(argument.annotation) for argument in everything if argument.annotation)
    if node.returns:
        yield ast.unparse(node.returns)


def exported() -> list[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Return what users import: the names of the package's front door, with their methods."""
    door = run_time_imports(ROOT / "__init__.py")
    names = {alias.name for node in door for alias in node.names}
    return [
        (name, node)
        for path in files()
        for name, node in public_definitions(path)
        if name.split(".")[0] in names
    ]


def test_nothing_exported_is_annotated_any_but_the_fields_of_a_model() -> None:
    vague = [
        f"{name}: {annotation}"
        for name, node in exported()
        for annotation in annotations_of(node)
        if re.search(r"\bAny\b", re.sub("|".join(SERVICE_ANY), "", annotation))
    ]
    assert not vague


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").exists()


def test_nothing_below_the_transport_awaits() -> None:
    pure = {module for floor in FLOORS[: floor_of("transport")] for module in floor}
    awaiting = {
        module_of(path)
        for path in files()
        if module_of(path) in pure
        and any(
            isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith)
            for node in ast.walk(tree_of(path))
        )
    }
    assert not awaiting


def test_nothing_below_the_transport_asks_the_clock() -> None:
    clocks = re.compile(r"\b(time\.(time|monotonic|perf_counter)|datetime\.(now|utcnow)|random\.\w+)\(")
    pure = {module for floor in FLOORS[: floor_of("transport")] for module in floor}
    assert not [
        of_package(p) for p in files() if module_of(p) in pure and clocks.search(p.read_text("utf-8"))
    ]


@together("path", files())
def test_nothing_is_executed_or_unpickled(path: Path) -> None:
    names = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
    libraries = {name.split(".")[0] for name in libraries_imported(path)}
    assert {"eval", "exec", "pickle", "marshal"}.isdisjoint(names | libraries)

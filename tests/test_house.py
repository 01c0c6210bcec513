"""The house stands: wings import as agreed, parts are wired in one place, the field's words are used."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.tables import together

TESTS = Path(__file__).parent

ROOT = TESTS.parent / "kie_async"

# --- what was agreed ------------------------------------------------------------------------------

VOCABULARY = frozenset(
    {"errors", "models", "events", "config", "_json", "_secrets", "_validation", "_background", "_field_help"}
)
"""What every wing may import, and what imports no wing."""

WINGS: dict[str, frozenset[str]] = {
    "inputs": frozenset(),
    "wire": frozenset({"inputs"}),
    "planning": frozenset(),
    "limits": frozenset(),
    "http": frozenset({"wire", "limits"}),
    "journal": frozenset({"wire", "limits"}),
    "callbacks": frozenset({"wire"}),
    "creating": frozenset({"http", "wire", "limits", "journal"}),
    "polling": frozenset({"http", "wire", "limits", "planning"}),
    "files": frozenset({"http", "wire", "inputs"}),
    "handle": frozenset({"inputs"}),
    "engine": frozenset(
        {"inputs", "wire", "planning", "limits", "http", "journal", "callbacks", "creating", "polling"}
        | {"files", "handle"}
    ),
    "batch": frozenset({"inputs", "handle", "engine"}),
    "session": frozenset({"inputs", "handle", "batch", "engine", "callbacks", "journal"}),
    "instrumentation": frozenset(),
    "sandbox": frozenset(),
    "__init__": frozenset({"inputs", "handle", "batch", "session", "callbacks", "journal", "sandbox"}),
    "pytest_plugin": frozenset({"session", "sandbox"}),
    "cli": frozenset(
        {"__init__", "inputs", "files", "handle", "batch", "session", "callbacks", "journal", "sandbox"}
    ),
    "__main__": frozenset({"cli"}),
}
"""Which wings each may import besides the vocabulary. A file at the top is a wing of its own."""

LIBRARY_HOMES: dict[str, tuple[str, ...]] = {
    "aiohttp": ("http/", "creating/", "files/"),
    "aiohttp.web": ("callbacks/",),
    "sqlite3": ("journal/sqlite",),
    "asyncpg": ("journal/postgres",),
    "aiohttp_socks": ("http/socks.py",),
    "tinytag": ("files/audio_length.py",),
    "backoff": ("http/backoff.py",),
    "cattrs": ("planning/durations.py", "engine/kept_uploads.py"),
    "opentelemetry": ("instrumentation/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}
"""Where a library may be imported: beginnings of paths. The sandbox stands alone and chooses for itself."""

PURE = ("inputs/", "wire/", "planning/", "models.py", "config.py", "events.py", "errors.py", "_json.py")

MAX_AT_THE_TOP = 14
MAX_PARAMETERS = 8
MAX_MODULE_DOCSTRING = 8

MANY_PARAMETERS = {"KieSession": "what a user may set, all by keyword: he constructs it, no wiring does"}

LONG_DOCSTRINGS = {
    "errors.py": "draws the tree of the errors",
    "planning/poll_curve.py": "derives the rule its code follows",
}

SET_FROM_OUTSIDE = {
    "error.handle": "the error of an unknown create is raised before its handle is known to it",
    "self._failure.__cause__": "what `raise ... from` does, for an error that others raise later",
    "request.writer.output_size": "aiohttp counts the interim 100 answer; the answer itself is yet to begin",
}
"""Assignments to another object's attribute that are right, with the reason."""

OLD_WORDS = {
    r"look(s|ed|er|ers|ing)?": "poll",
    r"watch(es|ed)?": "entry (a watcher is an asyncio.Task)",
    r"wish(es)?": "request",
    r"knock(s|ed|ing)?": "handle, on_request",
    r"hear(s|d)?|believe[sd]?": "accept, apply, trust",
    r"tell|told": "resolve_waiter, call_hook; waiter",
    r"ring(s|ing)?|rung|rang": "poll_now, is_urgent",
    r"scouts?": "probe",
    r"setbacks?": "failures",
    r"agenda": "wheel",
    r"timetable": "planner",
    r"intake": "creator",
    r"desk": "engine",
    r"jsontext": "_json",
    r"nod": "answer_lifespan",
}
"""Words that stand for no term of the field, as parts of identifiers, and what is said instead."""

OLD_CLASSES = {
    "Watch": "PollEntry",
    "Agenda": "TimerWheel",
    "Timetable": "PollPlanner",
    "LostCallbacks": "CallbackLoss",
    "Setbacks": "FailurePolicy",
    "Intake": "TaskCreator",
    "Creation": "CreateCall",
    "Gate": "SendGate",
    "SealedBody": "OneShotBody",
    "Breaker": "CircuitBreaker",
    "Limiter": "RateLimiter",
    "Intents": "PendingCreates",
    "InFlight": "TaskRegistry, TaskTracker",
    "Adoption": "Reconciler",
    "Spending": "BudgetGuard",
    "Reader": "QueryClient",
    "Answer": "CallbackVerdict",
    "Verdict": "CreateVerdict, CallbackVerdict",
    "Key": "Secret",
    "TaskTaken": "TaskAlreadyBound",
}

OLD_PROSE = {
    r"\blook(s|ed|ing)? (at|again|next|now|when|once|later)\b": "poll",
    r"\b(a|the|no|first|further|every|each|two|many|one|extra) looks?\b": "poll",
    r"\bknock(s|ed|ing)?\b": "deliver, request",
    r"\b(scout|setback|timetable|agenda|looker)s?\b": "probe, failure, planner, wheel, poller",
    r"\b(rings|rung)\b": "asks to be polled at once",
    r"\bwish(es)?\b": "request",
    r"\bbeliev(e|es|ed)\b": "trust, count",
    r"\bhear(s|d)? (of|from|nothing)\b|\b(was|is|be) heard\b": "take in, get, be told",
}
"""The same in comments and docstrings, where some of the words have honest uses."""

NOT_OF_POLLING = ("cli/", "files/", "journal/", "_secrets.py")
"""Where to look at something means just that."""

KEPT_NAMES = frozenset({"ring_gap_s", "empty_result_looks", "told_by"})
"""Public names that stay, though their word has gone: of schedule, faults and results file."""

KEPT_WORDS = {("callbacks", "watch"): "its server watches its connections; no entry of the poller is meant"}
"""Words that a wing may use in their own sense, with the reason."""

SERVICE_ANY = (r"Mapping\[str, Any\]", r"Attribute\[Any\]", r"Generator\[Any, ")
"""Where ``Any`` may stand: a model's own fields, attrs' validator protocol, the await protocol."""

WORDS_OF_TESTS = frozenset({r"watch(es|ed)?", r"tell|told"})
"""Old words that names of tests may use in their everyday sense."""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


# --- reading the code -----------------------------------------------------------------------------


def files(*, but: Collection[str] = ()) -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if wing_of(path) not in but]


def files_of_tests() -> list[Path]:
    return [path for path in sorted(TESTS.rglob("*.py")) if path != Path(__file__)]


def name_of(path: Path) -> str:
    """Return the file's path within the package."""
    return path.relative_to(ROOT).as_posix()


def wing_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> Sequence[ast.AST]:
    return list(ast.walk(tree_of(path)))


@pytest.fixture(scope="module", autouse=True)
def trees_are_forgotten() -> Iterator[None]:
    """Leave no trees to the tests that follow, whose collections would all have to go through them."""
    yield
    for cached in (tree_of, nodes_of, imports_of):
        cached.cache_clear()


def report(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@cache
def imports_of(path: Path, *, at_run_time: bool = True) -> list[ast.Import | ast.ImportFrom]:
    """Return a file's imports, those inside functions too; those for types only if not *at_run_time*."""
    for_types = {
        inner
        for node in nodes_of(path)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        for inner in ast.walk(node)
    }
    return [
        node
        for node in nodes_of(path)
        if isinstance(node, ast.Import | ast.ImportFrom) and not (at_run_time and node in for_types)
    ]


def modules_imported(path: Path, *, at_run_time: bool = True) -> set[Path]:
    """Return the package's own files that a file imports."""
    found = set()
    for node in imports_of(path, at_run_time=at_run_time):
        if isinstance(node, ast.Import):
            candidates = [ROOT.parent.joinpath(*alias.name.split(".")) for alias in node.names]
        else:
            home = path.parents[node.level - 1] if node.level else ROOT.parent
            home = home.joinpath(*node.module.split(".")) if node.module else home
            candidates = [home / alias.name for alias in node.names]
        found |= {file for name in candidates if (file := file_of(name)) is not None}
    return found


def file_of(name: Path) -> Path | None:
    """Return the file that holds a dotted name, here as a path: a module, a package, or a name in one."""
    for place in (name, name.parent):
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_relative_to(ROOT) and file.exists():
                return file
    return None


def libraries_imported(path: Path) -> set[str]:
    """Return dotted names of what a file imports from outside: ``aiohttp``, ``aiohttp.web``."""
    found: set[str] = set()
    for node in imports_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif not node.level and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def classes_in(path: Path) -> list[ast.ClassDef]:
    return [node for node in nodes_of(path) if isinstance(node, ast.ClassDef)]


def is_mutable_record(node: ast.ClassDef) -> bool:
    return any(ast.unparse(mark).startswith("attrs.define") for mark in node.decorator_list)


@cache
def fields_of_records(wing: str) -> frozenset[str]:
    """Return the fields of a wing's mutable attrs records, which any of its modules may change."""
    return frozenset(
        line.target.id
        for path in files()
        if wing_of(path) == wing
        for node in classes_in(path)
        if is_mutable_record(node)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    )


def public_definitions(path: Path) -> Iterator[tuple[str, Definition]]:
    """Yield the public functions, classes and methods of a file, with dotted names."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
        for node in body:
            if isinstance(node, Definition):
                if node.name.startswith("_") and not node.name.startswith("__"):
                    continue
                if any(ast.unparse(mark).endswith((".setter", "overload")) for mark in node.decorator_list):
                    continue  # described where it is first defined
                yield f"{prefix}{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(tree_of(path).body, "")


# --- wings ----------------------------------------------------------------------------------------


def test_every_module_belongs_to_a_wing() -> None:
    report(
        [
            f"{name_of(path)}: in no wing; move it, or add a wing to WINGS with what it may import"
            for path in files()
            if wing_of(path) not in WINGS.keys() | VOCABULARY
        ]
    )


def test_the_top_holds_only_what_a_user_imports() -> None:
    top = [path.name for path in ROOT.glob("*.py")]
    assert len(top) <= MAX_AT_THE_TOP, (
        f"kie_async/ has {len(top)} modules: move one into a wing: {sorted(top)}"
    )


def test_wings_import_only_what_was_agreed() -> None:
    problems = []
    for path in files():
        wing = wing_of(path)
        may = {wing} if wing == "sandbox" else {wing} | VOCABULARY | WINGS.get(wing, frozenset())
        problems += [
            f"{name_of(path)} must not import {name_of(imported)}: hand the thing in from engine/, "
            "or declare a Protocol beside its caller"
            for imported in sorted(modules_imported(path))
            if wing_of(imported) not in may
        ]
    report(problems)


def test_imports_for_types_keep_to_the_same_table() -> None:
    """Only errors.py may name what it does not know: its errors carry a handle or a record."""
    report(
        [
            f"{name_of(path)} imports {name_of(imported)} for types: declare a Protocol beside its caller"
            for path in files()
            if path.name != "errors.py"
            for imported in modules_imported(path, at_run_time=False) - modules_imported(path)
            if wing_of(imported) not in {wing_of(path)} | VOCABULARY | WINGS.get(wing_of(path), frozenset())
        ]
    )


def circle_in(graph: dict[str, set[str]]) -> str:
    """Return one circle of the graph, drawn as a path; nothing if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return " imports ".join(reversed(exc.args[1]))
    return ""


def test_wings_make_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in files():
        others = {wing_of(imported) for imported in modules_imported(path)} - {wing_of(path)}
        graph.setdefault(wing_of(path), set()).update(others)
    assert not (circle := circle_in(graph)), f"wings in a circle: {circle}; cut one of these imports"
    assert not (circle := circle_in({wing: set(may) for wing, may in WINGS.items()})), (
        f"WINGS itself: {circle}"
    )


@together("wing", [*sorted({wing_of(path) for path in files()} - VOCABULARY), "the vocabulary"])
def test_the_modules_of_a_wing_make_no_circle(wing: str) -> None:
    inside = VOCABULARY if wing == "the vocabulary" else {wing}
    graph = {
        name_of(path): {
            name_of(other) for other in modules_imported(path) - {path} if wing_of(other) in inside
        }
        for path in files()
        if wing_of(path) in inside
    }
    assert not (circle := circle_in(graph)), f"modules in a circle: {circle}; cut one of these imports"


def test_the_front_of_a_wing_says_what_it_is_for_and_exports_nothing() -> None:
    public = {ROOT, ROOT / "cli", ROOT / "sandbox"}
    problems = []
    for path in files():
        if path.name == "__init__.py" and path.parent not in public:
            if len(tree_of(path).body) > 1:
                problems.append(f"{name_of(path)}: import from the wing's modules, export nothing here")
            if (
                "know" not in (ast.get_docstring(tree_of(path)) or "").lower()
                and path.parent.name != "engine"
            ):
                problems.append(f"{name_of(path)}: say in one sentence what the wing is for and may not know")
    report(problems)


def test_tests_stand_in_the_folders_of_what_they_test() -> None:
    of_the_whole = {"apps", "campaign", "support"}
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests).parts[0] for path in tests.glob("*/**/test_*.py")}
    strays = folders - of_the_whole - {wing for wing in WINGS if (ROOT / wing).is_dir()}
    assert not strays, f"no wing is called {sorted(strays)}: name the folder after the wing it tests"


@together("library", LIBRARY_HOMES)
def test_a_library_has_its_home(library: str) -> None:
    homes, problems = LIBRARY_HOMES[library], []
    for path in files(but=("sandbox",)):
        names = {name for name in libraries_imported(path) if f"{name}.".startswith(f"{library}.")}
        if library == "aiohttp":
            names = {name for name in names if not name.startswith("aiohttp.web")}
        if library == "aiohttp.web":
            names |= {name for name in libraries_imported(path) if name.startswith("aiohttp.web")}
        if names and not name_of(path).startswith(homes):
            problems.append(
                f"{name_of(path)} imports {sorted(names)}, which belongs in {', '.join(homes)} only"
            )
    report(problems)


# --- wiring ---------------------------------------------------------------------------------------


def parameters_of(node: ast.FunctionDef) -> int:
    arguments = node.args
    return len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]) - 1


def test_a_part_is_constructed_from_few_things() -> None:
    report(
        [
            f"{name_of(path)}: {owner.name} takes {parameters_of(node)} arguments; at most {MAX_PARAMETERS}: "
            "split its duties, or hand in the part that bundles some of them"
            for path in files(but=("sandbox", "cli"))
            for owner in classes_in(path)
            if owner.name not in MANY_PARAMETERS
            for node in owner.body
            if isinstance(node, ast.FunctionDef)
            and node.name == "__init__"
            and parameters_of(node) > MAX_PARAMETERS
        ]
    )


def test_no_constructor_is_handed_a_lambda() -> None:
    ours, problems = {node.name for path in files() for node in classes_in(path)}, []
    for path in files(but=("sandbox",)):
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ours:
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                if any(isinstance(value, ast.Lambda) for value in given):
                    problems.append(
                        f"{place(path, node)}: {ast.unparse(node.func)} is handed a lambda; name a Protocol"
                    )
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                defaults = [*node.args.defaults, *node.args.kw_defaults]
                if any(isinstance(value, ast.Lambda) for value in defaults):
                    problems.append(f"{place(path, node)}: a constructor has a lambda as default; use None")
    report(problems)


def place(path: Path, node: ast.AST) -> str:
    return f"{name_of(path)}:{getattr(node, 'lineno', 0)}"


def assigned_attributes(path: Path) -> Iterator[ast.Attribute]:
    """Yield the attributes that a file assigns to."""
    for node in nodes_of(path):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}


def built_in(function: ast.AST) -> set[str]:
    """Return the names of what a classmethod has just built: it may complete it, being of its class."""
    return {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name) and ast.unparse(node.value.func) == "cls"
    }


def test_no_attribute_is_set_from_outside() -> None:
    """Fields of attrs records are for their own wing to change, and counts are for everybody."""
    problems = []
    for path in files(but=("sandbox",)):
        functions = [node for node in nodes_of(path) if isinstance(node, ast.FunctionDef)]
        own = {
            id(inner)
            for function in functions
            for inner in ast.walk(function)
            if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in built_in(function)
        }
        allowed = fields_of_records(wing_of(path))
        counts = fields_of_records("events")
        for node in assigned_attributes(path):
            text = ast.unparse(node)
            is_count = node.attr in counts and ast.unparse(node.value).endswith("counters")
            if not (
                is_own(node)
                or id(node) in own
                or is_count
                or node.attr in allowed
                or text in SET_FROM_OUTSIDE
            ):
                problems.append(
                    f"{place(path, node)}: {text} is set from outside: give its class a method, "
                    "or its constructor the value"
                )
    report(problems)


def private_names(path: Path) -> set[str]:
    """Return the private names a file defines: functions, classes, fields, attributes of its objects."""
    found = {node.name for node in nodes_of(path) if isinstance(node, Definition)}
    found |= {node.attr for node in assigned_attributes(path) if is_own(node)}
    for node in nodes_of(path):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_private_names(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield what a file uses that is private to another module."""
    defined = private_names(path)
    for node in nodes_of(path):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node):
            if node.attr not in defined:
                yield node, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if is_private(alias.name) and alias.name not in VOCABULARY:
                    yield node, alias.name


def test_nothing_private_is_used_by_another_module() -> None:
    report(
        [
            f"{place(path, node)}: {name} is private to another module: give it a public name there"
            for path in files()
            for node, name in foreign_private_names(path)
        ]
    )


# --- words ----------------------------------------------------------------------------------------


def identifiers_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every identifier of a file, with its line."""
    for node in nodes_of(path):
        line = getattr(node, "lineno", 1)
        if isinstance(node, Definition):
            yield line, node.name
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield line, node.arg
        elif isinstance(node, ast.alias):
            yield line, node.asname or node.name


def words_of(identifier: str) -> list[str]:
    """Return the words of an identifier, snake or camel, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)]


@cache
def old_words_in(identifier: str, wing: str) -> Sequence[tuple[str, str]]:
    """Return each old word in an identifier with what is said instead."""
    return [
        (word, new)
        for word in (words_of(identifier) if identifier not in KEPT_NAMES else [])
        for old, new in OLD_WORDS.items()
        if re.fullmatch(old, word)
        and (wing, word) not in KEPT_WORDS
        and not (wing == "tests" and old in WORDS_OF_TESTS)
    ]


def test_identifiers_are_words_of_the_field() -> None:
    problems: dict[str, int] = {}
    for path in [*files(), *files_of_tests()]:
        name, wing = (name_of(path), wing_of(path)) if path.is_relative_to(ROOT) else (path.name, "tests")
        for line, identifier in [(1, path.stem), *identifiers_in(path)]:
            for word, new in old_words_in(identifier, wing):
                problems.setdefault(f"{name}: {identifier}: not {word!r} but {new}", line)
    report([f"{problem} (first in line {line})" for problem, line in problems.items()])


def test_classes_have_their_new_names() -> None:
    report(
        [
            f"{place(path, node)}: class {node.name} is called {OLD_CLASSES[node.name.lstrip('_')]} now"
            for path in files(but=("sandbox",))
            for node in classes_in(path)
            if node.name.lstrip("_") in OLD_CLASSES
        ]
    )


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments and strings of a file, with their lines."""
    text = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            yield token.start[0], " ".join(token.string.split())


def test_prose_says_plainly_what_is_done() -> None:
    report(
        [
            f"{name}:{line}: {found[0]!r} in comment or string: say {new}"
            for path in [*files(), *files_of_tests()]
            for name in [name_of(path) if path.is_relative_to(ROOT) else f"tests/{path.name}"]
            for line, text in prose_of(path)
            for old, new in OLD_PROSE.items()
            if not (new == "poll" and name.startswith(NOT_OF_POLLING))
            and (found := re.search(old, text))
            and not KEPT_NAMES & set(re.findall(r"\w+", text))
        ]
    )


# --- what is written ------------------------------------------------------------------------------


def test_every_module_begins_with_what_it_does() -> None:
    problems = []
    for path in files():
        text = ast.get_docstring(tree_of(path)) or ""
        first = text.split("\n\n")[0]
        if not text or "TODO" in text:
            problems.append(f"{name_of(path)}: say in the first line what it does")
        elif not first.endswith((".", ":")) or "\n" in first:
            problems.append(
                f"{name_of(path)}: the first line of its docstring is no sentence: {first[:60]!r}"
            )
        elif len(text.splitlines()) > MAX_MODULE_DOCSTRING and name_of(path) not in LONG_DOCSTRINGS:
            problems.append(
                f"{name_of(path)}: {len(text.splitlines())} lines of docstring: move them to the code"
            )
    report(problems)


def test_the_tree_of_the_architecture_names_every_module() -> None:
    """The command line and the sandbox are told apart from the wings: they are one line each."""
    tree = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("```")[1]
    named = set(re.findall(r"\w+", tree))
    report(
        [
            f"{name_of(path)}: name it in the tree of ARCHITECTURE.md, in the line of its wing"
            for path in files(but=("cli", "sandbox"))
            if path.stem not in named and not path.stem.startswith("__")
        ]
    )


def test_everything_public_has_a_docstring() -> None:
    report(
        [
            f"{place(path, node)}: {name} has no docstring"
            for path in files()
            for name, node in public_definitions(path)
            if not node.name.startswith("__") and not ast.get_docstring(node)
        ]
    )


def annotations_of(node: Definition) -> Iterator[str]:
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


def exported() -> list[tuple[str, Definition]]:
    """Return what users import: the names of the package's front door, with their methods."""
    names = {alias.name for node in imports_of(ROOT / "__init__.py") for alias in node.names}
    return [
        (name, node)
        for path in files()
        for name, node in public_definitions(path)
        if name.split(".")[0] in names
    ]


def test_nothing_exported_is_annotated_any_but_the_fields_of_a_model() -> None:
    report(
        [
            f"{name}: {annotation}: say what it is"
            for name, node in exported()
            for annotation in annotations_of(node)
            if re.search(r"\bAny\b", re.sub("|".join(SERVICE_ANY), "", annotation))
        ]
    )


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").exists()


# --- what is kept pure ----------------------------------------------------------------------------

CLOCKS = re.compile(r"\b(time\.(time|monotonic|perf_counter)|datetime\.(now|utcnow)|random\.\w+)\(")


def test_what_is_pure_neither_awaits_nor_asks_the_clock() -> None:
    problems = []
    for path in files():
        if name_of(path).startswith(PURE):
            awaiting = ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith
            if any(isinstance(node, awaiting) for node in nodes_of(path)):
                problems.append(
                    f"{name_of(path)} awaits: its wing is pure, do this in the wing that calls it"
                )
            if {name.split(".")[0] for name in libraries_imported(path)} & {"asyncio", "aiohttp", "socket"}:
                problems.append(f"{name_of(path)} imports what does input and output: its wing is pure")
            if CLOCKS.search(path.read_text("utf-8")):
                problems.append(
                    f"{name_of(path)} asks the clock or for chance: take `now`, `chance` as arguments"
                )
    report(problems)


def test_nothing_is_executed_or_unpickled() -> None:
    forbidden = {"eval", "exec", "pickle", "marshal"}
    problems = []
    for path in files():
        names = {node.id for node in nodes_of(path) if isinstance(node, ast.Name)}
        libraries = {name.split(".")[0] for name in libraries_imported(path)}
        if found := forbidden & (names | libraries):
            problems.append(
                f"{name_of(path)} uses {sorted(found)}: what comes from outside is only ever parsed"
            )
    report(problems)

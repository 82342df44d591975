"""The import rules of docs/ARCHITECTURE.md, read from the sources without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"tidelog": ROOT / "client" / "tidelog", "tidelog_broker": ROOT / "broker" / "tidelog_broker"}
SOURCES = {
    ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("*.py"))
}
PURE_CLIENT = ("errors", "limits", "messages", "batch", "wire", "exchange", "follow", "reading")
IMPURE = {"os", "zmq", "time", "threading", "logging", "socket", "select", "asyncio", "multiprocessing", "random"}
BROKER_ZMQ = {"tidelog_broker.server", "tidelog_broker.health", "tidelog_broker.serve", "tidelog_broker.cli"}
"""serve makes the context; the command line only asks for versions."""


def imports(name: str, *, at_start: bool = False) -> Iterator[str]:
    """What a module imports, as dotted names; with `at_start` only what is imported with the module itself."""
    tree = ast.parse(SOURCES[name].read_text())
    package = name if SOURCES[name].name == "__init__.py" else name.rpartition(".")[0]
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                dotted = f"{origin}.{alias.name}"
                yield dotted if dotted in SOURCES else origin
        pending.extend(ast.iter_child_nodes(node))


def roots(name: str) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(name)}


def test_the_rules_see_the_sources() -> None:
    assert "zmq" in roots("tidelog_broker.server")
    assert "tidelog_broker.core.appender" in set(imports("tidelog_broker.core.broker"))
    assert "tidelog.errors" in set(imports("tidelog"))


@pytest.mark.parametrize("name", [name for name in SOURCES if name.partition(".")[0] == "tidelog"])
def test_the_client_never_imports_the_broker(name: str) -> None:
    assert "tidelog_broker" not in roots(name)
    assert "click" not in roots(name)


@pytest.mark.parametrize(
    "name",
    [name for name in SOURCES if name.startswith("tidelog_broker.core")]
    + [f"tidelog.{name}" for name in PURE_CLIENT],
)  # fmt: skip
def test_the_rules_of_the_log_are_pure(name: str) -> None:
    assert not roots(name) & IMPURE


def test_few_modules_of_the_broker_know_zmq() -> None:
    users = {
        name
        for name in SOURCES
        if name.startswith("tidelog_broker") and not name.startswith("tidelog_broker.bench") and "zmq" in roots(name)
    }
    assert users <= BROKER_ZMQ


def test_only_the_command_line_knows_click() -> None:
    users = {name for name in SOURCES if "click" in roots(name)}
    assert all(name.startswith(("tidelog_broker.cli", "tidelog_broker.bench")) for name in users)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: {found for found in imports(name, at_start=True) if found in SOURCES} for name in SOURCES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())

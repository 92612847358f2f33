"""Who may import whom, and what an import may cost.

The rules are those of docs/architecture.md. They are checked twice: on the source, with
`violations`, and in fresh processes, by looking at what has been loaded.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
from npe2 import PluginManifest

import napari_pancreas_seg

PACKAGE = "napari_pancreas_seg"
SOURCE = Path(napari_pancreas_seg.__file__).parent
ROOT = Path(__file__).parents[1]

COMMAND_LINE = {"cli", "__main__"}

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ORDER = re.search(r"(?m)^cli, _napari → .*$", ARCHITECTURE)
LAYERS = tuple(
    {room.strip() for room in rooms.split(",")} for rooms in (ORDER[0] if ORDER else "").split("→")
)
"""Rooms from the roof to the ground, as docs/architecture.md orders them."""
HEAVY = frozenset(", ".join(re.findall("(?m)^heavy: (.*)$", ARCHITECTURE)).split(", "))
"""Libraries for whose sake an import may stand in a function."""
ONE_SYSTEMS = {"fcntl", "msvcrt", "resource"}
HEADER_FIRST = f"{PACKAGE}._napari.widget.dock"
"""Imports the program in functions, once its header is on screen."""

WINDOWS = {"napari", "qtpy", "magicgui", "superqt", "vispy", "PyQt5", "PyQt6", "PySide2", "PySide6"}
NETWORKS = {"keras", "tensorflow", "torch", "jax"}

KERAS_AT_TOP = (
    *("model", "training"),
    *("inference.devices", "inference.predictor", "inference.onnx_file"),
)
KERAS_IN_FUNCTIONS = ("model", "training", "inference")


@dataclass(frozen=True)
class Import:
    """One name that a module imports, and when: on its own import, or within a function.

    Neither: for types alone, or a module that is named in a string.
    """

    name: str
    line: int
    at_top: bool
    in_function: bool = False


parsed = functools.cache(ast.parse)


def _dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported, but for those only type checkers see."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and _dotted(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)


def _in_functions(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from ast.walk(node) if is_function else _in_functions(ast.iter_child_nodes(node))


def _named(node: ast.AST, modules: Collection[str]) -> list[str]:
    """Our modules that a string names, or an f-string may name, for `import_module`."""
    if isinstance(node, ast.Constant):
        return [str(node.value)] if node.value in modules else []
    if not isinstance(node, ast.JoinedStr):
        return []
    parts = [part.value if isinstance(part, ast.Constant) else "" for part in node.values]
    if not str(parts[0]).startswith(f"{PACKAGE}."):
        return []
    pattern = "".join(re.escape(str(part)) or r"[\w.]+" for part in parts)
    return [module for module in modules if re.fullmatch(pattern, module)]


def _imported_names(node: ast.AST, module: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            parents = parts[: len(parts) - node.level + is_package]
            base = ".".join([*parents, base] if base else parents)
        return [f"{base}.{alias.name}" for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and _dotted(node.func).rpartition(".")[2] in {"import_module", "__import__"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        return [str(node.args[0].value)]
    return []


def imports_of(
    module: str, text: str, *, is_package: bool, modules: Collection[str] = ()
) -> list[Import]:
    """Everything that a module imports, anywhere in it, as dotted names."""
    tree = parsed(text)
    top = {id(node) for node in _top_level(tree)}
    later = {id(node) for node in _in_functions(tree.body)}
    modules = modules if "import_module" in text else ()
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for name in _imported_names(node, module, is_package):
            found.append(Import(name, line, id(node) in top, id(node) in later))
        found += [Import(name, line, False) for name in _named(node, modules)]
    return found


def _room(name: str) -> str:
    """The first name below the package: '' for the package itself."""
    return name.split(".")[1] if "." in name else ""


def _within(name: str, rooms: tuple[str, ...]) -> bool:
    inner = name.removeprefix(f"{PACKAGE}.")
    return any(inner == room or inner.startswith(f"{room}.") for room in rooms)


def _layer(room: str) -> int | None:
    return next((level for level, rooms in enumerate(LAYERS) if room in rooms), None)


def _loaded_by(name: str, sources: Mapping[str, str]) -> set[str]:
    """The package's modules that importing `name` runs: parents, and the name if a module."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & sources.keys()


def violations(sources: Mapping[str, str], packages: frozenset[str] = frozenset()) -> list[str]:
    """Check the rules on modules given as dotted name and source text."""
    found: list[str] = []
    imports = {
        module: imports_of(module, text, is_package=module in packages, modules=sources)
        for module, text in sources.items()
    }
    for module, names in imports.items():
        if {"utils", "helpers"} & {part.strip("_") for part in module.split(".")}:
            found.append(f"{module}: says nothing about what is inside")
        if module not in {PACKAGE, f"{PACKAGE}.__main__"} and _layer(_room(module)) is None:
            found.append(f"{module}: belongs to no layer")
        for item in names:
            found += _wrong_import(module, item)
        found += _environment_changes(module, sources[module])
    brought = _brought(imports, sources)
    return found + _loading_keras(brought) + _late_for_nothing(imports, brought, sources)


def _wrong_import(module: str, item: Import) -> list[str]:
    where = f"{module}:{item.line}"
    library = item.name.split(".")[0]
    room = _room(module)
    found = []
    if library in WINDOWS and room != "_napari":
        found.append(f"{where} imports {library} outside _napari")
    if library in NETWORKS:
        if item.at_top and (library != "keras" or not _within(module, KERAS_AT_TOP)):
            found.append(f"{where} imports {library} at its top")
        elif not _within(module, KERAS_IN_FUNCTIONS):
            found.append(f"{where} imports {library}")
    if library == PACKAGE and module != PACKAGE:
        target = _room(item.name)
        mine, theirs = _layer(room), _layer(target)
        if "_napari" in {room, target} and {room, target} & COMMAND_LINE:
            found.append(f"{where}: the command line and the window import each other")
        elif mine is not None and theirs is not None and theirs < mine:
            found.append(f"{where} imports {target}, which lies above it")
    return found


def _environment_changes(module: str, text: str) -> list[str]:
    found = []
    for node in _top_level(parsed(text)):
        changed = ""
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed = _dotted(node.value)
        elif isinstance(node, ast.Call):
            owner, _, method = _dotted(node.func).rpartition(".")
            if method in {"setdefault", "update", "pop", "clear"}:
                changed = owner
            elif method in {"putenv", "unsetenv"}:
                changed = "environ"
        if changed.rpartition(".")[2] == "environ":
            found.append(f"{module}:{node.lineno} changes the environment at import")  # type: ignore[attr-defined]
    return found


def _brought(
    imports: Mapping[str, list[Import]], sources: Mapping[str, str]
) -> dict[str, set[str]]:
    """The heavy libraries that each module loads when it is imported, by way of others too."""
    # SciPy's parts are loaded when they are imported, not with SciPy itself.
    brought = {
        module: {item.name.split(".")[0] for item in names if item.at_top and item.name != "scipy"}
        & HEAVY
        for module, names in imports.items()
    }
    loads = {
        module: set().union(
            *(_loaded_by(item.name, sources) for item in names if item.at_top),
            _loaded_by(module, sources) - {module},
        )
        for module, names in imports.items()
    }
    while True:
        further = {m: brought[m].union(*(brought[t] for t in loads[m])) for m in brought}
        if further == brought:
            return brought
        brought = further


def _loading_keras(brought: Mapping[str, set[str]]) -> list[str]:
    """Modules whose import brings Keras along by way of others."""
    return [
        f"{module}: importing it loads Keras"
        for module, libraries in sorted(brought.items())
        if libraries & NETWORKS and not _within(module, KERAS_AT_TOP)
    ]


def _late_for_nothing(
    imports: Mapping[str, list[Import]],
    brought: Mapping[str, set[str]],
    sources: Mapping[str, str],
) -> list[str]:
    """Imports within functions that keep nothing heavy from being loaded with the module."""
    found = []
    for module, names in imports.items():
        for item in names:
            library = item.name.split(".")[0]
            brings = set().union(*(brought[name] for name in _loaded_by(item.name, sources)))
            late = item.in_function and (module, library) != (HEADER_FIRST, PACKAGE)
            if late and library not in HEAVY | ONE_SYSTEMS and not brings - brought[module]:
                found.append(f"{module}:{item.line} imports {item.name} in a function for nothing")
    return found


def _read_package() -> tuple[dict[str, str], frozenset[str]]:
    sources, packages = {}, set()
    for path in sorted(SOURCE.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
            packages.add(".".join(parts))
        sources[".".join(parts)] = path.read_text(encoding="utf-8")
    return sources, frozenset(packages)


def circles(sources: Mapping[str, str], packages: frozenset[str]) -> list[str]:
    """Modules, and folders side by side, that import each other by way of any others.

    Imports for types and in functions count.
    """
    modules: dict[str, set[str]] = {module: set() for module in sources}
    folders: dict[str, set[str]] = {package: set() for package in packages}
    for module, text in sources.items():
        for item in imports_of(module, text, is_package=module in packages, modules=sources):
            if loaded := _loaded_by(item.name, sources):
                target = max(loaded, key=len)
                modules[module].add(target)
                mine, theirs = _apart(module, target)
                if mine != theirs and {mine, theirs} <= packages:
                    folders[mine].add(theirs)
    return _in_circles(modules) + _in_circles(folders)


def _apart(one: str, other: str) -> tuple[str, str]:
    """The two names down to where they part."""
    names = one.split("."), other.split(".")
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(*names, strict=False))))
    return ".".join(names[0][: same + 1]), ".".join(names[1][: same + 1])


def _in_circles(reached: dict[str, set[str]]) -> list[str]:
    while True:
        further = {
            m: seen.union(*(reached[other] for other in seen)) for m, seen in reached.items()
        }
        if further == reached:
            return sorted(module for module, seen in reached.items() if module in seen)
        reached = further


@pytest.mark.slow
def test_no_modules_import_each_other() -> None:
    assert circles(*_read_package()) == []


def test_a_circle_is_found() -> None:
    sources = {
        f"{PACKAGE}.io.a": "def f():\n    from napari_pancreas_seg.io import b",
        f"{PACKAGE}.io.b": "from napari_pancreas_seg.io.c import C",
        f"{PACKAGE}.io.c": "if TYPE_CHECKING:\n    from napari_pancreas_seg.io.a import A",
        f"{PACKAGE}.io.d": "from napari_pancreas_seg.io.a import A",
    }
    assert circles(sources, frozenset()) == [f"{PACKAGE}.io.{name}" for name in "abc"]
    types = "if TYPE_CHECKING:\n    from napari_pancreas_seg.volume import Volume"
    sources = {PACKAGE: types, f"{PACKAGE}.volume": "from napari_pancreas_seg import __version__"}
    assert circles(sources, frozenset({PACKAGE})) == [PACKAGE, f"{PACKAGE}.volume"]


def test_a_circle_of_folders_is_found() -> None:
    packages = frozenset({PACKAGE, *(f"{PACKAGE}.io{name}" for name in ("", ".a", ".b", ".c"))})
    sources = {
        **dict.fromkeys(packages, ""),
        f"{PACKAGE}.io.a.one": "from napari_pancreas_seg.io.b.one import B",
        f"{PACKAGE}.io.b.one": "",
        f"{PACKAGE}.io.b.two": "from napari_pancreas_seg.io.a.two import A",
        f"{PACKAGE}.io.a.two": "from napari_pancreas_seg.io import files",
        f"{PACKAGE}.io.c.one": "from napari_pancreas_seg.io.a import one",
        f"{PACKAGE}.io.files": "",
    }
    assert circles(sources, packages) == [f"{PACKAGE}.io.a", f"{PACKAGE}.io.b"]


@pytest.mark.slow
def test_every_module_keeps_the_rules() -> None:
    sources, packages = _read_package()
    assert len(sources) > 20 and all(len(rooms) == 1 for rooms in LAYERS[1:])
    assert violations(sources, packages) == []


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("mask.metrics", "import napari", "imports napari outside _napari"),
        ("cli", "def f():\n    from qtpy import QtCore", "imports qtpy outside _napari"),
        (
            "cohort.demo",
            "from importlib import import_module\nimport_module('napari')",
            "napari outside",
        ),
        ("cli", "from napari_pancreas_seg._napari import reader", "import each other"),
        ("_napari.layers.reader", "from ... import cli", "import each other"),
        ("_napari.widget.run", "from napari_pancreas_seg.cli import main", "import each other"),
        ("volume", "from napari_pancreas_seg.io import load_ct", "imports io, which lies above"),
        ("io.nifti", "def f():\n    from ..inference.result import Options", "imports inference"),
        ("io", "from .. import model", "imports model, which lies above"),
        ("model.bundle", "import napari_pancreas_seg.training.fit.loop", "imports training"),
        ("model.layers", "import tensorflow as tf", "imports tensorflow at its top"),
        ("inference.segment", "import keras", "imports keras at its top"),
        ("inference.segment", "from .predictor import Predictor", "importing it loads Keras"),
        ("cli", "if True:\n    from napari_pancreas_seg import training", "loads Keras"),
        ("mask.metrics", "def f():\n    import tensorflow", "imports tensorflow"),
        ("_napari.run.worker", "def f():\n    import keras", "imports keras"),
        ("io.utils", "", "says nothing"),
        ("_helpers", "", "says nothing"),
        ("attic", "", "belongs to no layer"),
        ("volume", "def f():\n    import json", "in a function for nothing"),
        ("io.nifti", "def f():\n    from napari_pancreas_seg.io import x", "for nothing"),
        ("io.nifti", "import numpy\ndef f():\n    from ..volume import x", "for nothing"),
        ("volume", "import_module(f'napari_pancreas_seg.{name}')", "imports io, which lies"),
        (
            "volume",
            "map(import_module, ['napari_pancreas_seg.io'])",
            "imports io, which lies above",
        ),
        ("model.backend", "import os\nos.environ['KERAS_BACKEND'] = 'jax'", "environment"),
        ("model.backend", "from os import environ\nenviron.setdefault('A', '1')", "environment"),
        ("model.backend", "import os\nclass A:\n    os.putenv('A', '1')", "environment"),
    ],
)
def test_a_broken_rule_is_found(module: str, text: str, complaint: str) -> None:
    sources = {
        PACKAGE: "",
        f"{PACKAGE}.volume": "import numpy",
        **{f"{PACKAGE}.{room}": "" for room in ("_napari", "io", "inference", "model")},
        f"{PACKAGE}.training": "import keras",
        f"{PACKAGE}.inference.predictor": "import keras",
    }
    packages = frozenset(
        {*sources, f"{PACKAGE}._napari.widget"} - {f"{PACKAGE}.inference.predictor"}
    )
    assert violations(sources, packages) == []
    assert any(
        complaint in row for row in violations({**sources, f"{PACKAGE}.{module}": text}, packages)
    )


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("inference.segment", "def f():\n    import keras\n    from .predictor import P"),
        ("inference.batches", "def f():\n    import tensorflow"),
        ("model.bundle", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import keras"),
        ("inference.process.server", "import os\ndef main():\n    os.environ['A'] = '1'"),
        ("io.files", "import os\nhome = os.environ.get('HOME', os.environ['PATH'])"),
        ("cli", "def f():\n    from napari_pancreas_seg.training import fit"),
        ("_napari.layers.reader", "import napari\nfrom ...io import load_ct"),
        ("io.table", "def f():\n    from napari_pancreas_seg.volume import CTVolume"),
        (
            "_napari.widget.dock",
            "import_module(f'napari_pancreas_seg._napari.widget.{name}_panel')",
        ),
    ],
)
def test_what_is_allowed_passes(module: str, text: str) -> None:
    sources = {
        f"{PACKAGE}.inference.predictor": "import keras",
        f"{PACKAGE}.training.fit": "import keras",
        f"{PACKAGE}.volume": "import numpy",
        f"{PACKAGE}.{module}": text,
    }
    assert violations(sources) == []


@pytest.mark.slow
def test_every_heavy_library_is_one_that_the_program_imports() -> None:
    sources, packages = _read_package()
    libraries = {
        item.name.split(".")[0]
        for module, text in sources.items()
        for item in imports_of(module, text, is_package=module in packages)
    }
    assert libraries >= HEAVY


def loaded_after(code: str) -> tuple[set[str], float]:
    """Top-level packages that are loaded once `code` has run in a fresh process; its seconds."""
    script = (
        "import json, sys, time\n"
        "start = time.perf_counter()\n"
        f"{code}\n"
        "seconds = time.perf_counter() - start\n"
        "print(json.dumps([seconds, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seconds, names = json.loads(done.stdout.splitlines()[-1])
    return set(names), seconds


def test_a_loaded_network_library_is_noticed() -> None:
    assert "keras" in loaded_after("import sys\nsys.modules['keras.layers'] = sys")[0]


def test_importing_the_package_costs_next_to_nothing() -> None:
    loaded, _ = loaded_after(f"import {PACKAGE}")
    assert not loaded & (HEAVY | WINDOWS)
    # A healthy import takes a few milliseconds; the limit leaves room for a busy machine.
    assert min(loaded_after(f"import {PACKAGE}")[1] for _ in range(3)) < 0.5


def test_help_loads_nothing_that_works() -> None:
    loaded, _ = loaded_after(f"from {PACKAGE}.cli import main\nmain(['--help'])")
    assert not loaded & HEAVY


@pytest.mark.slow
def test_an_idle_panel_has_not_loaded_what_only_work_needs() -> None:
    """Each of these takes longer to load than the whole panel."""
    late = {"nibabel", "pydicom", "highdicom", "SimpleITK", "scipy.ndimage", "scipy.sparse"}
    loaded_after(
        f"import napari.layers\nlate = {late} - set(sys.modules)\n"
        f"import {PACKAGE}._napari.app\n"
        f"from {PACKAGE}._napari.widget import dock\n"
        "from importlib import import_module\n"
        "for name in (name for names in dock.TABS.values() for name in names):\n"
        f"    import_module(f'{PACKAGE}._napari.widget.{{name}}_panel')\n"
        "too_early = late & set(sys.modules)\nassert not too_early, too_early"
    )


@pytest.mark.slow
def test_what_must_start_fast_loads_no_network() -> None:
    """Public names one after the other, then what the window and `--help` start with."""
    modules = ("cli", "cohort.demo", "inference.process.client", "data.sample")
    loading = [f"from {PACKAGE} import {name}" for name in napari_pancreas_seg.__all__]
    lines = [f"import sys\nheavy = {NETWORKS | WINDOWS}"]
    for line in (*loading, *(f"import {PACKAGE}.{module}" for module in modules)):
        lines.append(f"{line}\nassert not heavy & set(sys.modules), {line!r}")
    loaded, _ = loaded_after("\n".join(lines))
    assert not loaded & (NETWORKS | WINDOWS)


@pytest.mark.slow
def test_what_the_manifest_names_loads_no_network() -> None:
    commands = PluginManifest.from_file(SOURCE / "napari.yaml").contributions.commands
    assert commands
    lines = ["import importlib"]
    for command in commands:
        module, _, attribute = str(command.python_name).partition(":")
        lines.append(f"getattr(importlib.import_module({module!r}), {attribute!r})")
    loaded, _ = loaded_after("\n".join(lines))
    assert not loaded & NETWORKS


def test_the_version_is_written_in_one_place() -> None:
    files = [
        *(ROOT / name for name in ("pyproject.toml", "setup.cfg", "tox.ini", "CITATION.cff")),
        *SOURCE.rglob("*.py"),
        *SOURCE.rglob("*.yaml"),
    ]
    pattern = re.compile(rf"(?<![\d.]){re.escape(napari_pancreas_seg.__version__)}(?![\d.])")
    written = [path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))]
    assert written == ["_version.py"]

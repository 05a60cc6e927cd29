"""The shape of the code: who imports whom, what stays free of torch, what the README says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "facestyle"

# Each room may import those below it, never one above.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"engine_ray"},
    {"batch"},
    {"convert", "export", "training", "pipeline"},
    {"opening"},
    {"translator"},
    {"edits", "families"},
    {"backends", "faces", "nn"},
    {"bundle", "checkpoint", "images", "weights"},
    {"card", "marks"},
    {"errors"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """``facestyle.faces.align`` → ``faces``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules of facestyle that a file imports, and whether for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("facestyle"):
            names = [
                f"{node.module}.{alias.name}" if node.module == "facestyle" else str(node.module)
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("facestyle")]
        else:
            continue
        found += [(name, id(node) in typed) for name in names]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":  # the public face names the API, lazily
        return
    assert room in LEVEL, f"{room} has no floor yet"
    for module, typed in imports(path):
        other = room_of(module)
        if typed or other in ("", "__version__", room):
            continue
        assert LEVEL[other] > LEVEL[room], f"{path.name} imports {module}"


def test_families_do_not_know_each_other() -> None:
    for path in (PACKAGE / "families").rglob("*/*.py"):
        mine = f"facestyle.families.{path.parent.name}"
        for module, _ in imports(path):
            other = module.startswith("facestyle.families.") and not module.startswith(mine)
            assert not other, f"{path} imports {module}"


def test_the_pixel_side_imports_no_torch() -> None:
    modules = (
        "facestyle.pipeline, facestyle.translator, facestyle.card, facestyle.images, "
        "facestyle.batch, facestyle.weights, facestyle.families, facestyle.families.stargan_v2, "
        "facestyle.faces.registry, facestyle.faces.yunet, facestyle.faces.builtin, facestyle.cli, "
        "facestyle.bundle, facestyle.opening, facestyle.backends.on_onnx, "
        "facestyle.backends.on_openvino, facestyle.backends.watched, "
        "facestyle.cli.export, facestyle.training.prepare"
    )
    code = f"import sys, {modules}\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


IMPORTED = """
import ast, importlib, sys
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
for path in sorted(folder.glob("*.py")):
    importlib.import_module(path.stem)
    # What is imported in a function is there too.
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("facestyle"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
"""


@pytest.mark.parametrize("folder", ["benchmarks", "recipes"])
def test_every_script_finds_what_it_imports(folder: str) -> None:
    command = [sys.executable, "-c", IMPORTED, str(ROOT / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_readmes_options_and_commands_exist() -> None:
    from typer.main import get_command

    from facestyle.cli import app

    root = get_command(app)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:.*/bin/)?facestyle (\S+)(.*)$", text, re.MULTILINE)
    assert len(lines) > 10
    for name, rest in lines:
        command = root.commands[name]  # type: ignore[attr-defined]
        if name == "models":
            command = command.commands[rest.split()[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<=\s)--?[a-z-]+", rest.split("#")[0]):
            assert option in known, f"README: facestyle {name} has no {option}"


def test_the_readmes_test_command_is_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install = "bin/pip install -c constraints.txt -e '.[dev]'"
    assert install in readme
    assert install in ci.replace("pip install -q", "pip install")
    assert "./check" in readme
    assert "./check" in ci


def test_no_weights_file_is_too_large() -> None:
    files = [path for path in (ROOT / "weights").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000_000
    assert max(path.stat().st_size for path in files) < 20_000_000

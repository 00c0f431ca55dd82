"""Guard-rails: the layers of the design, and the limits of the style, as tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sae", "probes")
LAYERS = {
    "errors": 0, "fingerprint": 0, "storage": 0,
    "dictionaries": 1, "models": 1, "geometry": 1, "synthetic": 1,
    "activations": 2, "interop": 2,
    "training": 3, "evaluation": 3,
    "inspection": 4, "autointerp": 4,
    "cli": 5,
}  # fmt: skip
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CONSTRUCTOR_PARAMETERS, MAX_CONFIG_FIELDS = 400, 60, 8, 10

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def layer(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] == "probes":
        return 5 if "cli" in parts else 4
    return LAYERS[parts[1]] if parts[0] == "sae" and len(parts) > 1 else None


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported when the file is) of every import of the project's own modules."""
    top_level = {
        id(node) for statement in tree(path).body for node in ([statement] if isinstance(statement, (ast.Import, ast.ImportFrom)) else [])
    }
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if name in MODULES else node.module, id(node) in top_level) for name in names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top_level) for alias in node.names]
    return [(name, now) for name, now in found if name.split(".")[0] in PACKAGES]


def functions(path: Path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_lines(node) -> int:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down_the_layers(module):
    own = layer(module)
    for name, _ in imports(MODULES[module]):
        if module in PACKAGES:
            continue  # the façade looks at everything below it
        assert name not in PACKAGES, f"{module} imports the package root"
        if own is not None and layer(name) is not None:
            assert layer(name) <= own, f"{module} (layer {own}) imports {name} (layer {layer(name)})"


def test_sae_never_imports_probes():
    assert [m for m, path in MODULES.items() if m.startswith("sae") and any(n.startswith("probes") for n, _ in imports(path))] == []


def test_no_import_cycle():
    graph = {
        module: {name for name, now in imports(path) if now and name in MODULES and name != module} for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module, trail):
        assert module not in trail, "import cycle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_to_the_limits(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_FILE_LINES, f"{lines} lines"
    for node in functions(path):
        assert body_lines(node) <= MAX_FUNCTION_LINES, f"{node.name} has {body_lines(node)} lines"
        assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), f"{node.name} is empty"
        if node.name == "__init__":
            count = len(node.args.args) + len(node.args.kwonlyargs) - 1
            assert count <= MAX_CONSTRUCTOR_PARAMETERS, f"a constructor with {count} parameters"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_has_no_forbidden_construct(path):
    name = str(path.relative_to(ROOT))
    program = path.name == "cli.py"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = getattr(node.type, "id", None)
            assert node.type is not None and caught not in ("Exception", "BaseException"), f"{name}:{node.lineno} broad except"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print" or program, f"{name}:{node.lineno} print outside a program"
            assert called != "torch.load" or name.startswith("sae/interop/"), f"{name}:{node.lineno} torch.load outside interop"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            assert "pickle" not in modules, f"{name}:{node.lineno} pickle"
        if isinstance(node, ast.Raise):
            assert "NotImplementedError" not in ast.dump(node), f"{name}:{node.lineno} NotImplementedError"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_and_public_name_has_a_docstring(path):
    module = tree(path)
    assert ast.get_docstring(module) or not module.body, f"{path.name} has no docstring"
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_configs_are_frozen_keyword_only_small_and_documented(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            decorator = " ".join(ast.unparse(d) for d in node.decorator_list)
            assert "frozen=True" in decorator and "kw_only=True" in decorator, f"{node.name} is not frozen and keyword-only"
            fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
            assert len(fields) <= MAX_CONFIG_FIELDS, f"{node.name} has {len(fields)} fields"
            for field in fields:
                after = node.body[node.body.index(field) + 1 :]
                documented = bool(after) and isinstance(after[0], ast.Expr) and isinstance(getattr(after[0], "value", None), ast.Constant)
                assert documented, f"{node.name}.{ast.unparse(field.target)} has no line of documentation"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package):
    heavy = ("transformer_lens", "transformers", "datasets", "fastapi")
    program = f"import sys, {package}; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_the_facade_can_be_imported(package):
    program = f"import {package}\nfor name in {package}.__all__: assert getattr({package}, name) is not None\nprint(len({package}.__all__))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 10 <= int(result.stdout) <= 42

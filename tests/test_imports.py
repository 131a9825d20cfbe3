"""Who may import whom: the table of ARCHITECTURE.md, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("router", "serving", "monitoring", "training")
ALLOWED = {
    "router": {"router"},
    "serving": {"serving"},
    "monitoring": {"monitoring", "router", "serving.registry"},
    "training": {
        "training", "router", "monitoring.review", "monitoring.store", "monitoring.intervals",
        "monitoring.encoder", "monitoring.judge", "monitoring.judge_calibration", "monitoring.text_pairs",
        "monitoring.errors", "serving.registry", "serving.base_model", "serving.errors",
    },
}  # fmt: skip
CONTRACTS = {
    "router": (
        "records",
        "traffic",
        "answer_spec",
        "policy",
        "policy_file",
        "quantities",
        "compare",
        "prompt",
        "tool_calls",
        "home",
        "errors",
    ),
    "serving": ("registry", "generation", "errors"),
}
CONTRACT_LIBRARIES = {"yaml", "pydantic", "pydantic_core", "msgspec", "fsspec", "jsonschema_rs"}
ONLINE_NEVER = {
    "torch",
    "pandas",
    "evidently",
    "sklearn",
    "scipy",
    "sqlalchemy",
    "transformers",
    "peft",
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module in PACKAGES:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if name.split(".")[0] in PACKAGES
        and name not in PACKAGES
        and not any(
            name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[package]
        )
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "module"), [(p, m) for p, modules in CONTRACTS.items() for m in modules]
)
def test_a_contract_module_needs_no_framework(package: str, module: str) -> None:
    outside = {
        name.split(".")[0]
        for name in imports(ROOT / package / f"{module}.py")
        if name.split(".")[0] not in sys.stdlib_module_names and name.split(".")[0] not in PACKAGES
    }
    assert outside <= CONTRACT_LIBRARIES


def test_the_router_never_imports_offline_libraries() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in sources("router")
        for name in imports(path)
        if name.split(".")[0] in ONLINE_NEVER
    ]
    assert wrong == []


def test_evidently_is_imported_only_by_drift() -> None:
    places = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sources(package)
        if any(name.split(".")[0] == "evidently" for name in imports(path))
    ]
    assert places == ["monitoring/drift.py"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; import graduate; "
        "heavy = {'torch', 'evidently', 'pandas', 'fastapi', 'transformers', 'sqlalchemy'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

"""README and schema are what values.yaml makes of them, and the schema refuses what nobody meant. No helm needed."""

import importlib.util
import json
import subprocess
import sys
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.helm.render import CHART, EXAMPLES

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()


def test_readme_and_schema_are_generated() -> None:
    command = [sys.executable, str(CHART / "tools" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_defaults_and_examples_hold() -> None:
    check = jsonschema_rs.validator_for(SCHEMA)
    for text in (VALUES, *(e.read_text() for e in EXAMPLES)):
        check.validate(yaml.safe_load(text))


def keys(schema: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every mapping that the schema knows."""
    found = [path] if "properties" in schema else []
    for name, below in schema.get("properties", {}).items():
        found += keys(below, (*path, name))
    return found


@pytest.mark.parametrize("path", keys(SCHEMA), ids=lambda p: ".".join(p) or "top")
def test_a_misspelt_key_is_refused_everywhere(path: tuple[str, ...]) -> None:
    if path == ("global",):
        pytest.skip("left to a parent chart")
    value: dict[str, Any] = {"mispelt": 1}
    for name in reversed(path):
        value = {name: value}
    with pytest.raises(jsonschema_rs.ValidationError, match="mispelt"):
        jsonschema_rs.validator_for(SCHEMA).validate(value)


def test_every_value_has_its_line_in_the_readme() -> None:
    readme = (CHART / "README.md").read_text()
    for wanted in (
        "`router.autoscaling.minReplicas`",
        "`networkPolicy.teachers`",
        "`lorax.flags`",
        "`state.claim.accessModes`",
    ):
        assert f"| {wanted} |" in readme


def test_a_value_without_a_comment_is_an_error() -> None:
    spec = importlib.util.spec_from_file_location("generate", CHART / "tools" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate
    spec.loader.exec_module(generate)
    with pytest.raises(ValueError, match=r"router\.surprise has no comment"):
        generate.schema(VALUES.replace("  workers: 1\n", "  workers: 1\n  surprise: 2\n"))

"""The README's commands exist, and its policy holds."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import graduate
from router import policy_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [
        line.partition("#")[0].split() for block in blocks("bash") for line in block.splitlines()
    ]
    return [words for words in lines if words and words[0] == "graduate"]


def test_its_policy_holds() -> None:
    (text,) = blocks("yaml")
    assert policy_file.loads(text).routes["tickets"].mode == "dark_launch"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_its_commands_have_these_options(words: list[str]) -> None:
    names = [w for w in words[1:] if not w.startswith("-")][: 1 if words[1] == "up" else 2]
    done = CliRunner().invoke(graduate.app, [*names, "--help"])
    assert done.exit_code == 0, done.output
    for option in (w for w in words if w.startswith("--")):
        assert option in done.output


@pytest.mark.parametrize("target", ["demo", "test", "install", "check"])
def test_its_make_targets_exist(target: str) -> None:
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_its_links_and_pictures_are_there() -> None:
    for place in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / place).exists(), place


def test_the_changelog_is_of_this_version() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()

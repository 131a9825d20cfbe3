"""Policy files: YAML text to a checked `Policy`, with errors that name file, line, key path and what is allowed.

Reads files and nothing else; what keys mean is in `policy`, when to read again is the app's business.
"""

import difflib
import hashlib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from router.difficulty import DifficultyModel, load_model
from router.errors import PolicyError, Problem
from router.policy import DEFAULT, Gates, Policy, Rollouts, judge_of

KeyPath = tuple[str | int, ...]
M = typing.TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: `on`, `off`, `yes` and `no` stay words, and a key given twice is an error."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy with its rollouts laid over it, and the digest that records carry."""

    policy: Policy
    rollouts: Rollouts
    digest: str
    source: str
    difficulty: Mapping[str, DifficultyModel] = field(default_factory=dict)
    """Scored difficulty models that routes name, by name."""
    deciding_headers: tuple[str, ...] = ()
    """Request headers that decisions depend on, in lower case."""


def _lines(node: yaml.Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Key paths of a composed document with the line, from 1, that each stands on."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            for below, line in _lines(value, (*path, key.value)):
                yield below, key.start_mark.line + 1 if len(below) == len(path) + 1 else line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index))


def _duplicate_keys(node: yaml.Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield (*path, key.value), key.start_mark.line + 1
            seen.add(key.value)
            yield from _duplicate_keys(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicate_keys(value, (*path, index))


def _fields_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Keys that are allowed beside the last element of `path`, [] when the place takes any."""
    at: Any = model
    for part in path[:-1]:
        if isinstance(at, type) and issubclass(at, BaseModel):
            if isinstance(part, int):
                continue  # an item of a list of these
            by_key = {f.alias or name: f for name, f in at.model_fields.items()}
            at = by_key[str(part)].annotation if str(part) in by_key else None
        else:
            at = (typing.get_args(at) or (None,))[-1]
        inner = [a for a in typing.get_args(at) if isinstance(a, type) and issubclass(a, BaseModel)]
        if typing.get_origin(at) is not dict and inner:
            at = inner[0]
    if isinstance(at, type) and issubclass(at, BaseModel):
        return sorted(f.alias or name for name, f in at.model_fields.items())
    return []


def _allowed(error: ErrorDetails, model: type[BaseModel], path: KeyPath) -> str:
    if error["type"] == "extra_forbidden":
        names = _fields_at(model, path)
        near = difflib.get_close_matches(str(path[-1]), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key; {hint}allowed: {', '.join(names)}"
    if error["type"] == "missing":
        return "missing key"
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
    return message[0].lower() + message[1:]


def _problems(
    failure: ValidationError, model: type[BaseModel], lines: dict[KeyPath, int], data: Any
) -> Iterator[Problem]:
    for error in failure.errors(include_url=False):
        path: KeyPath = tuple(error["loc"])
        named = error.get("ctx", {}).get("key", "") if error["type"] == "at_key" else ""
        path += tuple(named.split(".")) if named else ()
        at: Any = data
        shown: list[str | int] = []
        for part in path:  # pydantic puts names of union members in `loc`: keep what the file has
            try:
                at = at[part]
            except (LookupError, TypeError):
                continue
            shown.append(part)
        if error["type"] == "missing" or (named and shown[-1:] != [path[-1]]):
            shown.append(path[-1])
            at = None
        line_path = tuple(shown)
        while line_path and line_path not in lines:
            line_path = line_path[:-1]
        value = None if error["type"] in ("missing", "extra_forbidden") else error["input"]
        value = at if named else value
        yield Problem(
            line=lines.get(line_path, 1),
            key=".".join(str(p) for p in shown) or "(file)",
            value=value,
            allowed=_allowed(error, model, path),
        )


def _told_once(problems: Iterable[Problem]) -> list[Problem]:
    """One problem a key: what several forms of a value allow is joined, and a list is not blamed for its items."""
    found: dict[str, Problem] = {}
    for problem in problems:
        known = found.get(problem.key)
        if known is not None:
            problem = replace(problem, allowed=f"{known.allowed}, or {problem.allowed}")
        found[problem.key] = problem
    return [p for p in found.values() if not any(k.startswith(f"{p.key}.") for k in found)]


def _parse(text: str, source: str, model: type[BaseModel]) -> tuple[Any, dict[KeyPath, int]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
        lines = dict(_lines(node)) if node is not None else {}
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as why:
        mark = getattr(why, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise PolicyError(
            source, [Problem(line, "(file)", None, f"not YAML: {getattr(why, 'problem', why)}")]
        ) from why
    if node is None or not isinstance(data, dict):
        raise PolicyError(
            source, [Problem(1, "(file)", None, "allowed: a mapping; the file is empty or a list")]
        )
    twice = [
        Problem(line, ".".join(map(str, path)), None, "the key is given twice")
        for path, line in _duplicate_keys(node)
    ]
    if twice:
        raise PolicyError(source, twice)
    try:
        return model.model_validate(data), lines
    except ValidationError as why:
        raise PolicyError(source, _told_once(_problems(why, model, lines, data))) from why


def parse(path: Path, model: type[M]) -> M:
    """A file of ours as its model.

    Raises:
        PolicyError: it cannot be read, or does not hold; every problem with its line, key path, value and what is allowed.
    """
    found, _ = _parse(_read(path), str(path), model)
    return found  # type: ignore[no-any-return]


def _dangling(policy: Policy) -> Iterator[tuple[KeyPath, str, str]]:
    """Names that point at nothing, or at two things: key path, value, what is allowed."""
    backends = sorted(policy.backends)
    allowed = f"no such backend; allowed: {', '.join(backends)}"
    if policy.default.teacher.backend not in policy.backends:
        yield ("default", "teacher", "backend"), policy.default.teacher.backend, allowed
    if DEFAULT in policy.routes:  # its records and counts would be the other requests' too
        yield ("routes", DEFAULT), DEFAULT, "another name: this is the name of what meets no route"
    for name, route in policy.routes.items():
        if route.teacher.backend not in policy.backends:
            yield ("routes", name, "teacher", "backend"), route.teacher.backend, allowed
        if route.student and route.student.backend not in policy.backends:
            yield ("routes", name, "student", "backend"), route.student.backend, allowed
        yield from _bad_judge(policy, name)


def _bad_judge(policy: Policy, name: str) -> Iterator[tuple[KeyPath, str, str]]:
    """A judge that cannot be asked: no such backend, one of another dialect, or no model."""
    rule = policy.routes[name].answer.compare
    if rule.comparator != "judge":
        return
    backend, model = judge_of(policy.routes[name])
    able = sorted(n for n, one in policy.backends.items() if one.kind == "openai")
    key: KeyPath = ("routes", name, "answer", "compare")
    place = "judge" if rule.judge else "comparator"
    if backend not in able:
        yield (*key, place), backend, f"backends of kind openai: {', '.join(able) or 'none'}"
    elif model is None:
        yield (*key, place), "no model", "judge: {model: NAME}; the teacher's model is the caller's"


def loads(text: str, source: str = "policy.yaml") -> Policy:
    """The policy that `text` holds.

    Raises:
        PolicyError: with every problem found, each with its line, key path, value and what is allowed.
    """
    policy, lines = _parse(text, source, Policy)
    problems = [
        Problem(lines.get(path, 1), ".".join(map(str, path)), value, allowed)
        for path, value, allowed in _dangling(policy)
    ]
    if problems:
        raise PolicyError(source, problems)
    assert isinstance(policy, Policy)
    return policy


def loads_rollouts(text: str, policy: Policy, source: str = "rollouts.yaml") -> Rollouts:
    """The monitor's rollouts that `text` holds, every route of them known to `policy`.

    A route that the policy has dropped is ignored, not refused: people may remove a route while the
    monitor still writes its state.

    Raises:
        PolicyError: as `loads`.
    """
    if not re.sub(r"(?m)^\s*#.*$", "", text).strip():  # empty, or comments only
        return Rollouts(version=1)
    rollouts, _ = _parse(text, source, Rollouts)
    assert isinstance(rollouts, Rollouts)
    known = {name: state for name, state in rollouts.routes.items() if name in policy.routes}
    return Rollouts(version=1, routes=known)


def digest_of(policy: Policy, rollouts: Rollouts) -> str:
    """First 16 hex digits of the SHA-256 of both files' meaning; comments and order do not count."""
    body = [policy.model_dump(mode="json", by_alias=True), rollouts.model_dump(mode="json")]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def load(
    path: Path, rollouts_path: Path | None = None, difficulty_folder: Path | None = None
) -> LoadedPolicy:
    """Both files and the difficulty models that routes name, read and checked together.

    Args:
        difficulty_folder: where difficulty models lie. Given by the router, for which the other files that the policy
            names (`keys.file`, from the policy's folder) must be there too; the monitor and training read neither.

    Raises:
        PolicyError: a file cannot be read, or does not hold.
    """
    text_of_policy = _read(path)
    policy = loads(text_of_policy, str(path))
    text = ""
    if rollouts_path is not None and rollouts_path.exists():
        text = _read(rollouts_path)
    rollouts = loads_rollouts(text, policy, str(rollouts_path))
    models: dict[str, DifficultyModel] = {}
    if difficulty_folder is not None:
        models, problems = _models(policy, difficulty_folder)
        problems += _keys_file(policy, path)
        if problems:
            raise PolicyError(str(path), _with_lines(text_of_policy, problems))
    digest = digest_of(policy, rollouts)
    return LoadedPolicy(policy, rollouts, digest, str(path), models, _deciding_headers(policy))


def _deciding_headers(policy: Policy) -> tuple[str, ...]:
    found: set[str] = set()
    for route in policy.routes.values():
        for match in (route.match, *route.segments.values()):
            found.update(name.lower() for name in match.header)
        if route.canary.sticky.startswith("header:"):
            found.add(route.canary.sticky.removeprefix("header:").lower())
    return tuple(sorted(found))


def _models(
    policy: Policy, folder: Path
) -> tuple[dict[str, DifficultyModel], list[tuple[KeyPath, str, str]]]:
    models: dict[str, DifficultyModel] = {}
    problems: list[tuple[KeyPath, str, str]] = []
    for route_name, route in policy.routes.items():
        if route.hybrid.difficulty is None:
            continue
        name = route.hybrid.difficulty.model
        file = folder / f"{name}.json"
        key: KeyPath = ("routes", route_name, "hybrid", "difficulty", "model")
        if not file.exists():
            problems.append((key, name, f"no such model: {file} is not there"))
            continue
        try:
            models[name] = load_model(file)
        except PolicyError as why:
            problems.append((key, name, f"{file}: {why.problems[0].allowed}"))
    return models, problems


def _keys_file(policy: Policy, path: Path) -> list[tuple[KeyPath, str, str]]:
    if policy.keys is None:
        return []
    file = path.parent / policy.keys.file
    if file.is_file():
        return []
    return [(("keys", "file"), policy.keys.file, f"no such file: {file} is not there")]


def _with_lines(text: str, problems: Iterable[tuple[KeyPath, str, str]]) -> list[Problem]:
    """Problems of a policy that holds in itself, with the lines that their keys stand on."""
    node = yaml.compose(text, Loader=_Loader)
    lines = dict(_lines(node)) if node is not None else {}
    return [
        Problem(lines.get(path, 1), ".".join(map(str, path)), value, allowed)
        for path, value, allowed in problems
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as why:
        raise PolicyError(
            str(path), [Problem(1, "(file)", None, f"cannot be read: {why.strerror}")]
        ) from why
    except UnicodeDecodeError as why:
        raise PolicyError(str(path), [Problem(1, "(file)", None, "not UTF-8 text")]) from why


def dump(policy: Policy) -> str:
    """YAML that loads to an equal policy."""
    data = policy.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump({"version": 1, **data}, sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """JSON Schema of `policy.yaml`, for editors."""
    return Policy.model_json_schema(by_alias=True)


def warnings(policy: Policy) -> list[str]:
    """What holds but is probably not meant."""
    found = []
    for name, route in policy.routes.items():
        student = route.student
        rules = {rule.rule for rule in route.guard.rules}
        if "label" in rules and route.answer.kind != "label":
            found.append(
                f"routes.{name}.guard.rules: label refuses every answer of kind {route.answer.kind}; it needs answer.labels"
            )
        if student is None:
            continue
        kind = policy.backends[student.backend].kind
        if route.hybrid.cascade and kind == "lorax" and student.prompt is None:
            found.append(
                f"routes.{name}.hybrid.cascade: without student.prompt LoRAX gives no confidence, "
                "and every answer falls to the teacher"
            )
        if student.version == "latest" and route.mode in ("canary", "student"):
            found.append(
                f"routes.{name}.student.version: latest changes the student when a version is published; pin one"
            )
        if route.mode == "canary" and route.canary.gates == Gates():
            found.append(
                f"routes.{name}.canary.gates: none set: nothing can show that the student may have more, "
                "and it stays on its first step"
            )
    return found

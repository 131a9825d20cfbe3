"""Makes README.md's table of values and values.schema.json from the comments of values.yaml.

Every value has a comment `# -- text`, and where its default does not say what is allowed, `@schema {JSON Schema}` at
the comment's end. A comment on a mapping whose own keys have comments is a heading. Run again after every change:

    python helm/graduate/tools/generate.py            # writes both
    python helm/graduate/tools/generate.py --check    # status 1 when one of them is not what it would be
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
_COMMENT = re.compile(r"^(\s*)# -- (.*?)(?:\s*@schema (.*))?$")
_KEY = re.compile(r"^(\s*)([A-Za-z0-9_.-]+):(?:\s|$)")


@dataclass(frozen=True, slots=True)
class Value:
    """One documented value."""

    path: tuple[str, ...]
    text: str
    schema: dict[str, Any] | None


def documented(text: str) -> dict[tuple[str, ...], Value]:
    """Key paths of values.yaml that have a comment.

    Raises:
        ValueError: a comment that no key follows, or whose schema is not JSON.
    """
    found: dict[tuple[str, ...], Value] = {}
    stack: list[tuple[int, str]] = []
    waiting: tuple[str, dict[str, Any] | None] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if comment := _COMMENT.match(line):
            if waiting is not None:
                raise ValueError(f"values.yaml:{number}: the comment before describes nothing")
            waiting = comment[2], json.loads(comment[3]) if comment[3] else None
        elif waiting is not None or not line.lstrip().startswith(("#", "-")):
            key = _KEY.match(line)
            if key is None:
                continue
            indent = len(key[1])
            while stack and stack[-1][0] >= indent:
                stack.pop()
            stack.append((indent, key[2]))
            if waiting is not None:
                path = tuple(name for _, name in stack)
                found[path] = Value(path, *waiting)
                waiting = None
    return found


def leaves(
    values: Any, docs: dict[tuple[str, ...], Value], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Key paths that the table has a line for, with their defaults."""
    for key, default in values.items():
        here = (*path, key)
        is_section = isinstance(default, dict) and any(
            p[: len(here)] == here and len(p) > len(here) for p in docs
        )
        if is_section:
            yield from leaves(default, docs, here)
        else:
            yield here, default


def schema_of(
    values: dict[str, Any], docs: dict[tuple[str, ...], Value], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """JSON Schema of one mapping of values."""
    properties: dict[str, Any] = {}
    known = {p for p, _ in leaves(values, docs, path)}
    for key, default in values.items():
        here = (*path, key)
        doc = docs.get(here)
        if here in known:
            if doc is None:
                raise ValueError(f"values.yaml: {'.'.join(here)} has no comment `# -- …`")
            properties[key] = {"description": doc.text, **_typed(default, doc.schema)}
        else:
            properties[key] = schema_of(default, docs, here)
            if doc is not None:
                properties[key] = {"description": doc.text, **properties[key]}
    if not path:
        properties["global"] = {"type": "object", "description": "Left to a parent chart."}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _typed(default: Any, given: dict[str, Any] | None) -> dict[str, Any]:
    if given and ("$ref" in given or "type" in given or "enum" in given):
        return given
    kinds = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return {"type": kinds[type(default)], **(given or {})}


def _definitions() -> dict[str, Any]:
    text = {"type": "string"}
    free = {"type": "object"}
    objects = {"type": "array", "items": free}
    texts = {"type": "object", "additionalProperties": text}

    def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
        shape = {"type": "object", "additionalProperties": False, "properties": properties}
        return {**shape, "required": list(required)} if required else shape

    image = closed(
        registry=text,
        repository={"type": "string", "minLength": 1},
        tag=text,
        digest={"type": "string", "pattern": "^(|sha256:[0-9a-f]{64})$"},
    )
    persistence = closed(
        enabled={"type": "boolean"}, size=text, storageClassName=text, annotations=texts, existingClaim=text,
        accessModes={"type": "array", "items": {"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]}, "minItems": 1},
    )  # fmt: skip
    value = {"type": ["string", "number", "boolean"]}
    flags = {
        "type": "object",
        "additionalProperties": {"anyOf": [value, {"type": "array", "items": value}]},
    }
    pod = closed(
        annotations=texts, labels=texts, nodeSelector=texts, tolerations=objects, affinity=free,
        topologySpreadConstraints=objects, priorityClassName=text, runtimeClassName=text, schedulerName=text,
        podSecurityContext=free, securityContext=free, extraEnv=objects, extraEnvFrom=objects, extraVolumes=objects,
        extraVolumeMounts=objects, extraContainers=objects, extraInitContainers=objects, hostAliases=objects,
        serviceAccount=closed(create={"type": "boolean"}, name=text, annotations=texts),
    )  # fmt: skip
    engine = closed(
        ("name", "model"),
        name={"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$"}, model={"type": "string", "minLength": 1},
        replicas={"type": "integer", "minimum": 0}, image={"$ref": "#/$defs/image"}, flags={"$ref": "#/$defs/flags"},
        startupSeconds={"type": "integer"}, shmSize=text, persistence={"$ref": "#/$defs/persistence"},
        resources={"$ref": "#/$defs/resources"}, pod={"$ref": "#/$defs/pod"},
    )  # fmt: skip
    quantities = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
    return {
        "image": image, "persistence": persistence, "flags": flags, "pod": pod, "free": free, "objects": objects,
        "resources": closed(requests=quantities, limits=quantities, claims=objects),
        "engines": {"type": "array", "minItems": 1, "items": engine},
        "pullSecrets": {"type": "array", "items": closed(("name",), name=text)},
        "ingressHosts": {"type": "array", "items": closed(("host", "paths"), host=text, paths={"type": "array", "items": text, "minItems": 1})},
        "ingressTls": {"type": "array", "items": closed(secretName=text, hosts={"type": "array", "items": text})},
    }  # fmt: skip


def schema(text: str) -> str:
    """values.schema.json."""
    body = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart graduate",
        **schema_of(yaml.safe_load(text), documented(text)),
        "$defs": _definitions(),
    }
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def table(text: str) -> str:
    """The README's table, a heading for each first key."""
    docs = documented(text)
    lines: list[str] = []
    section = None
    for path, default in leaves(yaml.safe_load(text), docs):
        head = path[0] if len(path) > 1 else "(top)"
        if head != section:
            section = head
            title = "Everything" if head == "(top)" else f"`{head}`"
            lines += ["", f"### {title}", "", "| value | what it is | default |", "|---|---|---|"]
        shown = json.dumps(default, ensure_ascii=False)
        shown = shown if len(shown) <= 90 else "see values.yaml"
        lines.append(f"| `{'.'.join(path)}` | {docs[path].text.replace('|', '/')} | `{shown}` |")
    return "\n".join(lines).strip() + "\n"


def readme(old: str, text: str) -> str:
    """The README with its table made anew.

    Raises:
        ValueError: the README has no place for the table.
    """
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(text)}\n{END}{after}"


def main() -> int:
    """Write, or check with --check."""
    text = (CHART / "values.yaml").read_text()
    target = CHART / "README.md"
    made = {CHART / "values.schema.json": schema(text), target: readme(target.read_text(), text)}
    stale = [path for path, new in made.items() if not path.exists() or path.read_text() != new]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(
                f"{path} is not what values.yaml makes of it: run {Path(__file__).name}\n"
            )
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Policy files: what a bad one is told, line and key; what a good one survives."""

import json
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from router import policy_file
from router.errors import PolicyError, Problem
from router.policy import Policy
from router.policy_file import digest_of, dump, loads, loads_rollouts
from tests.router.conftest import policy_text

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "policies").glob("*.yaml"))
GOOD = """\
version: 1
backends:
  up: {kind: openai, base_url: 'https://up.example/v1'}
routes:
  mail:
    teacher: {backend: up}
    student: {backend: up, adapter: mail, version: 1}
    mode: teacher
default: {teacher: {backend: up}}
"""


def only_problem(text: str) -> Problem:
    with pytest.raises(PolicyError) as caught:
        loads(text, "p.yaml")
    (problem,) = caught.value.problems
    return problem


ROUTE = "    mode: teacher\n"
IN_ROUTE = [
    ("answer: {kind: label}", "answer.labels", None, "needs labels"),
    ("answer: {kind: json, schema: {type: nonsense}}", "answer.schema", {"type": "nonsense"}, "JSON Schema"),
    ("answer: {kind: json, schema: [1]}", "answer.schema", [1], "mapping"),
    ("answer: {kind: json, compare: {comparator: rouge_l}}", "answer.compare.comparator", "rouge_l", "auto, json, exact"),
    ("answer: {kind: label, labels: [a], compare: {comparator: judge}}", "answer.compare.comparator", "judge", "auto, label"),
    ("answer: {compare: {comparator: guess}}", "answer.compare.comparator", "guess", "'embedding' or 'judge'"),
    ("answer: {compare: {judge: {per_day: 9}}}", "answer.compare.judge", {"per_day": 9}, "nobody asks it under comparator auto"),
    ("answer: {compare: {comparator: judge}}", "answer.compare.comparator", "no model", "the teacher's model is the caller's"),
    ("answer: {compare: {comparator: judge, judge: {model: m, backend: nope}}}", "answer.compare.judge", "nope", "of kind openai: up"),
    ("answer: {compare: {comparator: judge, judge: {model: m, per_day: 0}}}", "answer.compare.judge.per_day", 0, "or equal to 1"),
    ("answer: {kind: poem}", "answer.kind", "poem", "'label', 'json', 'tool_call' or 'text'"),
    ("answer: {compare: {threshold: 1.5}}", "answer.compare.threshold", 1.5, "share from 0 to 1"),
    ("canary: {steps: [10%, 5%]}", "canary.steps", ["10%", "5%"], "grow"),
    ("canary: {steps: []}", "canary.steps", [], "at least 1 item"),
    ("canary: {steps: [110%]}", "canary.steps.0", "110%", "share from 0 to 1"),
    ("canary: {sticky: 'header:'}", "canary.sticky", "header:", "user|conversation|request"),
    ("canary: {hold: 60}", "canary.hold", 60, "duration with its unit"),
    ("canary: {hold: -1s}", "canary.hold", "-1s", "duration with its unit"),
    ("canary: {hold: soon}", "canary.hold", "soon", "duration with its unit"),
    ("canary: {approval: maybe}", "canary.approval", "maybe", "'automatic' or 'manual'"),
    ("canary: {give_up_after: {requests: 0}}", "canary.give_up_after.requests", 0, "greater than or equal to 1"),
    ("canary: {give_up_after: 30d}", "canary.give_up_after", "30d", "GiveUp"),
    ("canary: {stale_after: 0s}", "canary.stale_after", 0.0, "greater than 0"),
    ("canary: {confirm: [{url: 'ftp://x'}]}", "canary.confirm.0.url", "ftp://x", "pattern"),
    ("canary: {confirm: [{url: 'http://x', timeout: 2m}]}", "canary.confirm.0.timeout", 120.0, "less than or equal to 60"),
    ("canary: {notify: [{url: 'http://x', kind: pager}]}", "canary.notify.0.kind", "pager", "'webhook' or 'alertmanager'"),
    ("canary: {notify: [{url: 'http://x', secret: s}]}", "canary.notify.0.secret", None, "did you mean 'secret_env'?"),
    ("canary: {audit: true}", "canary.audit", True, "share from 0 to 1"),
    ("canary: {audit: .nan}", "canary.audit", None, "share from 0 to 1"),
    ("canary: {gates: {disagreement: {max: 6}}}", "canary.gates.disagreement.max", 6, "share from 0 to 1"),
    ("canary: {gates: {latency_p95: {max_ratio: 0}}}", "canary.gates.latency_p95.max_ratio", 0, "greater than 0"),
    ("guard: {rules: [nope]}", "guard.rules.0", "nope", "'not_empty'"),
    ("guard: {rules: [not_empty, {max_chars: x}]}", "guard.rules.1", {"rule": "max_chars", "value": "x"}, "number"),
    ("guard: {rules: [{max_chars: -1}]}", "guard.rules.0", {"rule": "max_chars", "value": -1}, "0 or more"),
    ("guard: {rules: [{not_empty: 1}]}", "guard.rules.0", {"rule": "not_empty", "value": 1}, "no value"),
    ("guard: {rules: [{forbid: '('}]}", "guard.rules.0", {"rule": "forbid", "value": "("}, "regular expression"),
    ("guard: {rules: [{http: 'ftp://x'}]}", "guard.rules.0", {"rule": "http", "value": "ftp://x"}, "http://"),
    ("log: {redact: ['(']}", "log.redact.0", "(", "regular expression"),
    ("match: {system_prompt: '/(/'}", "match.system_prompt", "/(/", "regular expression"),
    ("match: {modle: x}", "match.modle", None, "did you mean 'model'?"),
    ("segments: {a: {modle: x}}", "segments.a.modle", None, "did you mean 'model'?"),
    ("guards: {}", "guards", None, "did you mean 'guard'?"),
    ("dark_launch: {max_per_minute: 0}", "dark_launch.max_per_minute", 0, "greater than or equal to 1"),
    ("hybrid: {easy_if: {languages: en}}", "hybrid.easy_if.languages", "en", "a list"),
    ("hybrid: {difficulty: {max: 0.5}}", "hybrid.difficulty.model", None, "missing"),
    ("hybrid: {difficulty: {model: ../x, max: 0.5}}", "hybrid.difficulty.model", "../x", "pattern"),
    ("fallback: {on: [rain]}", "fallback.on.0", "rain", "'error', 'timeout', 'overload' or 'guard'"),
    ("flags: {per_hour: 1.5}", "flags.per_hour", 1.5, "integer"),
    ("answer:\n      kind: json\n      compare:\n        comparator: label", "answer.compare.comparator", "label", "auto, json, exact"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key", "value", "allowed"), IN_ROUTE, ids=[c[0][:60] for c in IN_ROUTE]
)
def test_a_bad_value_in_a_route_names_line_key_and_what_is_allowed(
    text: str, key: str, value: object, allowed: str
) -> None:  # fmt: skip
    problem = only_problem(GOOD.replace(ROUTE, f"{ROUTE}    {text}\n"))
    assert problem.key == f"routes.mail.{key}"
    assert problem.line == 9 + text.count("\n")
    assert allowed in problem.allowed
    if ".nan" not in text:
        assert problem.value == value


IN_FILE = [
    ("version: 1\n", "version: 2\n", 1, "version", "input should be 1"),
    ("version: 1\n", "", 1, "version", "missing"),
    ("kind: openai, ", "", 3, "backends.up.kind", "missing"),
    ("kind: openai", "kind: azure", 3, "backends.up.kind", "'openai' or 'lorax'"),
    ("https://up.example/v1", "up.example", 3, "backends.up.base_url", "pattern"),
    ("v1'}", "v1', retries: {attempts: 0}}", 3, "backends.up.retries.attempts", "greater than or equal to 1"),
    ("v1'}", "v1', retries: {on: [418]}}", 3, "backends.up.retries.on.0", "'429' or '5xx'"),
    ("v1'}", "v1', timeout: {conect: 1s}}", 3, "backends.up.timeout.conect", "did you mean 'connect'?"),
    ("v1'}", "v1', price: {input: -1}}", 3, "backends.up.price.input", "greater than or equal to 0"),
    ("mail:\n    teacher: {backend: up}", "mail:\n    teacher: {backend: upp}", 6, "routes.mail.teacher.backend", "no such backend; allowed: up"),
    ("student: {backend: up", "student: {backend: no", 7, "routes.mail.student.backend", "no such backend; allowed: up"),
    ("default: {teacher: {backend: up}}", "default: {teacher: {backend: no}}", 9, "default.teacher.backend", "no such backend"),
    ("adapter: mail", "adapter: ../mail", 7, "routes.mail.student.adapter", "pattern"),
    ("version: 1}", "version: newest}", 7, "routes.mail.student.version", "latest"),
    ("version: 1}", "version: 0}", 7, "routes.mail.student.version", "greater than or equal to 1"),
    ("version: 1}", "prompt: '{inptu}'}", 7, "routes.mail.student.prompt", "conversation, input, system"),
    ("version: 1}", "prompt: '{'}", 7, "routes.mail.student.prompt", "'{'"),
    ("    student: {backend: up, adapter: mail, version: 1}\n    mode: teacher", "    mode: canary", 7, "routes.mail.mode", "needs a student"),
    ("mode: teacher", "mode: teacher\n    mode: student", 9, "routes.mail.mode", "given twice"),
    ("mode: teacher", "mode: off", 8, "routes.mail.mode", "'dark_launch'"),
    ("mail:\n", "default:\n", 5, "routes.default", "another name"),
    ("default:", "defualt: 1\ndefault:", 9, "defualt", "did you mean 'default'?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "allowed"), IN_FILE, ids=[c[1][:60] for c in IN_FILE]
)
def test_a_bad_file_names_line_key_and_what_is_allowed(
    old: str, new: str, line: int, key: str, allowed: str
) -> None:  # fmt: skip
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(PolicyError) as caught:
        loads(text, "p.yaml")
    problem = caught.value.problems[0]
    assert (problem.line, problem.key) == (line, key)
    assert allowed in problem.allowed
    assert f"p.yaml: line {line}: {key}" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "# only a comment", "[]", "a", "1", "null", "{", "\t- x", "a: b: c", "a: &x [*x]", "? {a: b}\n: c",
             "? [a]\n: c", "x: !!python/object:os.system {}", "\x00", "a: 2026-13-40", "version: 1" + "0" * 5000, "[" * 2000,
             "---\nversion: 1\n---\nversion: 1\n", "1: 2", "<<: 1", "a: !!binary '='", "backends: {up: null}"],
)  # fmt: skip
def test_what_is_no_policy_at_all_is_refused_not_crashed_on(text: str) -> None:
    with pytest.raises(PolicyError, match=r"p\.yaml: line \d+: "):
        loads(text, "p.yaml")


def test_all_problems_are_told_at_once() -> None:
    text = GOOD.replace("mode: teacher", "mode: nope\n    flags: {per_hour: 0}\n    colour: red")
    with pytest.raises(PolicyError) as caught:
        loads(text)
    assert [p.line for p in caught.value.problems] == [8, 9, 10]


def test_yaml_words_stay_words_and_429_may_be_a_number() -> None:
    text = GOOD.replace("v1'}", "v1', retries: {on: [429, 5xx]}}")
    text = text.replace(ROUTE, f"{ROUTE}    flags: {{feedback: off}}\n")
    policy = loads(text)
    assert policy.backends["up"].retries.on == ("429", "5xx")
    assert policy.routes["mail"].flags.feedback == "off"


# Files beside the policy


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def problem_of(path: Path, folder: Path | None) -> Problem:
    with pytest.raises(PolicyError) as caught:
        policy_file.load(path, None, folder)
    assert caught.value.source == str(path)
    (problem,) = caught.value.problems
    return problem


def test_a_keys_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "keys:\n  file: keys.yaml\n")
    problem = problem_of(path, tmp_path)
    assert (problem.line, problem.key, problem.value) == (11, "keys.file", "keys.yaml")
    assert str(tmp_path / "keys.yaml") in problem.allowed
    (tmp_path / "keys.yaml").write_text("keys: []")
    assert policy_file.load(path, None, tmp_path).policy.keys is not None


def test_a_difficulty_model_that_is_not_there_or_broken_is_refused_at_its_key(
    tmp_path: Path,
) -> None:
    route = f"{ROUTE}    hybrid:\n      difficulty:\n        model: hard\n        max: 0.5\n"
    path = written(tmp_path, GOOD.replace(ROUTE, route))
    folder = tmp_path / "difficulty"
    problem = problem_of(path, folder)
    assert (problem.line, problem.key) == (11, "routes.mail.hybrid.difficulty.model")
    assert (problem.value, str(folder / "hard.json") in problem.allowed) == ("hard", True)
    folder.mkdir()
    model = folder / "hard.json"
    model.write_text('{"features": 2, "name": "hard"}')
    problem = problem_of(path, folder)
    assert (problem.line, problem.key) == (11, "routes.mail.hybrid.difficulty.model")
    assert "bias" in problem.allowed or "buckets" in problem.allowed
    model.write_text(
        json.dumps({"features": 2, "name": "hard", "bias": 0, "buckets": 8, "weights": {"1": 2}})
    )
    assert set(policy_file.load(path, None, folder).difficulty) == {"hard"}
    assert not policy_file.load(path).difficulty


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert "No such file" in problem_of(tmp_path / "none.yaml", None).allowed
    assert "directory" in problem_of(tmp_path, None).allowed
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("version: 1 # \xe9".encode("latin-1"))
    assert "UTF-8" in problem_of(latin, None).allowed


def test_rollouts_are_laid_over_and_dropped_routes_ignored(tmp_path: Path) -> None:
    policy = loads(GOOD)
    text = "version: 1\nroutes: {mail: {share: 10%, step: 1}, gone: {share: 1}}\n"
    rollouts = loads_rollouts(text, policy)
    assert {n: r.share for n, r in rollouts.routes.items()} == {"mail": 0.1}
    assert loads_rollouts("# nothing yet\n", policy).routes == {}
    with pytest.raises(PolicyError) as caught:
        loads_rollouts("version: 1\nroutes:\n  mail: {share: 2}\n", policy, "r.yaml")
    assert (caught.value.problems[0].line, caught.value.problems[0].key) == (3, "routes.mail.share")


def test_the_digest_is_that_of_the_meaning() -> None:
    policy = loads(GOOD)
    none = loads_rollouts("", policy)
    same = loads("# comment\n" + GOOD.replace("{backend: up}", "{'backend': \"up\"}"))
    assert digest_of(policy, none) == digest_of(same, none)
    other = loads(GOOD.replace("version: 1}", "version: 2}"))
    moved = loads_rollouts("version: 1\nroutes: {mail: {share: 0.5}}\n", policy)
    assert len({digest_of(policy, none), digest_of(other, none), digest_of(policy, moved)}) == 3


# Examples, schema, round trip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_holds_and_fits_the_json_schema(path: Path, tmp_path: Path) -> None:
    assert policy_file.load(path, None, tmp_path).policy.routes
    schema = policy_file.json_schema()
    data = yaml.load(path.read_text(), Loader=policy_file._Loader)
    assert [e.message for e in jsonschema_rs.validator_for(schema).iter_errors(data)] == []


def test_the_json_schema_refuses_what_the_policy_refuses() -> None:
    validator = jsonschema_rs.validator_for(policy_file.json_schema())
    good = yaml.safe_load(GOOD)
    assert validator.is_valid(good)
    for change in ({"version": 2}, {"colour": "red"}, {"routes": {"mail": {}}}, {"default": {}}):
        assert not validator.is_valid({**good, **change})
    rules = [["not_empty"], [{"max_chars": 5}], [{"rule": "label"}], ["nope"], [{"max_chars": "x"}]]
    for rule, holds in zip(rules, (True, True, True, False, False), strict=True):
        route = {**good["routes"]["mail"], "guard": {"rules": rule}}
        assert validator.is_valid({**good, "routes": {"mail": route}}) is holds


def test_the_reference_names_every_key_of_a_route() -> None:
    (path,) = [p for p in EXAMPLES if p.stem == "reference"]
    (route,) = yaml.safe_load(path.read_text())["routes"].values()
    assert set(route) == set(policy_file.json_schema()["$defs"]["Route"]["properties"])


SHARES = st.one_of(
    st.floats(0, 1).map(lambda x: round(x, 6)), st.integers(0, 100).map("{}%".format)
)
DURATIONS = st.builds("{}{}".format, st.integers(0, 5000), st.sampled_from(["ms", "s", "m", "h", "d"]))  # fmt: skip
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
RULES = st.sampled_from(
    ["not_empty", "no_pii", {"max_chars": 9}, {"forbid": "(?i)no: #"}, {"http": "http://g"}]
)
ROUTES = st.fixed_dictionaries(
    {"teacher": st.just({"backend": "up", "model": "big"})},
    optional={
        "match": st.fixed_dictionaries({}, optional={"model": TEXTS, "metadata": st.dictionaries(TEXTS, TEXTS, max_size=2)}),
        "answer": st.sampled_from([
            {"kind": "label", "labels": ["yes", "no", "off", "1"]},
            {"kind": "json", "schema": {"type": "object"}, "compare": {"fields": ["a"]}},
            {"kind": "text", "compare": {"comparator": "rouge_l", "threshold": "60%"}},
        ]),
        "guard": st.fixed_dictionaries({"rules": st.lists(RULES, max_size=3)}),
        "dark_launch": st.fixed_dictionaries({"share": SHARES}),
        "canary": st.fixed_dictionaries({"hold": DURATIONS, "audit": SHARES, "gates": st.just({"errors": {"max": "1%"}})}),
        "log": st.fixed_dictionaries({"share": SHARES, "redact": st.just(["email", "a+b"])}),
    },
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXTS, ROUTES, max_size=2), DURATIONS)
def test_dump_and_load_are_inverse(routes: dict[str, object], wait: str) -> None:
    backend = {"kind": "openai", "base_url": "http://a/v1", "timeout": {"total": wait}}
    data = {"version": 1, "backends": {"up": backend}, "routes": routes, "default": {"teacher": {"backend": "up"}}}  # fmt: skip
    policy = Policy.model_validate(data)
    text = dump(policy)
    again = loads(text)
    assert again == policy
    assert dump(again) == text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_survives_dump_and_load(path: Path) -> None:
    policy = loads(path.read_text())
    assert loads(dump(policy)) == policy


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ({"guard": {"rules": ["label"]}}, "routes.mail.guard.rules: label refuses every answer of kind text"),
        ({"mode": "student", "student": {"backend": "students", "adapter": "mail"}}, "latest changes the student"),
        ({"mode": "canary"}, "routes.mail.canary.gates: none set"),
        (
            {"hybrid": {"cascade": {"min_confidence": 0.9}}, "student": {"backend": "students", "adapter": "mail"}},
            "without student.prompt LoRAX gives no confidence",
        ),
    ],
)  # fmt: skip
def test_what_holds_but_is_hardly_meant_is_warned_of(route: dict[str, object], said: str) -> None:
    text = yaml.safe_load(policy_text("http://127.0.0.1:1"))
    assert policy_file.warnings(policy_file.loads(yaml.safe_dump(text))) == []
    text["routes"]["mail"] |= route
    found = policy_file.warnings(policy_file.loads(yaml.safe_dump(text)))
    assert any(said in line for line in found), found

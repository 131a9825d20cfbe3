"""One request's way in every mode, through a real router in front of a real upstream."""

import json
import time
from typing import Any

import httpx
import msgspec
import pytest

from router import policy_file
from router.decide import decide
from router.records import Record
from router.wire import parse
from tests.router.conftest import Behaviour, Live, Start


def roles(record: Record) -> list[tuple[str, str]]:
    return [(a.role, a.purpose) for a in record.answers]


def text_of(reply: httpx.Response) -> str:
    content = reply.json()["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def late(record: Record) -> bool:
    return len(record.answers) == 2


def test_the_teacher_answers_and_the_record_says_everything(start: Start) -> None:
    live = start("teacher")
    reply = live.ask(
        "hi", user="ada", metadata={"team": "a"}, headers={"x-graduate-conversation": "c9"}
    )
    assert text_of(reply) == "teacher says"
    assert reply.headers["x-graduate-served-by"] == "teacher"
    assert reply.headers["x-graduate-route"] == "mail"
    assert reply.headers["x-graduate-reason"] == "mode teacher"
    (record,) = live.records()
    assert record.id == reply.headers["x-graduate-request-id"]
    assert (record.route, record.mode, record.arm, record.served_by) == (
        "mail",
        "teacher",
        "teacher",
        "teacher",
    )
    assert (record.user, record.conversation, record.metadata) == ("ada", "c9", {"team": "a"})
    assert record.policy_digest == live.router.state.force.loaded.digest
    (answer,) = record.answers
    assert (answer.text, answer.usage.prompt_tokens, answer.status) == ("teacher says", 10, 200)
    assert answer.cost_usd == pytest.approx((10 * 1 + 2 * 2) / 1e6)
    assert json.loads(bytes(answer.body)) == reply.json()
    assert json.loads(bytes(record.request))["messages"][0]["content"] == "hi"


def test_an_unmatched_request_goes_to_the_default(start: Start) -> None:
    live = start("student")
    reply = live.ask(model="other")
    assert reply.headers["x-graduate-route"] == "default"
    assert text_of(reply) == "teacher says"


def test_a_shadow_settles_under_the_same_id_with_its_comparison(
    start: Start, behaviour: Behaviour
) -> None:
    live = start("dark_launch")
    assert text_of(live.ask()) == "teacher says"
    (record,) = live.records(settled=late)
    assert roles(record) == [("teacher", "reply"), ("student", "shadow")]
    assert record.comparison is not None
    assert record.comparison.agree is False
    assert record.shadow_share == 1.0
    student = record.answer_of("student")
    assert student is not None
    assert student.adapter == "mail/3"
    assert student.confidence == pytest.approx(2.718281828 ** (-0.03 / 2))
    sent = next(json.loads(body) for path, _, body in behaviour.seen if path == "/generate")
    assert sent["inputs"] == "Mail: hello\nAnswer:"
    assert sent["parameters"]["adapter_id"] == "mail/3"
    assert live.metric("graduate_router_comparisons_total") == 1


def test_a_slow_shadow_does_not_hold_the_caller_up(start: Start, behaviour: Behaviour) -> None:
    behaviour.student_delay = 0.4
    live = start("dark_launch")
    began = time.perf_counter()
    live.ask()
    assert time.perf_counter() - began < 0.3
    live.records(settled=late)


def test_shadows_above_the_minutes_number_are_dropped_and_counted(start: Start) -> None:
    live = start("dark_launch", dark_launch={"share": "100%", "max_per_minute": 2})
    for _ in range(5):
        live.ask()
    assert live.metric("graduate_router_shadow_drops_total") == 3


def test_the_teacher_is_asked_again_for_its_noise(start: Start) -> None:
    live = start("dark_launch", dark_launch={"share": "100%", "noise": "100%"})
    live.ask()
    (record,) = live.records(settled=lambda r: len(r.answers) == 3)
    assert sorted(roles(record)) == [
        ("student", "shadow"),
        ("teacher", "noise"),
        ("teacher", "reply"),
    ]


def test_the_student_answers_in_openais_form(start: Start) -> None:
    live = start("student", canary={"audit": 0})
    reply = live.ask()
    assert text_of(reply) == "student says"
    body = reply.json()
    assert (body["object"], body["model"]) == ("chat.completion", "mail")
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    (record,) = live.records()
    assert (record.served_by, roles(record)) == ("student", [("student", "reply")])


def test_an_audit_asks_the_teacher_unseen(start: Start) -> None:
    live = start("student", canary={"audit": "100%"})
    assert text_of(live.ask()) == "student says"
    (record,) = live.records(settled=late)
    assert roles(record) == [("student", "reply"), ("teacher", "audit")]
    assert record.comparison is not None
    assert record.comparison.agree is False


@pytest.mark.parametrize(
    ("change", "rules", "reason"),
    [
        pytest.param({"student": "no"}, [{"min_chars": 5}], "guard min_chars", id="a guard rule fails"),
        pytest.param({"student_status": 424}, [], "status", id="an adapter fails to load"),
        pytest.param({"student_status": 429, "student_error": {"error": "Model is overloaded", "error_type": "overloaded"}}, [], "overload", id="the student is full"),
        pytest.param({"student_delay": 0.8}, [], "timeout", id="the student is slow"),
    ],
)  # fmt: skip
def test_the_teacher_falls_in(
    start: Start, behaviour: Behaviour, change: dict[str, Any], rules: list[Any], reason: str
) -> None:
    for name, value in change.items():
        setattr(behaviour, name, value)
    live = start("student", guard={"rules": rules})
    reply = live.ask()
    assert text_of(reply) == "teacher says"
    assert reply.headers["x-graduate-served-by"] == "teacher"
    assert reason in reply.headers["x-graduate-reason"]
    (record,) = live.records()
    assert roles(record) == [("student", "reply"), ("teacher", "reply")]
    assert live.metric("graduate_router_fallbacks_total") == 1


def test_without_a_fallback_the_caller_gets_an_error_that_names_the_student(
    start: Start, behaviour: Behaviour
) -> None:
    behaviour.student_status = 424
    live = start("student", fallback={"to": "error"})
    reply = live.ask()
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "student_failed"
    (record,) = live.records()
    assert (record.served_by, record.status) == ("none", 502)


def test_a_confident_answer_is_the_students_and_an_unsure_one_the_teachers(
    start: Start, behaviour: Behaviour
) -> None:
    live = start("hybrid", hybrid={"cascade": {"min_confidence": 0.9}}, answer={"kind": "label", "labels": ["student says", "teacher says"]})  # fmt: skip
    assert text_of(live.ask()) == "student says"
    behaviour.logprobs = (-0.5, -0.6)
    reply = live.ask()
    assert text_of(reply) == "teacher says"
    assert "confidence 0.333 < 0.9" in reply.headers["x-graduate-reason"]
    assert live.records(2)[1].comparison is not None


def test_hard_requests_go_to_the_teacher_unasked(start: Start) -> None:
    live = start("hybrid", hybrid={"easy_if": {"max_chars": 10, "not_matching": ["(?i)lawyer"]}})
    assert text_of(live.ask("short")) == "student says"
    assert "not easy: 15 characters > 10" in live.ask("x" * 15).headers["x-graduate-reason"]
    assert "matches (?i)lawyer" in live.ask("my Lawyer").headers["x-graduate-reason"]


def test_what_the_student_cannot_do_goes_to_the_teacher(start: Start) -> None:
    live = start("student")
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert "has tools" in live.ask(tools=tools).headers["x-graduate-reason"]
    assert "n = 2" in live.ask(n=2).headers["x-graduate-reason"]


def test_a_canary_keeps_a_users_arm_and_a_record_recomputes(start: Start) -> None:
    live = start("canary", canary={"steps": ["50%", "100%"], "audit": 0})
    first = {u: live.ask(user=f"u{u}").headers["x-graduate-served-by"] for u in range(30)}
    again = {u: live.ask(user=f"u{u}").headers["x-graduate-served-by"] for u in range(30)}
    assert first == again
    assert set(first.values()) == {"student", "teacher"}
    loaded = policy_file.load(live.policy)
    for record in live.records(60):
        view = parse(record.path, {}, bytes(record.request))
        decision = decide(loaded, view, record.draw)
        assert (decision.arm, decision.propensity) == (record.arm, record.propensity)


def stream(live: Live, **more: Any) -> tuple[httpx.Response, list[dict[str, Any]], bytes]:
    reply = live.ask(stream=True, **more)
    data = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    return reply, [json.loads(d) for d in data if d != "[DONE]"], reply.content


def joined(events: list[dict[str, Any]]) -> str:
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])


@pytest.mark.parametrize("how", ["buffer", "pass"])
def test_a_students_stream_is_openais(start: Start, how: str) -> None:
    live = start("student", guard={"stream": how}, canary={"audit": 0})
    reply, events, content = stream(live, stream_options={"include_usage": True})
    assert joined(events) == "student says"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["usage"]["completion_tokens"] == 2
    assert content.endswith(b"data: [DONE]\n\n")
    assert reply.headers["content-type"].startswith("text/event-stream")
    (record,) = live.records()
    assert record.answers[0].text == "student says"


def test_a_teachers_stream_is_reassembled_in_the_record(start: Start) -> None:
    live = start("teacher")
    _, events, _ = stream(live, stream_options={"include_usage": True})
    assert joined(events) == "teachersays"
    (record,) = live.records()
    assert record.answers[0].text == "teachersays"
    assert record.answers[0].usage.completion_tokens == 2
    assert record.stream


def test_a_stream_that_breaks_is_broken_for_the_caller_and_in_the_record(
    start: Start, behaviour: Behaviour
) -> None:
    behaviour.cut_after = 2
    live = start("teacher")
    with pytest.raises(httpx.RemoteProtocolError):
        live.ask(stream=True)
    (record,) = live.records()
    assert record.answers[0].error == "stream"
    assert record.answers[0].text == "teacher"


def test_text_is_kept_as_the_route_says(start: Start) -> None:
    live = start("teacher", log={"text": False})
    live.ask("secret")
    (record,) = live.records()
    assert not record.request
    assert record.answers[0].text is None
    assert record.answers[0].usage.prompt_tokens == 10
    segment = next((live.home / "traffic").glob("*.jsonl")).read_bytes()
    assert b"secret" not in segment


def test_personal_data_is_redacted_before_it_is_written(start: Start, behaviour: Behaviour) -> None:
    behaviour.teacher = "mail bob@example.org or pay with 4111 1111 1111 1111"
    live = start("teacher", log={"redact": ["email", "credit_card"]})
    assert "bob@example.org" in text_of(live.ask("I am ann@example.com"))
    (record,) = live.records()
    assert b"[EMAIL]" in bytes(record.request)
    assert record.answers[0].text == "mail [EMAIL] or pay with [CREDIT_CARD]"
    segment = next((live.home / "traffic").glob("*.jsonl")).read_bytes()
    assert b"example" not in segment


@pytest.mark.parametrize(
    ("log", "headers"),
    [
        pytest.param({"share": 0}, {}, id="log share 0"),
        pytest.param({}, {"x-graduate-log": "false"}, id="the caller opts out"),
    ],
)
def test_nothing_is_logged(start: Start, log: dict[str, Any], headers: dict[str, str]) -> None:
    live = start("teacher", log=log)
    assert live.ask(headers=headers).status_code == 200
    time.sleep(0.05)
    assert live.records(0) == []
    assert live.metric("graduate_router_requests_total") == 1


def test_a_caller_that_leaves_is_recorded(start: Start, behaviour: Behaviour) -> None:
    behaviour.teacher_delay = 0.6
    live = start("teacher")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{live.url}/v1/chat/completions", timeout=0.2, trust_env=False,
            json={"model": "mail", "messages": [{"role": "user", "content": "x"}]},
        )  # fmt: skip
    (record,) = live.records()
    assert (record.status, record.served_by) == (499, "none")


def test_feedback_lies_over_its_record(start: Start) -> None:
    live = start("teacher")
    request_id = live.ask().headers["x-graduate-request-id"]
    said = live.client.post(
        "/v1/feedback", json={"id": request_id, "thumbs": "down", "correction": "x"}
    )
    assert (said.status_code, said.json()) == (202, {"logged": True})
    (record,) = live.records()
    assert [(f.score, f.correction) for f in record.feedback] == [(0.0, "x")]
    for bad, name in (({"id": "a"}, "give a score"), ({"id": "a", "score": 2}, "score"), ({"id": "a", "score": 1, "z": 1}, "z")):  # fmt: skip
        reply = live.client.post("/v1/feedback", json=bad)
        assert reply.status_code == 400
        assert name in reply.json()["error"]["message"]


def test_an_edit_is_taken_and_a_bad_one_is_not(start: Start) -> None:
    live = start("teacher")
    good = live.policy.read_text()
    live.policy.write_text(good.replace("mode: teacher\n", "mode: student\n", 1))
    until(lambda: text_of(live.ask()) == "student says")
    digest = httpx.get(f"{live.admin}/policy", trust_env=False).json()["digest"]
    for bad in (
        good.replace("mode: teacher", "mode: nonsense"),
        "version: 2024-13-45",
        "a: &a [*a]",
        "",
    ):
        live.policy.write_text(bad)
        until(
            lambda: httpx.get(f"{live.admin}/policy", trust_env=False).json()["error"] is not None
        )
        found = httpx.get(f"{live.admin}/policy", trust_env=False).json()
        assert (found["digest"], text_of(live.ask())) == (digest, "student says")
        assert "policy_error" in httpx.get(f"{live.admin}/ready", trust_env=False).json()
        live.policy.write_text(
            good.replace("mode: teacher\n", "mode: student\n", 1) + f"# {bad[:3]!r}\n"
        )
        until(lambda: httpx.get(f"{live.admin}/policy", trust_env=False).json()["error"] is None)


def test_a_configmaps_symlink_swap_is_seen(start: Start) -> None:
    live = start("teacher")
    text = live.policy.read_text()
    for name, body in (
        ("one", text),
        ("two", text.replace("mode: teacher\n", "mode: student\n", 1)),
    ):
        (live.home / name).mkdir()
        (live.home / name / "policy.yaml").write_text(body)
    live.policy.unlink()
    data = live.home / "..data"
    data.symlink_to("one")
    live.policy.symlink_to("..data/policy.yaml")
    assert text_of(live.ask()) == "teacher says"
    swap = live.home / "..swap"
    swap.symlink_to("two")
    swap.replace(data)
    until(lambda: text_of(live.ask()) == "student says")


def test_rollouts_are_laid_over_the_policy(start: Start) -> None:
    live = start("canary", canary={"steps": ["100%"], "audit": 0})
    assert text_of(live.ask(user="a")) == "student says"
    rollouts = live.home / "rollouts.yaml"
    rollouts.write_text("version: 1\nroutes: {mail: {state: rolled_back, share: 0}}\n")
    until(lambda: text_of(live.ask(user="a")) == "teacher says")
    rollouts.write_text("version: 1\nroutes: {mail: {state: promoted, share: 1, version: 7}}\n")
    until(lambda: text_of(live.ask(user="a")) == "student says")


def test_a_sick_student_is_left_alone_by_its_breaker(start: Start, behaviour: Behaviour) -> None:
    behaviour.student_status = 500
    live = start("student")
    for _ in range(8):
        assert text_of(live.ask()) == "teacher says"
    assert sum(path == "/generate" for path, _, _ in behaviour.seen) == 5
    found = httpx.get(f"{live.admin}/policy", trust_env=False).json()
    assert found["breakers"] == {"up": "closed", "students": "open"}
    assert live.records(8)[-1].answers[0].error == "breaker"


def test_the_callers_key_goes_to_the_teacher_and_never_to_the_student(
    start: Start, behaviour: Behaviour
) -> None:
    live = start("dark_launch")
    live.ask(headers={"authorization": "Bearer sk-caller"})
    live.records(settled=late)
    keys = {path: headers.get("authorization") for path, headers, _ in behaviour.seen}
    assert keys == {"/v1/chat/completions": "Bearer sk-caller", "/generate": None}


def until(is_so: Any, seconds: float = 4.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.02)


def test_a_record_survives_dump_and_load(start: Start) -> None:
    live = start("dark_launch")
    live.ask()
    (record,) = live.records(settled=late)
    again = msgspec.json.decode(msgspec.json.encode(record), type=Record)
    assert again == record


CALL_TEXT = '<tool_call>\n{"name":"look","arguments":{"at":1}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"properties": {"at": {"type": "integer"}}}},
    }
]
CALLS = {"answer": {"kind": "tool_call"}, "guard": {"rules": ["schema", "not_empty"]}}


def test_a_students_call_reaches_the_caller_as_a_call(start: Start, behaviour: Behaviour) -> None:
    behaviour.student = CALL_TEXT
    student = {
        "backend": "students",
        "adapter": "mail",
        "version": 3,
        "prompt": "{tools}\n{input}\n",
    }
    live = start("student", **CALLS, student=student)
    choice = live.ask(tools=TOOLS).json()["choices"][0]
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}  # fmt: skip
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}  # fmt: skip
    assert choice["finish_reason"] == "tool_calls"
    (record,) = live.records()
    assert record.answers[0].tool_calls[0].name == "look"
    sent = next(json.loads(body) for path, _, body in behaviour.seen if path == "/generate")
    assert sent["inputs"] == f"{json.dumps(TOOLS[0]['function'], separators=(',', ':'))}\nhello\n"


def test_a_streamed_call_is_whole_before_it_goes_out(start: Start, behaviour: Behaviour) -> None:
    behaviour.student = CALL_TEXT
    live = start("student", answer={"kind": "tool_call"}, guard={"stream": "pass"})
    lines = live.ask(tools=TOOLS, stream=True).text.split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [e["choices"][0]["delta"] for e in events]
    assert deltas[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at":1}'}
    assert (deltas[1]["tool_calls"][0]["index"], "content" in deltas[1]) == (0, False)
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(CALL_TEXT[:30], "guard schema", id="a call that is cut"),
        pytest.param("[]", "guard not_empty", id="no call and no words"),
    ],
)
def test_what_is_no_call_goes_to_the_teacher(
    start: Start, behaviour: Behaviour, said: str, why: str
) -> None:
    behaviour.student = said
    live = start("student", **CALLS)
    message = live.ask(tools=TOOLS).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["id"] == "call_1"
    (record,) = live.records()
    assert why in record.reason


def test_a_students_words_stay_words(start: Start, behaviour: Behaviour) -> None:
    behaviour.student = "no tool helps"
    live = start("dark_launch", **CALLS)
    assert live.ask(tools=TOOLS).json()["choices"][0]["message"]["tool_calls"]
    (record,) = live.records(settled=late)
    assert record.comparison is not None
    assert (record.comparison.agree, record.comparison.student_form_ok) == (False, True)

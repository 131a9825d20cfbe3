"""Labelling by a teacher, against the real replay teacher in process: cost, cap, cache, first check, retries, grid."""

import asyncio
import contextlib
import datetime
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

import graduate
from router.answer_spec import AnswerSpec
from router.policy import Price
from serving.replay import ReplaySettings, Rows
from serving.replay_app import create_replay_app
from tests.training.conftest import sentence
from training import imports, label, label_grid
from training.build import Row
from training.errors import ConfigError, DataError
from training.label import Teacher, jobs_of
from training.label_cache import Cache, Reply
from training.label_teacher import Asker, Budget, retry_after

ROOT = Path(__file__).parents[2]
SPEC = AnswerSpec(kind="label", labels=("refund", "order"))
URL = "http://teacher/v1"
TEACHER = Teacher(URL, "gpt", Price(input=10, output=30), max_tokens=10)


def rows(count: int = 40) -> list[Row]:
    found = []
    for n in range(count):
        text, gold = sentence(n)
        found.append(Row(f"r{n}", ({"role": "user", "content": text},), None, gold, "file:x"))
    return found


def replay(wrong: int = 0, form: str = "{}", **settings: Any) -> Starlette:
    """A replay of the gold answers, the first `wrong` of them the other label, all written as `form`."""
    answers = {}
    for n in range(40):
        text, gold = sentence(n)
        said = {"refund": "order", "order": "refund"}[gold] if n < wrong else gold
        answers[text] = form.replace("{}", said)
    lengths = tuple(sorted({len(t) for t in answers}, reverse=True))
    return create_replay_app(
        Rows(answers, lengths), ReplaySettings(latency_seconds=0.0, **settings)
    )


class Sleeps:
    """A clock that only notes how long was slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        if seconds:
            self.seconds.append(seconds)
        await asyncio.sleep(0)


def with_asker(
    app: Any, cache: Path, budget: Budget, use: Callable[[Asker], Awaitable[Any]], sleep: Any = None, concurrency: int = 4
) -> Any:  # fmt: skip
    async def run() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            kept = Cache(cache)
            try:
                return await use(
                    Asker(client, kept, budget, concurrency=concurrency, sleep=sleep or Sleeps())
                )
            finally:
                kept.close()

    return asyncio.run(run())


def ask(app: Any, tmp_path: Path, jobs: Any, budget: Budget | None = None, **rest: Any) -> Any:
    return with_asker(
        app, tmp_path / "cache.db", budget or Budget(1.0), lambda a: a.ask(jobs), **rest
    )


def test_answers_come_in_order_and_are_paid_by_the_teachers_count(tmp_path: Path) -> None:
    asked, budget = rows(), Budget(1.0)
    found = ask(replay(), tmp_path, jobs_of(asked, [TEACHER]), budget)
    assert [reply.text for _, reply in found.answers] == [r.gold for r in asked]
    assert (found.failed, found.left) == ([], [])
    paid = sum(r.prompt_tokens * 10 + r.completion_tokens * 30 for _, r in found.answers) / 1e6
    assert budget.spent_usd == pytest.approx(paid)
    assert budget.reserved_usd == pytest.approx(0)
    assert paid > 0


def test_what_was_paid_is_not_asked_again(tmp_path: Path) -> None:
    jobs = jobs_of(rows(), [TEACHER])
    ask(replay(), tmp_path, jobs[:25])
    budget = Budget(1.0)
    found = ask(replay(), tmp_path, jobs, budget)
    assert sum(reply.is_cached for _, reply in found.answers) == 25
    again = Budget(0.0)
    assert len(ask(replay(error_share=1.0), tmp_path, jobs, again).answers) == 40
    assert again.spent_usd == 0
    other = Teacher(URL, "gpt", TEACHER.price, temperature=0.7, max_tokens=10)
    assert {j.hash for j in jobs_of(rows(), [other])}.isdisjoint({j.hash for j in jobs})


def test_equal_requests_are_paid_once(tmp_path: Path) -> None:
    once, thrice = Budget(1.0), Budget(1.0)
    ask(replay(), tmp_path / "a", jobs_of(rows(5), [TEACHER]), once)
    jobs = jobs_of([*rows(5), *rows(5), *rows(5)], [TEACHER])
    found = ask(replay(), tmp_path / "b", jobs, thrice)
    assert [job.row for job, _ in found.answers] == list(range(15))
    assert thrice.spent_usd == pytest.approx(once.spent_usd)
    assert label.estimate(jobs, {}, []).num_requests == 5


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_cap_is_never_exceeded_and_is_used(tmp_path: Path, concurrency: int) -> None:
    jobs = jobs_of(rows(), [TEACHER])
    whole = Budget(1.0)
    ask(replay(), tmp_path / "a", jobs, whole)
    cap = whole.spent_usd / 2
    budget = Budget(cap)
    found = ask(replay(), tmp_path / "b", jobs, budget, concurrency=concurrency)
    assert budget.spent_usd <= cap
    assert budget.spent_usd + max(map(label.most_cost, jobs)) > cap
    assert 0 < len(found.answers) < 40
    assert len(found.answers) + len(found.left) == 40


def test_what_is_set_aside_is_never_less_than_what_is_paid(tmp_path: Path) -> None:
    jobs = jobs_of(rows(), [TEACHER])
    for job, reply in ask(replay(), tmp_path, jobs).answers:
        assert label.most_cost(job) >= label.cost_of(job, reply)
    odd = Row("x", ({"role": "user", "content": "день 日 🎉"},), None, None, "f")
    assert label.most_prompt_tokens(TEACHER.body(odd)) >= len("день 日 🎉".encode())


def test_errors_by_lot_are_tried_again(tmp_path: Path) -> None:
    sleeps = Sleeps()
    found = ask(replay(error_share=0.3, seed=1), tmp_path, jobs_of(rows(), [TEACHER]), sleep=sleeps)
    assert len(found.answers) >= 38
    assert len(found.answers) + len(found.failed) == 40
    assert len(sleeps.seconds) > 5
    assert all("error by lot" in why and "(6 tries" in why for _, why in found.failed)


def test_a_rate_limit_is_obeyed_by_everybody(tmp_path: Path) -> None:
    """The replay refuses with Retry-After above 20 requests a second; with real sleeping everything is answered."""
    began = time.monotonic()
    jobs = jobs_of(rows(34), [TEACHER])
    found = ask(
        replay(requests_per_second=20.0), tmp_path, jobs, sleep=asyncio.sleep, concurrency=12
    )
    assert len(found.answers) == 34
    assert 14 / 20 <= time.monotonic() - began < 5


def test_an_unknown_input_is_a_failure_with_its_reason_and_not_tried_again(tmp_path: Path) -> None:
    stranger = Row("new", ({"role": "user", "content": "never seen"},), None, None, "f")
    sleeps = Sleeps()
    found = ask(replay(), tmp_path, jobs_of([*rows(3), stranger], [TEACHER]), sleep=sleeps)
    assert len(found.answers) == 3
    ((job, why),) = found.failed
    assert (job.row, "HTTP 404" in why, sleeps.seconds) == (3, True, [])


def closed(status: int, code: str | None = None) -> Starlette:
    async def reply(_: Request) -> Response:
        return JSONResponse({"error": {"message": "no", "code": code}}, status)

    return Starlette(routes=[Route("/v1/chat/completions", reply, methods=["POST"])])


@pytest.mark.parametrize(
    ("app", "message"),
    [
        pytest.param(
            closed(401), "HTTP 401: no .is the key in --api-key-env right", id="wrong key"
        ),
        pytest.param(closed(429, "insufficient_quota"), "HTTP 429: no", id="no quota"),
    ],
)
def test_a_closed_door_ends_the_run_at_once(tmp_path: Path, app: Starlette, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ask(app, tmp_path, jobs_of(rows(), [TEACHER]))


def test_a_timeout_may_be_billed_and_counts_against_the_cap(tmp_path: Path) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        raise httpx.ReadTimeout("slow")

    jobs = jobs_of(rows(1), [TEACHER])
    budget = Budget(2.5 * label.most_cost(jobs[0]))
    found = ask(slow, tmp_path, jobs, budget)
    ((_, why),) = found.failed
    assert "no money is left for another try" in why
    assert budget.spent_usd == pytest.approx(2 * label.most_cost(jobs[0]))
    assert budget.spent_usd <= budget.cap_usd


NOW = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"retry-after-ms": "1500", "retry-after": "9"}, 1.5, id="milliseconds win"),
        pytest.param({"retry-after": "2"}, 2.0, id="seconds"),
        pytest.param({"retry-after": "Tue, 24 Nov 2026 12:00:30 GMT"}, 30.0, id="a date"),
        pytest.param({"retry-after": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0.0, id="a date gone by"),
        pytest.param({"retry-after": "soon"}, None, id="neither"),
        pytest.param({}, None, id="none"),
    ],
)
def test_retry_after_is_read_in_all_its_forms(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, NOW) == seconds


def test_the_first_answers_are_spread_and_must_have_the_form(tmp_path: Path) -> None:
    jobs = jobs_of(rows(), [TEACHER])
    first = label.first_jobs(jobs)
    assert len({j.row for j in first}) == 16
    assert max(j.row for j in first) > 35
    wordy = ask(replay(form="The answer is: {}"), tmp_path, first).answers
    with pytest.raises(
        DataError,
        match=r"of the first 16 answers 0 have .*\n  label: not one of refund, order: 'The",
    ):
        label.check_first(SPEC, wordy, 0.8, [])
    finder = Teacher(URL, "gpt", TEACHER.price, max_tokens=10, extract=r"(?:is: )(\w+)")
    found = ask(replay(form="The answer is: {}"), tmp_path, jobs_of(rows(), [finder])).answers
    label.check_first(SPEC, found, 1.0, [])
    assert found[0][0].teacher.answer(found[0][1]) == rows()[0].gold
    with pytest.raises(DataError, match="no answer: HTTP 404"):
        label.check_first(SPEC, [], 0.8, ["HTTP 404"])


@pytest.mark.parametrize(
    ("text", "finish", "why"),
    [
        pytest.param("refund", "stop", None, id="fine"),
        pytest.param("refund", "length", "not_truncated: cut at the token limit", id="cut"),
        pytest.param("  ", "stop", "not_empty: empty", id="empty"),
        pytest.param("maybe", "stop", "label: not one of refund, order", id="another word"),
    ],
)
def test_the_form_of_an_answer(text: str, finish: str, why: str | None) -> None:
    assert label.problem(SPEC, text, finish) == why


def test_the_estimate_bounds_the_cost_and_learns_from_known_answers(tmp_path: Path) -> None:
    jobs = jobs_of(rows(), [TEACHER])
    blind = label.estimate(jobs, {}, [])
    known = label.estimate(jobs, {}, ["refund"])
    budget = Budget(1.0)
    answers = ask(replay(), tmp_path, jobs, budget).answers
    assert known.likely_usd < blind.likely_usd < blind.most_usd
    assert known.likely_usd == pytest.approx(budget.spent_usd, rel=0.5)
    cached = {job.hash: reply for job, reply in answers[:30]}
    rest = label.estimate(jobs, cached, [])
    assert (rest.num_requests, rest.num_cached) == (40, 30)
    assert label.estimate(jobs, {j.hash: r for j, r in answers}, []).most_usd == 0


def test_samples_need_a_temperature_and_are_votes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--samples 3 with temperature 0"):
        jobs_of(rows(1), [TEACHER], 3)
    warm = Teacher(URL, "gpt", TEACHER.price, temperature=0.7)
    jobs = jobs_of(rows(2), [warm], 3)
    assert len({j.hash for j in jobs}) == 6
    answers = [
        (j, Reply(text, "stop", "gpt"))
        for j, text in zip(jobs, ["refund", "order", "order", "x", "y", "order"], strict=True)
    ]
    first, second = label.labelled(rows(2), answers, SPEC)
    assert (first.answer, round(first.agreement, 2)) == ("order", 0.67)
    assert (second.answer, second.answers) == ("order", ("x", "y", "order"))
    line = first.as_line()
    assert (line["teacher"], line["votes"], line["gold"]) == (
        "order",
        ["refund", "order", "order"],
        rows()[0].gold,
    )


def test_prompt_and_system_are_laid_around_the_input() -> None:
    row = Row(
        "a",
        ({"role": "system", "content": "old"}, {"role": "user", "content": "hello"}),
        None,
        None,
        "f",
    )
    body = Teacher(
        URL, "m", Price(), "new", "Sort: {input}", extra={"max_completion_tokens": 5}
    ).body(row)
    assert body["messages"] == [
        {"role": "system", "content": "new"},
        {"role": "user", "content": "Sort: hello"},
    ]
    assert "max_tokens" not in body
    assert Teacher(URL, "m", Price()).body(row)["messages"] == list(row.messages)


def settings_of(tmp_path: Path, apps: dict[str, Starlette]) -> list[label_grid.Setting]:
    found = []
    for name, app in apps.items():
        price = Price(input=10 if name == "dear" else 1, output=1)
        teacher = Teacher(URL, name, price, max_tokens=10)
        answers = ask(app, tmp_path, jobs_of(rows(), [teacher])).answers
        found.append(label_grid.score(name, rows(), answers, 1, SPEC))
    return found


def test_the_grid_takes_the_cheapest_that_cannot_be_told_from_the_best(tmp_path: Path) -> None:
    apps = {
        "dear": replay(),
        "cheap": replay(wrong=3),
        "bad": replay(wrong=15),
        "mute": replay(form="eh {}"),
    }
    settings = settings_of(tmp_path, apps)
    by_name = {s.name: s for s in settings}
    assert [round(s.accuracy, 3) for s in settings] == [1.0, 0.925, 0.625, 0.0]
    assert by_name["mute"].unparseable == 40
    assert by_name["cheap"].low < 0.925 < by_name["cheap"].high
    assert by_name["bad"].recall == pytest.approx({"order": 0.65, "refund": 0.6})
    verdict = label_grid.judge(settings)
    assert (verdict.best, verdict.chosen) == ("dear", "cheap")
    assert list(verdict.tied) == ["cheap"]
    assert verdict.tied["cheap"] == pytest.approx(0.25)


@pytest.mark.slow
def test_the_grid_is_written_with_its_winner_as_a_teachers_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"dear": replay(), "cheap": replay(wrong=3)})
    verdict = label_grid.judge(settings)
    teachers = {s.name: Teacher(URL, s.name, Price()) for s in settings}
    report = label_grid.write(settings, verdict, teachers, tmp_path / "grid")
    assert {p.name for p in (tmp_path / "grid").iterdir()} == {
        "grid.json",
        "grid.png",
        "teacher.json",
    }
    stored = json.loads((tmp_path / "grid" / "teacher.json").read_text())
    assert (stored["model"], stored["gold"]["rows"], len(stored["digest"])) == ("cheap", 40, 16)
    assert report["chosen"] == "cheap"


def test_repeats_show_how_stable_a_setting_is() -> None:
    warm = Teacher(URL, "m", Price(), temperature=1.0)
    jobs = jobs_of(rows(2), [warm], 2)
    gold = [r.gold or "" for r in rows(2)]
    said = [gold[0], gold[0], gold[1], "neither"]
    answers = [(j, Reply(text, "stop")) for j, text in zip(jobs, said, strict=True)]
    found = label_grid.score("m", rows(2), answers, 2, SPEC)
    assert (found.accuracy, found.stable_share, found.rows) == (0.75, 0.5, 2)
    assert found.repeat_spread == pytest.approx(0.3536, abs=1e-3)


def test_the_ceiling_is_told_by_slice() -> None:
    pairs = [(row, row.gold or "" if n >= 4 else "order") for n, row in enumerate(rows())]
    report = {(r["slice"], r["part"]): r for r in label_grid.ceiling(pairs, SPEC)}
    whole = report["all", "all"]
    assert (whole["right"], whole["rows"]) == (38, 40)
    assert report["class", "refund"]["right"] == 18
    assert report["class", "order"]["accuracy"] == 1.0
    assert whole["interval"][0] < 0.95 < whole["interval"][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("models: []\nprompts: {a: x}", "models", id="no models"),
        pytest.param("models: [{name: a}]\nprompts: {a: '{input}'}", "models.0.input_price", id="no price"),
        pytest.param("models: [{name: a, input_price: 1, output_price: 1}]\nprompts: {a: '{inputs}'}", "unknown field 'inputs'", id="prompt"),
        pytest.param("models: [{name: a, input_price: 1, output_price: 1}]\nprompts: {a: '{input}'}\ntemperatures: [3]", "from 0 to 2", id="temperature"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        label_grid.load(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cache.db"
    file.write_text("hello " * 1000)
    with pytest.raises(DataError, match="not a cache of answers"):
        Cache(file)


# The command, against a replay teacher that listens


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """The app on a port of its own."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(5)


@pytest.fixture
def teacher_url() -> Iterator[str]:
    with listening(replay(wrong=2)) as url:
        yield url


def run(*arguments: str) -> Any:
    return CliRunner().invoke(graduate.app, ["train", "label", *arguments])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_labels_resumes_and_stops_at_the_cap(teacher_url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "labels.jsonl"
    lines = [{"id": r.id, "text": r.messages[0]["content"], "gold": r.gold} for r in rows()]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = [
        str(source),
        "--teacher-url",
        teacher_url,
        "--model",
        "replay",
        "--labels",
        "refund,order",
        "--json",
    ]
    common += ["--out", str(out), "--cache", str(tmp_path / "cache.db"), "--max-tokens", "8"]
    free = run(*common)
    assert (free.exit_code, "--input-price" in free.stderr) == (2, True)
    priced = [*common, "--input-price", "10", "--output-price", "30"]
    unasked = run(*priced)
    assert (unasked.exit_code, "agree to the cost with --yes" in unasked.stderr) == (2, True)
    assert "likely $0.0" in unasked.stderr
    assert not out.exists()
    capped = run(*priced, "--yes", "--max-usd", "0.005")
    assert capped.exit_code == 1, capped.output
    partial = json.loads(capped.stdout)
    assert 0 < partial["labelled"] < 40
    assert partial["spent_usd"] <= 0.005
    assert partial["labelled"] + partial["rows_left_by_the_cap"] == 40
    whole = run(*priced, "--yes")
    assert whole.exit_code == 0, whole.output
    report = json.loads(whole.stdout)
    assert (report["labelled"], report["cached"]) == (40, partial["labelled"])
    assert report["ceiling"][0]["right"] == 38
    again = imports.read(out)
    assert (again.format, len(again.rows)) == ("graduate", 40)
    assert [r.teacher == r.gold for r in again.rows].count(False) == 2
    assert again.facts["r0"].finish_reason == "stop"
    assert {r.teacher_model for r in again.rows} == {"replay"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_route_says_who_the_teacher_is_and_what_it_costs(
    teacher_url: str, tmp_path: Path
) -> None:
    policy, source, out = (tmp_path / name for name in ("policy.yaml", "rows.jsonl", "out.jsonl"))
    text = (
        f"version: 1\nbackends:\n  t: {{kind: openai, base_url: '{teacher_url}'PRICE}}\n"
        "routes:\n  mail:\n    teacher: {backend: t, model: gpt}\n    answer: {kind: label, labels: [refund, order]}\n"
        "default: {teacher: {backend: t}}\n"
    )
    source.write_text(
        "".join(json.dumps({"text": r.messages[0]["content"]}) + "\n" for r in rows(3))
    )
    command = [
        str(source),
        "--policy",
        str(policy),
        "--route",
        "mail",
        "--out",
        str(out),
        "--yes",
        "--json",
    ]
    command += ["--cache", str(tmp_path / "cache.db")]
    policy.write_text(text.replace("PRICE", ""))
    unknown = run(*command)
    assert (unknown.exit_code, "the price of gpt is not known" in unknown.stderr) == (2, True)
    policy.write_text(text.replace("PRICE", ", price: {input: 10, output: 30}"))
    done = run(*command)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["labelled"], report["ceiling"]) == (3, [])
    assert report["spent_usd"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_compares_teachers_on_gold(teacher_url: str, tmp_path: Path) -> None:
    source, grid = tmp_path / "rows.jsonl", tmp_path / "grid.yaml"
    source.write_text(
        "".join(
            json.dumps({"text": r.messages[0]["content"], "gold": r.gold}) + "\n" for r in rows()
        )
    )
    grid.write_text(
        "models: [{name: small, input_price: 0.1, output_price: 0.4}, {name: large, input_price: 10, output_price: 30}]\n"
        "prompts: {plain: '{input}', asked: {user: 'Sort: {input}', system: be brief}}\nmax_tokens: 8\n"
    )
    common = [
        str(source),
        "--teacher-url",
        teacher_url,
        "--grid",
        str(grid),
        "--out",
        str(tmp_path / "out"),
    ]
    common += ["--cache", str(tmp_path / "c.db"), "--labels", "refund,order", "--json", "--yes"]
    stopped = run(*common, "--max-usd", "0.004")
    assert (
        stopped.exit_code,
        "settings with different rows cannot be compared" in stopped.stderr,
    ) == (2, True)
    done = run(*common)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [s["name"] for s in report["settings"]] == [
        "small / plain / T=0", "small / asked / T=0", "large / plain / T=0", "large / asked / T=0",
    ]  # fmt: skip
    assert report["chosen"] == "small / plain / T=0"
    assert {s["accuracy"] for s in report["settings"]} == {0.95}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_options_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "a"}\n')
    common = [
        str(source),
        "--teacher-url",
        URL,
        "--out",
        str(tmp_path / "o"),
        "--cache",
        str(tmp_path / "c.db"),
    ]
    prices = ["--input-price", "1", "--output-price", "1"]
    for options, message in (
        ([], "give --model"),
        (["--model", "m", "--labels", "one", *prices], "two or more words"),
        (["--model", "m", "--prompt", "no place", *prices], "a text with {input}"),
        (["--model", "m", "--body", "x", *prices], "--body 'x': allowed: KEY=VALUE"),
        (["--model", "m", "--route", "r"], "--policy and --route belong together"),
        (["--model", "m", "--samples", "2", *prices], "allowed: a temperature above 0"),
    ):
        done = run(*common, *options)
        assert (done.exit_code, message in done.stderr) == (2, True), (options, done.stderr)
    shown = run("--help")
    assert "Example:" in shown.output


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle: nothing that was answered is paid twice."""
    served: list[str] = []
    inner = replay()

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            served.append(scope["path"])
            await asyncio.sleep(0.1)
        await inner(scope, receive, send)

    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"text": r.messages[0]["content"]}) + "\n" for r in rows())
    )
    with listening(counted) as url:
        command = [
            sys.executable, "-m", "graduate", "train", "label", str(source), "--teacher-url", url, "--model", "m",
            "--labels", "refund,order", "--input-price", "1", "--output-price", "1", "--yes", "--json",
            "--out", str(out), "--cache", str(tmp_path / "cache.db"), "--concurrency", "2",
        ]  # fmt: skip
        first = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        until = time.monotonic() + 60
        while len(served) < 24 and time.monotonic() < until:
            time.sleep(0.02)
        first.kill()
        first.wait()
        assert not out.exists()
        second = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert second.returncode == 0, second.stderr
    report = json.loads(second.stdout)
    assert report["labelled"] == 40
    assert 20 <= report["cached"] < 40
    assert len(served) <= 40 + 4

"""Labelling by a teacher, against the real replay teacher in process: cost, cap, cache, first check, retries."""

import asyncio
import datetime
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.policy import Price
from tests.training.labelling import SPEC, TEACHER, URL, Sleeps, ask, replay, rows
from training import label
from training.build import Row
from training.errors import ConfigError, DataError
from training.label import Teacher, jobs_of
from training.label_cache import Cache, Reply
from training.label_teacher import Budget, retry_after


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


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cache.db"
    file.write_text("hello " * 1000)
    with pytest.raises(DataError, match="not a cache of answers"):
        Cache(file)

"""Pairs that the router leaves to the monitor: compared once, by vectors or by a judge, and counted by the tick."""

import datetime
import json
from collections.abc import Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from monitoring.evidence import gather
from monitoring.review import ReviewQueue
from monitoring.settings import MonitorSettings
from monitoring.store import FlagRow, Store
from monitoring.text_pairs import TextPair
from monitoring.tick import RouteReport, run_tick
from monitoring.verdicts import PAIRS_AN_HOUR, Verdict, compare_left, known_verdicts
from router.compare import compare_online
from router.metrics import RouterMetrics
from router.policy_file import load
from router.records import Comparison, Record
from router.traffic import TrafficLog
from tests.monitoring.conftest import NOW, answer, policy, record
from tests.monitoring.hooks import serving
from tests.monitoring.test_compare_text import judge_app

EMBEDDING = {"kind": "text", "compare": {"comparator": "embedding", "threshold": 0.6}}
JUDGE = {
    "kind": "text",
    "compare": {"comparator": "judge", "judge": {"backend": "j", "model": "judge", "per_day": 480}},
}


def asked_for(settings: MonitorSettings, answer_spec: dict[str, Any], judge_port: int = 9) -> Any:
    text = policy(answer=answer_spec, flags={"per_hour": 1000}).replace(
        "backends:\n",
        f"backends:\n  j: {{kind: openai, base_url: 'http://127.0.0.1:{judge_port}/v1'}}\n",
    )
    settings.policy.write_text(text)
    return load(settings.policy).policy


def logged(settings: MonitorSettings, number: int, spec: Any, wrong: Sequence[int]) -> list[Record]:
    """Pairs as the router writes them under a comparator of the monitor's; the fourth of five has no text at all."""
    records = []
    for n in range(number):
        teacher = answer("teacher", f"Hold the button for {n} seconds.")
        words = "WRONG" if n in wrong else f"Press the button {n} seconds."
        student = answer("student", "" if n % 5 == 4 else words, adapter="mail/1", purpose="shadow")
        made = compare_online(spec, student, teacher)
        records.append(
            msgspec.structs.replace(record(n), answers=(teacher, student), comparison=made)
        )
    log = TrafficLog(settings.home.traffic)
    for one in records:
        log.append(one)
    log.close()
    return records


def tick(settings: MonitorSettings, store: Store) -> RouteReport:
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    (report,) = run_tick(settings, store, now=now, html=False)
    return report


def by_words(pairs: Sequence[TextPair]) -> list[Verdict]:
    return [Verdict("WRONG" not in pair.student, 0.5) for pair in pairs]


def test_the_judge_of_the_policy_is_asked_once_a_pair_and_its_word_is_the_comparison(
    settings: MonitorSettings, store: Store
) -> None:
    asked: list[dict[str, Any]] = []
    with serving(judge_app(asked)) as port:
        rules = asked_for(settings, JUDGE, port)
        logged(settings, 20, rules.routes["mail"].answer, wrong=[0, 1, 2])
        report = tick(settings, store)
        (found,) = report.disagreement
        assert (found.rate.count, found.rate.rows) == (3, 16)
        assert (found.form_failures.count, found.pairs) == (4, 20)
        assert report.compared is not None
        assert (report.compared.verdicts, report.compared.left) == (16, 0)
        assert len(asked) == 2 * 16
        assert {flag.record_id for flag in flags_of(store)} >= {"r0", "r1", "r2"}
        assert tick(settings, store).disagreement[0].rate == found.rate
        assert len(asked) == 2 * 16  # nothing is asked twice


def flags_of(store: Store) -> Sequence[FlagRow]:
    return ReviewQueue(store).list("mail", "open", 100)


def test_a_judge_that_says_nothing_of_use_leaves_the_pairs_for_the_next_tick(
    settings: MonitorSettings, store: Store
) -> None:
    async def mumble(_: Request) -> JSONResponse:
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": "hm"}}]})

    route = Route("/v1/chat/completions", mumble, methods=["POST"])
    with serving(Starlette(routes=[route])) as port:
        rules = asked_for(settings, JUDGE, port)
        logged(settings, 2, rules.routes["mail"].answer, wrong=[0])
        report = tick(settings, store)
    assert report.compared is not None
    assert (report.compared.verdicts, report.compared.left) == (0, 2)
    assert "no verdict" in str(report.compared.error)
    assert report.disagreement[0].rate.rows == 0


def test_a_home_without_an_encoder_says_so_and_the_tick_goes_on(
    settings: MonitorSettings, store: Store
) -> None:
    rules = asked_for(settings, EMBEDDING)
    logged(settings, 5, rules.routes["mail"].answer, wrong=[0])
    report = tick(settings, store)
    assert report.compared is not None
    assert "model.safetensors" in str(report.compared.error)
    assert report.records == 5


def test_an_hour_has_its_number_and_pairs_are_drawn_by_their_id(
    settings: MonitorSettings, store: Store
) -> None:
    rules = asked_for(settings, EMBEDDING)
    spec = rules.routes["mail"].answer
    records = logged(settings, 1_500, spec, wrong=range(0, 1_500, 10))

    def go(now: float) -> Any:
        return compare_left(
            settings, store, rules, "mail", records, since=0.0, now=now, ask=by_words
        )

    first = go(NOW)
    assert (first.verdicts, first.left) == (PAIRS_AN_HOUR, 200)
    assert go(NOW + 10).verdicts == PAIRS_AN_HOUR
    seen = known_verdicts(store, "mail", rules.routes["mail"], 0.0)
    compared = [
        r for r in map(seen.over, records) if r.comparison and r.comparison.agree is not None
    ]
    places = [int(r.id[1:]) for r in compared]
    assert 700 < sum(places) / len(places) < 800  # early and late ones alike
    assert all(r.comparison.comparator == "embedding" for r in compared if r.comparison)
    assert (go(NOW + 3601).verdicts, go(NOW + 3602).left) == (1_200, 0)


def test_a_judges_day_has_its_number(settings: MonitorSettings, store: Store) -> None:
    per_day = {**JUDGE, "compare": {"comparator": "judge", "judge": {"model": "m", "per_day": 2}}}
    rules = asked_for(settings, per_day)
    records = logged(settings, 40, rules.routes["mail"].answer, wrong=[])
    for hour, wanted in enumerate([1, 2, 2, 2]):
        found = compare_left(
            settings, store, rules, "mail", records, since=0.0, now=NOW + hour * 3601, ask=by_words
        )
        assert found.verdicts == wanted
    later = compare_left(
        settings, store, rules, "mail", records, since=0.0, now=NOW + 25 * 3600, ask=by_words
    )
    assert later.verdicts == 3


def test_a_pair_that_waits_is_no_evidence_and_one_with_a_verdict_is(
    settings: MonitorSettings, store: Store
) -> None:
    rules = asked_for(settings, EMBEDDING)
    spec = rules.routes["mail"].answer
    records = logged(settings, 10, spec, wrong=[0, 1])
    waiting = gather(records, "mail/1", 0).disagreement[""]
    assert (waiting.bad, waiting.rows) == (2, 2)  # those of no form, which need no verdict
    compare_left(settings, store, rules, "mail", records, since=0.0, now=NOW, ask=by_words)
    seen = known_verdicts(store, "mail", rules.routes["mail"], 0.0)
    settled = gather(map(seen.over, records), "mail/1", 0).disagreement[""]
    assert (settled.bad, settled.rows) == (4, 10)


def test_the_router_counts_such_pairs_apart() -> None:
    metrics = RouterMetrics(CollectorRegistry())
    for comparison in (Comparison("judge"), Comparison("rouge_l", True, 1.0)):
        metrics.count_comparison("mail", comparison)
    metrics.flush()
    for result in ("left_to_monitor", "agree"):
        labels = {"route": "mail", "result": result}
        assert metrics.registry.get_sample_value("graduate_router_comparisons_total", labels) == 1


def test_the_teachers_second_answer_is_compared_alike_and_another_threshold_begins_anew(
    settings: MonitorSettings, store: Store
) -> None:
    rules = asked_for(settings, EMBEDDING)
    again = answer("teacher", "WRONG", purpose="noise")
    base = record(1, "yes")
    noisy = msgspec.structs.replace(base, answers=(*base.answers, again))
    compare_left(settings, store, rules, "mail", [noisy], since=0.0, now=NOW, ask=by_words)
    route = rules.routes["mail"]
    assert known_verdicts(store, "mail", route, 0.0).noise(noisy) is False
    stricter = json.loads(json.dumps(EMBEDDING).replace("0.6", "0.9"))
    changed = asked_for(settings, stricter).routes["mail"]
    assert known_verdicts(store, "mail", changed, 0.0).noise(noisy) is None

"""What happens: a dark launch, a canary that advances, an outage, inputs that change and a student that breaks on them.

Every part lasts at least so long, and until what it is there for can be read off Prometheus.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable

import httpx

from benchmarks.dashboards.place import Place, until
from benchmarks.dashboards.upstream import KINDS

WORDS = [
    "hello",
    "please",
    "my",
    "parcel",
    "arrived",
    "late",
    "again",
    "and",
    "the",
    "box",
    "was",
    "open",
    "can",
    "you",
    "send",
    "money",
    "back",
    "thanks",
    "for",
    "help",
    "i",
    "wait",
    "since",
    "monday",
    "where",
    "is",
    "it",
    "now",
    "number",
    "wrong",
    "colour",
    "size",
    "tell",
    "me",
    "what",
    "to",
    "do",
    "kind",
    "regards",
]
STRANGE = [
    "invoice",
    "quarterly",
    "subsidiary",
    "consignment",
    "demurrage",
    "bonded",
    "warehouse",
    "manifest",
    "customs",
    "tariff",
    "clearance",
    "broker",
    "incoterms",
    "freight",
    "forwarding",
    "lading",
    "pallet",
    "tonnage",
    "annex",
    "schedule",
    "hereby",
    "pursuant",
    "liability",
    "indemnity",
]
PATIENCE_SECONDS = 120.0


class Traffic:
    """Callers: threads that ask one request after another until they are stopped."""

    def __init__(self, place: Place, *, per_second: float, seed: int = 0) -> None:
        self._place = place
        self._pause = 2 / per_second
        self.is_changed = False
        """Whether inputs are long and strange now."""
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(random.Random(seed + n),), daemon=True)
            for n in range(2)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the requests under way."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(20)

    def _ask(self, draw: random.Random) -> None:
        with httpx.Client(base_url=self._place.at("router"), trust_env=False, timeout=20) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                model = "mail" if draw.random() < 0.15 else "tickets"
                body = {
                    "model": model,
                    "user": f"u{draw.randrange(10**6)}",
                    "messages": [{"role": "user", "content": self._text(draw)}],
                }
                content = b"no JSON" if draw.random() < 0.01 else json.dumps(body).encode()
                # A caller that is cut off asks again: the story must go on after the machine stood still.
                with contextlib.suppress(httpx.TransportError):
                    client.post("/v1/chat/completions", content=content)
                self._stop.wait(max(0.0, self._pause - (time.monotonic() - began)))

    def _text(self, draw: random.Random) -> str:
        strange = self.is_changed and draw.random() < 0.7
        words = draw.choices(
            STRANGE if strange else WORDS,
            k=draw.randint(16, 30) if strange else draw.randint(6, 20),
        )
        words.insert(draw.randrange(len(words)), draw.choice(KINDS))
        return " ".join(words)  # fmt: skip


class Story:
    """The parts, in order. `tell` is called with each one's name."""

    def __init__(self, place: Place, traffic: Traffic, part_seconds: float) -> None:
        self._place, self._traffic, self._part = place, traffic, part_seconds

    def run(self, tell: Callable[[str], None]) -> None:
        """All of it.

        Raises:
            TimeoutError: something that should come did not.
        """
        for name, part in (
            ("dark launch", self._dark),
            ("canary", self._canary),
            ("the student's server is down", self._outage),
            ("inputs change, the student breaks on long ones", self._break),
            ("a policy edit that does not hold", self._bad_edit),
        ):
            tell(name)
            part()

    def _dark(self) -> None:
        time.sleep(self._part)
        self._see('graduate_monitoring_pairs{route="tickets"} > 100')
        self._see('graduate_monitoring_noise_floor_share{route="tickets"} > 0')
        self._see('graduate_monitoring_drift_enough{route="tickets"} == 1')

    def _canary(self) -> None:
        self._place.write_policy("canary")
        self._see('graduate_monitoring_canary_share{route="tickets"} > 0.5')
        time.sleep(self._part)

    def _outage(self) -> None:
        self._place.behaviour.is_student_down = True
        try:
            self._see('graduate_router_breaker_open{backend="students"} == 1')
        finally:
            self._place.behaviour.is_student_down = False
        self._see('graduate_router_breaker_open{backend="students"} == 0')
        time.sleep(self._part / 4)

    def _break(self) -> None:
        self._traffic.is_changed = True
        self._place.behaviour.student_wrong_on_long = 0.7
        self._see('graduate_monitoring_drift{route="tickets"} == 1')
        self._see('graduate_monitoring_rollout_state{route="tickets",state="rolled_back"} == 1')

    def _bad_edit(self) -> None:
        self._place.write_policy("canary", broken="nonsense: true\n")
        self._see('graduate_router_policy_loads_total{result="error"} > 0')
        self._place.write_policy("canary")
        time.sleep(self._part)

    def _see(self, expr: str) -> None:
        prometheus = self._place.prometheus
        until(lambda: bool(prometheus.instant(expr, time.time())), expr, PATIENCE_SECONDS)

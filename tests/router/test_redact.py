"""What is taken out of text, what stays, and that time grows with the length only."""

import json
import time

import pytest

from router.redact import find, luhn, redact, redact_json

ALL = ("email", "phone", "credit_card")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to jo.e+x@mail.example.co.uk!", "write to [EMAIL]!"), ("<a@b.de>,c@d.fr", "<[EMAIL]>,[EMAIL]"),
        ("call +49 30 901820 now", "call [PHONE] now"), ("(415) 555-2671", "[PHONE]"), ("415-555-2671", "[PHONE]"), ("+1 415 555 2671", "[PHONE]"),
        ("card 4111 1111 1111 1111.", "card [CREDIT_CARD]."), ("4111-1111-1111-1111", "[CREDIT_CARD]"), ("378282246310005", "[CREDIT_CARD]"),
    ],
)  # fmt: skip
def test_found(text: str, clean: str) -> None:
    assert redact(text, ALL) == clean
    assert redact(text, tuple(reversed(ALL))) == clean
    assert find(text, ALL) is not None


@pytest.mark.parametrize(
    "text",
    ["a @ b", "user@localhost", "on 2026-11-24 at 10:15:02", "4111 1111 1111 1112", "order 1234567890", "1.234.567,89 €", "192.168.100.200", "v1.2.3-4", "", "x" * 300 + "@", "isbn 978-3-16-148410-0"],
)  # fmt: skip
def test_left_alone(text: str) -> None:
    assert redact(text, ALL) == text
    assert find(text, ALL) is None


def test_own_patterns_and_nothing() -> None:
    assert redact("ticket AB-123", (r"[A-Z]{2}-\d+",)) == "ticket [REDACTED]"
    assert redact("a@b.de", ()) == "a@b.de"


def test_redacting_twice_changes_nothing_more() -> None:
    once = redact("a@b.de +49 30 901820 4111111111111111", ALL)
    assert redact(once, ALL) == once == "[EMAIL] [PHONE] [CREDIT_CARD]"


def test_luhn() -> None:
    assert luhn("4111111111111111")
    assert not luhn("4111111111111112")


def test_only_values_of_json_are_redacted() -> None:
    body = {"a@b.de": ["c@d.fr", 4111111111111111, None, True], "x": {"y": "+49 30 901820"}, "escaped": "g\u0040h.it"}  # fmt: skip
    found = json.loads(redact_json(json.dumps(body).encode(), ALL))
    assert found == {"a@b.de": ["[EMAIL]", 4111111111111111, None, True], "x": {"y": "[PHONE]"}, "escaped": "[EMAIL]"}  # fmt: skip


@pytest.mark.parametrize("body", [b'{"a": "x@y.de"', b"\xff x@y.de", b'{"n": 1e999, "a": "x@y.de"}', b"[" * 5000 + b'"x@y.de"' + b"]" * 5000])  # fmt: skip
def test_what_is_no_plain_json_is_redacted_all_the_same(body: bytes) -> None:
    found = redact_json(body, ALL)
    assert b"x@y.de" not in found
    assert b"[EMAIL]" in found


@pytest.mark.parametrize("piece", ["a", "a.", "1", "1 ", "+1 ", "(0", "a@", "a@b-", "a@b.", "4111 ", "0-", "é", "x.1-"])  # fmt: skip
def test_redacting_takes_linear_time(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    start = time.process_time()
    redact(text, ALL)
    assert time.process_time() - start < 2

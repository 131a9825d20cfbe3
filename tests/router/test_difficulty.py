"""Rules for easy requests, the language guess, and the scored model."""

import json
import math
import timeit
from pathlib import Path
from typing import Any

import pytest

from router.difficulty import (
    FEATURES,
    DifficultyModel,
    estimated_tokens,
    features,
    language_of,
    load_model,
    not_easy,
)
from router.errors import PolicyError
from router.policy import EasyIf


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How can I change my password?", "en"), ("Wie kann ich mein Passwort ändern, bitte?", "de"), ("Je ne peux pas me connecter avec le mot", "fr"),
        ("¿Cómo puedo cambiar la clave de mi cuenta?", "es"), ("Как мне сменить пароль?", "ru"), ("パスワードを変更したい", "ja"), ("비밀번호를 바꾸고 싶어요", "ko"),
        ("如何更改我的密码", "zh"), ("", None), ("12345 !!", None), ("xyzzy", None), ("Is the PIN of Do Nascimento blocked?", "en"),
        ("Waar is mijn pakket?", "nl"), ("Onde está a minha encomenda?", "pt"), ("Gdzie jest moja paczka?", "pl"), ("Var är mitt paket?", "sv"),
        ("Dov'è il mio pacco?", "it"), ("no-reply PIN: w", None),
    ],
)  # fmt: skip
def test_language(text: str, language: str | None) -> None:
    assert language_of(text) == language


TICKETS = Path(__file__).parents[2] / "examples" / "tickets" / "tickets.jsonl"


def test_no_english_ticket_is_taken_for_another_language() -> None:
    """One sentence is half Swedish, and the guess may say nothing."""
    texts = [json.loads(line)["text"] for line in TICKETS.read_text().splitlines()]
    wrong = [text for text in texts if language_of(text) not in ("en", None)]
    assert [text for text in wrong if "Swedish" not in text] == []
    assert sum(language_of(text) is None for text in texts) < len(texts) / 20


@pytest.mark.parametrize(
    ("rule", "text", "why"),
    [
        ({}, "anything", None), ({"max_prompt_tokens": 2}, "12345678", None), ({"max_prompt_tokens": 2}, "123456789", "about 3 prompt tokens > 2"),
        ({"max_chars": 3}, "abcd", "4 characters > 3"), ({"languages": ["en"]}, "Wie kann ich das bitte ändern", "language de"), ({"languages": ["en"]}, "xyzzy", None),
        ({"not_matching": ["(?i)law"]}, "My LAWYER", "matches (?i)law"), ({"not_matching": ["x"]}, "abc", None),
    ],
)  # fmt: skip
def test_not_easy(rule: dict[str, Any], text: str, why: str | None) -> None:
    assert not_easy(EasyIf.model_validate(rule), text, len(text), False) == why


def test_tools_and_token_estimate() -> None:
    rule = EasyIf(no_tools=True)
    assert [not_easy(rule, "", 0, tools) for tools in (True, False)] == ["has tools", None]
    assert [estimated_tokens(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_features_have_length_one_and_do_not_change_between_runs() -> None:
    found = features("Refund my refund", 64)
    assert math.sqrt(sum(v * v for v in found.values())) == pytest.approx(1)
    assert found == features("refund MY refund!", 64)
    assert features("", 64) == {}


def test_a_model_scores_what_it_was_given(tmp_path: Path) -> None:
    (slot,) = features("lawsuit", 1024)
    path = tmp_path / "m.json"
    model = {
        "features": FEATURES,
        "name": "m",
        "bias": -1.0,
        "buckets": 1024,
        "weights": {str(slot): 2.0},
    }
    path.write_text(json.dumps(model))
    loaded = load_model(path)
    assert loaded.score("lawsuit") == pytest.approx(1 / (1 + math.exp(-1)))
    assert loaded.score("") == pytest.approx(1 / (1 + math.exp(1)))


def test_weights_for_other_features_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"name": "m", "bias": -1.0, "buckets": 1024, "weights": {"3": 2.0}}')
    with pytest.raises(
        PolicyError, match="for features 1, this router computes 2: calibrate again"
    ):
        load_model(path)


def test_a_long_text_is_scored_within_a_millisecond() -> None:
    text = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)} again" for i in range(240))[:3000]
    model = DifficultyModel("m", 0.0, {}, 1 << 13)
    best = min(timeit.repeat(lambda: model.score(text), number=1, repeat=20))
    assert best < 0.001


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"features":2,"name":"m","bias":0,"buckets":0,"weights":{}}', '{"features":2,"name":"m","bias":"x","buckets":1,"weights":{}}', '{"features":2,"name":"m","bias":0,"buckets":1,"weights":[1]}'])  # fmt: skip
def test_a_broken_model_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"m\.json.*not a difficulty model"):
        load_model(path)

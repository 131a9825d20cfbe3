"""Teachers' terms and base licences: which entry a name falls under, what refuses, who signs."""

import datetime
from pathlib import Path

import pytest

from training import gates, terms
from training.errors import ConfigError, PublishRefused
from training.gates import Gate

NOW = datetime.datetime(2026, 11, 25, 1, 0, tzinfo=datetime.UTC)
REGISTER = terms.load()
HOLDS = Gate("non-inferior on test", "passed", "+1", "above -5", "verdict")


@pytest.mark.parametrize(
    ("model", "cls"),
    [
        pytest.param("gpt-4o-2024-11-20", "restricted", id="OpenAI's API"),
        pytest.param("openrouter/openai/GPT-4", "restricted", id="behind a prefix, in capitals"),
        pytest.param("gpt-oss-20b", "allowed", id="OpenAI's open weights, though gpt-* fits"),
        pytest.param("us.anthropic.claude-3-5-sonnet-v1:0", "restricted", id="Claude over Bedrock"),
        pytest.param("models/gemini-1.5-pro", "restricted", id="Gemini"),
        pytest.param("meta-llama/Llama-2-70b-chat", "restricted", id="Llama 2"),
        pytest.param("meta-llama/Llama-3.1-8B", "allowed", id="Llama 3.1, though llama-3* fits"),
        pytest.param("mistral-large-latest", "unknown", id="known to be unclear"),
        pytest.param("replay", "allowed", id="the demo's own recorded answers"),
        pytest.param("our-teacher-7", "unknown", id="nobody's"),
        pytest.param(terms.NOT_NAMED, "unknown", id="rows without a teacher's id"),
    ],
)
def test_a_teachers_name_falls_under_the_first_entry_that_fits(
    model: str, cls: terms.Class
) -> None:
    assert terms.look_up(REGISTER, "teacher", model).cls == cls


def test_every_entry_is_dated_and_named() -> None:
    assert all(
        e.provider and e.noted <= datetime.date(2026, 11, 25) and e.models for e in REGISTER.entries
    )


@pytest.mark.parametrize(
    ("name", "licence", "cls"),
    [
        pytest.param("SmolLM2-135M-Instruct", None, "allowed", id="in the register"),
        pytest.param("in-house-1b", "apache-2.0", "allowed", id="by its own card"),
        pytest.param("in-house-1b", "cc-by-nc-4.0", "unknown", id="a card's licence not known"),
        pytest.param("in-house-1b", None, "unknown", id="neither"),
        pytest.param("gpt-4o", None, "unknown", id="an entry that speaks of teachers alone"),
    ],
)
def test_a_base_models_licence(name: str, licence: str | None, cls: terms.Class) -> None:
    assert terms.look_up(REGISTER, "base model", name, licence).cls == cls


def test_a_model_cards_head_names_the_licence(tmp_path: Path) -> None:
    assert terms.licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: 'mit'\n---\n# A model\n")
    assert terms.licence_of(tmp_path) == "mit"
    (tmp_path / "README.md").write_text("# A model\nlicense: mit\n")
    assert terms.licence_of(tmp_path) is None


@pytest.mark.parametrize(
    ("teacher", "signed", "passes"),
    [
        pytest.param("gpt-4o", False, False, id="restricted"),
        pytest.param("gpt-4o", True, True, id="restricted, signed for"),
        pytest.param("their-model", False, False, id="forbidden by the user's file"),
        pytest.param("their-model", True, True, id="forbidden, signed for"),
        pytest.param("qwen3-32b", False, True, id="allowed"),
        pytest.param("nobody-1", False, True, id="unknown only warns"),
    ],
)
def test_what_refuses(tmp_path: Path, teacher: str, signed: bool, passes: bool) -> None:
    own = tmp_path / "terms.yaml"
    own.write_text(
        "entries:\n- {provider: Them, models: [their-*], noted: 2026-01-02,"
        " teacher: {class: forbidden, clause: no training at all}}\n"
    )
    found = terms.judge(terms.load(own), [teacher], "SmolLM2-135M", None)
    signature = terms.sign(("ada", "for our own use only"), NOW) if signed else None
    conclusion = gates.conclude([*terms.gates(found, signature), HOLDS])
    assert conclusion.verdict == "graduate"
    if passes:
        gates.enforce(conclusion, None)
    else:
        with pytest.raises(PublishRefused, match=f"{teacher}.*--accept-terms NAME"):
            gates.enforce(conclusion, "a reason that does not help")


def test_what_is_signed_is_kept() -> None:
    found = terms.judge(REGISTER, ["gpt-4o", "replay"], "SmolLM2-135M", None)
    kept = terms.record(found, terms.sign(("ada", " for our own use "), NOW))
    assert kept["accepted"] == {
        "by": "ada", "reason": "for our own use", "at": "2026-11-25T01:00:00+00:00",
        "covers": ["teacher gpt-4o: restricted"],
    }  # fmt: skip
    assert [one["class"] for one in kept["checked"]] == ["restricted", "allowed", "allowed"]
    assert "no legal advice" in kept["notice"]
    assert terms.record(found, None)["accepted"] is None


def test_a_signature_covers_nothing_that_needs_none() -> None:
    found = terms.judge(REGISTER, ["gpt-4o", "replay"], "SmolLM2-135M", None)
    lines = terms.gates(found, terms.sign(("ada", "for our own use"), NOW))
    assert ["signed for by ada" in line.figure for line in lines] == [True, False, False]
    assert {line.state for line in lines} == {"passed"}


def test_an_entry_of_the_user_comes_first(tmp_path: Path) -> None:
    own = tmp_path / "terms.yaml"
    own.write_text(
        "entries:\n- {provider: OpenAI, models: [gpt-4o*], noted: 2026-11-01,"
        " teacher: {class: allowed, clause: our contract of 2026 allows it}}\n"
    )
    found = terms.look_up(terms.load(own), "teacher", "gpt-4o-mini")
    assert (found.cls, found.clause) == ("allowed", "our contract of 2026 allows it")
    assert "our contract" in found.sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, "No such file", id="no file"),
        pytest.param("entries: [", "while parsing", id="not YAML"),
        pytest.param("- a", "the whole file", id="a list"),
        pytest.param("entries:\n- {provider: X, models: [x], noted: 2026-01-01, teacher: {class: fine, clause: c}}",
                     "entries.0.teacher.class = 'fine'", id="an unknown class"),
        pytest.param("entries:\n- {provider: X, models: [x], noted: soon, teacher: {class: allowed, clause: c}}",
                     "entries.0.noted = 'soon'", id="not a date"),
        pytest.param("entries:\n- {provider: X, models: [x], noted: 2026-01-01}", "`teacher`, `base`, or both",
                     id="says nothing"),
        pytest.param("entries:\n- {provider: X, models: [x], noted: 2026-01-01, teachr: 1}", "entries.0.teachr",
                     id="an unknown key"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    own = tmp_path / "own.yaml"
    if text is not None:
        own.write_text(text)
    with pytest.raises(ConfigError, match=r"own\.yaml") as refusal:
        terms.load(own)
    assert message in str(refusal.value)


@pytest.mark.parametrize("said", [("", "a good reason"), ("ada", "ok"), ("ada", "  ")])
def test_a_signature_needs_a_name_and_a_reason(said: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="allowed: a person's name and a reason"):
        terms.sign(said, NOW)
    assert terms.sign(None, NOW) is None

"""The file of `graduate train curate`: one key a stage, in the order in which the stages run.

A stage that is not named does not run. Unknown keys are errors; an error names file, key, value and what is allowed.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from router.answer_spec import Regex, Strict, at_key
from router.quantities import Share
from router.redact import BUILT_IN
from training.errors import ConfigError

Conditions = Literal[
    "min_chars", "max_chars", "allow", "deny", "language", "json", "refusal", "truncated", "empty", "pii"
]  # fmt: skip
CONDITIONS: tuple[Conditions, ...] = (
    "min_chars", "max_chars", "allow", "deny", "language", "json", "refusal", "truncated", "empty", "pii",
)  # fmt: skip


class Rule(Strict):
    """One condition that a row must keep. Exactly one of the conditions below is given."""

    id: str = ""
    """Name in the ledger; the condition's own name unless given."""
    of: Literal["input", "answer", "both"] | None = None
    """Which text is looked at: the input unless given; `json`, `refusal` and `truncated` look at the answer."""
    min_chars: int | None = Field(default=None, ge=0)
    """Fewest characters."""
    max_chars: int | None = Field(default=None, ge=1)
    """Most characters."""
    allow: Regex | None = None
    """A regular expression that must be found."""
    deny: Regex | None = None
    """A regular expression that must not be found."""
    language: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages that may be; a text whose language cannot be told stays."""
    json_: bool = Field(default=False, alias="json")
    """The answer is JSON and keeps the route's schema."""
    refusal: bool = False
    """The answer is not a refusal."""
    truncated: bool = False
    """The answer did not end at the token limit (`finish_reason: length`); read from `records`."""
    empty: bool = False
    """Neither input nor answer is blank."""
    pii: tuple[str, ...] = ()
    """Personal data that must not be found: email, phone, credit_card, or a regular expression."""

    @property
    def condition(self) -> Conditions:
        """The one that is given."""
        return _given(self)[0]

    @model_validator(mode="after")
    def _one(self) -> "Rule":
        given = _given(self)
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise at_key(
                "", f"a rule has exactly one condition of {', '.join(CONDITIONS)}; here: {said}"
            )
        return self


def _given(rule: Rule) -> list[Conditions]:
    return [
        c
        for c in CONDITIONS
        if getattr(rule, "json_" if c == "json" else c) not in (None, False, ())
    ]


def _bare(data: Any) -> Any:
    """`empty` stands for `{empty: true}`, `pii` for the three built-in kinds."""
    if isinstance(data, str):
        return {data: list(BUILT_IN) if data == "pii" else True}
    return data


class Duplicates(Strict):
    """Rows that say the same."""

    exact: bool = True
    """One row for each input, white space and case folded, roles included."""
    near: Share | None = None
    """Jaccard similarity of 5-character shingles from which two inputs are near duplicates."""
    conflicts: Literal["keep", "drop"] = "keep"
    """Near duplicates whose answers differ: "has arrived" and "has not arrived" are near and mean different things."""
    num_hashes: int = Field(default=128, ge=16, le=1024)
    """MinHash permutations."""


class Semantic(Strict):
    """Rows that say the same in other words; found by sentence vectors, decided by more than their cosine."""

    min_cosine: Share = 0.85
    """Cosine from which two rows with the same answer, numbers and negations say the same."""
    action: Literal["flag", "drop"] = "flag"
    """Only list them, or keep one of each."""
    encoder: str = "minilm"
    """all-MiniLM-L6-v2, fetched by pip; or a folder with a model and its tokenizer."""


class Rank(Strict):
    """Rows by a judge's scores; the worst go."""

    files: tuple[Path, ...] = Field(min_length=1)
    """JSON Lines with `id` or the input, and `score`: a sample of the rows is enough."""
    drop_share: Share
    """Share of the train rows that goes."""
    min_agreement: float = Field(default=0.3, ge=0, le=1)
    """Rank correlation with the judge on unseen rows that the predicted scores need."""


class Gold(Strict):
    """Rows on which the teacher is wrong by the gold answer."""

    errors: Literal["replace", "drop", "teacher"] = "replace"
    """Learn the gold answer, leave the row out, or learn the teacher's error (the arm to compare with)."""


class Votes(Strict):
    """Several answers to one input: of several teachers, or of one teacher asked again."""

    files: tuple[Path, ...] = Field(min_length=1)
    """JSON Lines with `id` or the input, and `votes`: a list of answers (`train label --samples` writes them)."""
    min_agreement: Share = 0.6
    """Share of the votes that the majority answer needs."""
    use: Literal["filter", "weight"] = "filter"
    """Leave rows below out, or keep all and weigh each by its agreement."""
    relabel: bool = True
    """Learn the majority's answer where there is no gold one."""


class Suspects(Strict):
    """Rows whose label a classifier trained on the others does not believe (confident learning)."""

    action: Literal["flag", "drop", "weight"] = "flag"
    """Only list them, leave them out, or weigh them by the probability of their label."""
    max_share: Share = 0.1
    """At most this share of the rows, the least believed first."""
    folds: int = Field(default=5, ge=2, le=20)
    """Cross-validation folds; near duplicates are kept in one fold."""


class PowerUsers(Strict):
    """Few users that fill most of the data."""

    max_rows: int | None = Field(default=None, ge=1)
    """Most rows of one user."""
    max_share: Share | None = None
    """Most of the rows of one user, as a share of all train rows before the cap."""
    how: Literal["drop", "weight"] = "drop"
    """Leave the rest out, or keep all with weights that add up to the cap."""
    by: Literal["user", "template"] = "user"
    """Whose rows are counted together: a user's (from `records`), or those of one text template."""

    @model_validator(mode="after")
    def _one(self) -> "PowerUsers":
        if (self.max_rows is None) == (self.max_share is None):
            raise at_key("", "exactly one of max_rows and max_share is needed")
        return self


class Balance(Strict):
    """The mix of classes that the student learns from."""

    target: Literal["uniform"] | dict[str, Annotated[float, Field(gt=0)]] = "uniform"
    """Every class alike, or a ratio a class, such as {spam: 1, ham: 3}; all classes are named."""
    strength: Share = 1.0
    """0 leaves the mix as it is, 1 reaches the target, between is on the way (geometrically)."""
    how: Literal["undersample", "oversample", "weight"] = "undersample"
    """Leave rows of frequent classes out, repeat rows of rare ones, or weigh."""
    max_repeat: int = Field(default=4, ge=1)
    """Most copies of one row when oversampling."""


class RecordColumns(Strict):
    """Names of the fields in `records` files that are CSV or our own format."""

    input: str = "text"
    """The input."""
    id: str = "id"
    """What the dataset's rows are called."""
    user: str = "user"
    """Who asked."""


class CurateConfig(Strict):
    """All stages. Only train rows are ever changed or taken out."""

    seed: int = 0
    """Of every draw."""
    records: tuple[Path, ...] = ()
    """Traffic folders and imported files: where users and finish reasons of rows are read."""
    columns: RecordColumns = RecordColumns()
    """Where those files keep them."""
    rules: tuple[Annotated[Rule, BeforeValidator(_bare)], ...] = ()
    duplicates: Duplicates | None = None
    semantic: Semantic | None = None
    gold: Gold | None = None
    votes: Votes | None = None
    suspects: Suspects | None = None
    rank: Rank | None = None
    power_users: PowerUsers | None = None
    balance: Balance | None = None

    @model_validator(mode="after")
    def _holds(self) -> "CurateConfig":
        names = [name_of(rule) for rule in self.rules]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise at_key("rules", f"two rules are called {twice!r}; give each its own id")
        if not self.records:
            wants = next((name_of(r) for r in self.rules if r.truncated), None)
            if wants is not None:
                raise at_key(
                    "records",
                    f"rule {wants!r} needs the rows' finish reasons: name traffic folders or files",
                )
            if self.power_users is not None and self.power_users.by == "user":
                raise at_key(
                    "records",
                    "power_users by user needs the rows' users: name traffic folders or files",
                )
        return self


def name_of(rule: Rule) -> str:
    """The rule's name in the ledger."""
    return rule.id or rule.condition


def load(path: Path) -> CurateConfig:
    """The configuration in a file.

    Raises:
        ConfigError: with the file, the key, the value and what is allowed.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as why:
        raise ConfigError(f"{path}: {why}") from why
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{path}: allowed: a mapping with the keys {', '.join(CurateConfig.model_fields)}"
        )
    try:
        return CurateConfig.model_validate(data)
    except ValidationError as why:
        raise ConfigError("\n".join(f"{path}: {_problem(e)}" for e in why.errors())) from why


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "at_key":
        path = ".".join(p for p in (path, error["ctx"]["key"]) if p)
        return f"{path}: {error['ctx']['why']}" if path else str(error["ctx"]["why"])
    if error["type"] == "extra_forbidden":
        names = _keys(error["loc"])
        near = difflib.get_close_matches(str(error["loc"][-1]), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{path}: unknown key; {hint}allowed: {', '.join(names)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path} = {error['input']!r:.80}: {message[0].lower()}{message[1:]}"


_STAGES: dict[str, type[Strict]] = {
    "rules": Rule, "duplicates": Duplicates, "semantic": Semantic, "rank": Rank, "gold": Gold, "votes": Votes, "suspects": Suspects,
    "power_users": PowerUsers, "balance": Balance, "columns": RecordColumns,
}  # fmt: skip


def _keys(loc: tuple[Any, ...]) -> list[str]:
    model = _STAGES.get(str(loc[0]), CurateConfig) if len(loc) > 1 else CurateConfig
    return [f.alias or name for name, f in model.model_fields.items()]

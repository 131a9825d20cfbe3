"""`graduate train label`: rows and a teacher to labels, or a grid of teachers to a choice; the cost first, never over the cap."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.errors import ConfigError, DataError

if TYPE_CHECKING:
    from router.answer_spec import AnswerSpec
    from router.policy import Price
    from training.build import Row
    from training.label import Job, Labelled, Teacher
    from training.label_cache import Reply
    from training.label_grid import GridConfig
    from training.label_run import LabelRun
    from training.label_teacher import Asked
    from training.label_tools import LabelTools


def label(
    input_file: Annotated[Path, typer.Argument(help="Rows: JSON Lines, CSV or another tool's export.", metavar="INPUT")],
    out: Annotated[Path, typer.Option(help="Labelled rows (JSON Lines); with --grid a folder.")],
    teacher_url: Annotated[str | None, typer.Option(help="OpenAI-style API, with /v1; default: the route's teacher.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Teacher's model; again for votes of several; default: the route's.")] = None,
    grid: Annotated[Path | None, typer.Option(help="YAML: models, prompts, temperatures to compare on gold.")] = None,
    prompt: Annotated[str | None, typer.Option(help="User message with {input}; default: the row's messages.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    samples: Annotated[int, typer.Option(min=1, max=50, help="Answers a row and model, for self-consistency.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    extra: Annotated[list[str] | None, typer.Option("--body", help="More of the request: KEY=VALUE.")] = None,
    extract: Annotated[str | None, typer.Option(help="Regular expression that finds the answer in a reply.")] = None,
    labels: Annotated[str | None, typer.Option(help="Allowed answers, by commas; or take --policy and --route.")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file: tools (OpenAI's form) of rows that bring none; answers are then tool calls.")] = None,
    tool_choice: Annotated[str | None, typer.Option(help="auto, none, required or a tool's name, for rows that say nothing.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file: teacher, answer spec, price.")] = None,
    route: Annotated[str | None, typer.Option(help="Route of the policy.")] = None,
    input_price: Annotated[float | None, typer.Option(min=0, help="US dollars a million prompt tokens.")] = None,
    output_price: Annotated[float | None, typer.Option(min=0, help="US dollars a million completion tokens.")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Hard cap; default: the greatest cost shown.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before paying.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=512, help="Requests at once.")] = 8,
    min_first: Annotated[float, typer.Option(min=0, max=1, help="Share of the first 16 answers that must have the form.")] = 0.8,
    cache: Annotated[Path, typer.Option(help="Answers already paid for (SQLite).")] = Path(".graduate/teacher-cache.db"),
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key; default: the route's, or OPENAI_API_KEY.")] = None,
    input_key: Annotated[str, typer.Option(help="Key of the input.")] = "text",
    teacher_key: Annotated[str, typer.Option(help="Key of an answer that is there already (its length tells the cost).")] = "teacher",
    gold_key: Annotated[str, typer.Option(help="Key of the gold answer.")] = "gold",
    form: Annotated[str | None, typer.Option("--format", help="Format of INPUT; default: by its first row.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:  # fmt: skip
    """Ask a teacher for labels: cost shown first and capped, first 16 checked, resumable; or compare teachers on gold.

    Example: graduate train label rows.jsonl --teacher-url https://api.openai.com/v1 --model gpt-4o-mini --labels spam,ham --input-price 0.15 --output-price 0.60 --max-usd 5 --out labels.jsonl
    """
    from training import imports, label_tools
    from training.build import Keys
    from training.commands import operator_errors
    from training.form import address
    from training.import_formats import Columns
    from training.label import Teacher, jobs_of
    from training.label_run import LabelRun
    from training.label_tools import ToolFlags

    with operator_errors():
        source = _source(policy, route, labels, input_price, output_price)
        url, names = teacher_url or source.url, model or source.models
        rows = imports.read(
            input_file, Columns(Keys(input_key, teacher_key, gold_key)), form=form
        ).rows
        if not rows:
            raise DataError(f"{input_file}: no rows")
        if url is None:
            raise ConfigError("label: give --teacher-url, or --policy and --route")
        address(url, "--teacher-url")
        kind = source.spec.kind if source.spec is not None else None
        flags = ToolFlags(tools, tool_choice, tuple(extra or ()), extract)
        source = replace(source, tools=label_tools.of(flags, rows, kind))
        run = LabelRun(
            cache, api_key_env or source.key_env, concurrency, max_usd, yes, min_first, as_json
        )
        if grid is not None:
            _grid(grid, url, rows, source, out, run)
            return
        if not names:
            raise ConfigError(
                "label: give --model (again for several), --grid, or --policy and --route"
            )
        if source.price is None:
            raise ConfigError(
                f"the price of {names[0]} is not known: give --input-price and --output-price in US dollars a million "
                "tokens (0 for a server of your own), or --policy and --route"
            )
        _check_prompt(prompt, extract)
        teachers = [
            source.asking(
                Teacher(url, name, source.price, system, prompt, temperature, max_tokens, _extra(extra), extract)
            )
            for name in names
        ]  # fmt: skip
        asked = run.ask(jobs_of(rows, teachers, samples), rows, source.answers)
        _write(rows, asked, source.answers, out, run)


@dataclass(frozen=True, slots=True)
class _Source:
    """What flags and the policy's route say of the teacher and of its answers; no spec where neither says what they are."""

    spec: "AnswerSpec | None"
    price: "Price | None"
    url: str | None
    models: list[str]
    key_env: str
    tools: "LabelTools | None" = None

    def asking(self, teacher: "Teacher") -> "Teacher":
        """The teacher, asked with tools where answers call them."""
        return teacher if self.tools is None else self.tools.given_to(teacher)

    @property
    def answers(self) -> "AnswerSpec":
        """What the answers are."""
        from router.answer_spec import AnswerSpec

        if self.spec is not None:
            return self.spec
        return AnswerSpec(kind="tool_call" if self.tools else "text")


def _source(
    policy: Path | None, route: str | None, labels: str | None, input_price: float | None, output_price: float | None
) -> _Source:  # fmt: skip
    """Flags laid over the route.

    Raises:
        ConfigError: flags that do not fit together.
    """
    from router.answer_spec import AnswerSpec
    from router.policy import Price
    from training.commands import open_route

    if (policy is None) != (route is None):
        raise ConfigError("label: --policy and --route belong together")
    if (input_price is None) != (output_price is None):
        raise ConfigError("label: --input-price and --output-price belong together")
    spec, price, url, models, key_env = None, None, None, list[str](), None
    if policy is not None and route is not None:
        loaded, found = open_route(policy, route)
        backend = loaded.backends[found.teacher.backend]
        spec, url, key_env = found.answer, backend.base_url, backend.api_key_env
        # A backend without a price is not a free one: what it costs is not known.
        price = backend.price if "price" in backend.model_fields_set else None
        models = [found.teacher.model] if found.teacher.model else []
    if labels is not None:
        words = tuple(word.strip() for word in labels.split(",") if word.strip())
        if len(words) < 2:
            raise ConfigError(f"--labels {labels!r}: allowed: two or more words, by commas")
        spec = AnswerSpec(kind="label", labels=words)
    if input_price is not None and output_price is not None:
        price = Price(input=input_price, output=output_price)
    return _Source(spec, price, url, models, key_env or "OPENAI_API_KEY")


def _check_prompt(prompt: str | None, extract: str | None) -> None:
    from router.answer_spec import regex
    from router.prompt import template_fields

    try:
        if prompt is not None and "input" not in template_fields(prompt):
            raise ConfigError(f"--prompt {prompt!r:.60}: allowed: a text with {{input}}")
        if extract is not None:
            regex(extract)
    except ValueError as why:
        raise ConfigError(f"--prompt or --extract: {why}") from why


def _extra(assignments: list[str] | None) -> dict[str, Any]:
    from training.config import parse_assignments

    try:
        return parse_assignments(assignments or [])
    except ConfigError as why:
        raise ConfigError(
            str(why).replace("--set", "--body").replace("lora.rank=8", "seed=1")
        ) from why


def _write(
    rows: "Sequence[Row]", asked: "Asked", spec: "AnswerSpec", out: Path, run: "LabelRun"
) -> None:
    from training.label import labelled
    from training.label_grid import ceiling

    done = labelled(rows, asked.answers, spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(one.as_line(), ensure_ascii=False) + "\n" for one in done)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(lines, encoding="utf-8")
    partial.rename(out)
    left = len({job.row for job in asked.left})
    report: dict[str, Any] = {
        "out": str(out), "rows": len(rows), "labelled": len(done),
        "wrong_form": sum(one.problem is not None for one in done), "failed": len(asked.failed),
        "rows_left_by_the_cap": left, "spent_usd": round(run.spent_usd, 6),
        "cached": run.estimate.num_cached if run.estimate else 0,
        "failures": [{"id": rows[job.row].id, "why": why} for job, why in asked.failed],
        "ceiling": ceiling([(one.row, one.answer) for one in done], spec),
    }  # fmt: skip
    if any(len(one.answers) > 1 for one in done):
        report["mean_agreement"] = sum(one.agreement for one in done) / len(done)
        report["ceilings_of_single_votes"] = _single(done, spec)
    Path(f"{out}.report.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    _show(report, run.as_json)
    if left or asked.failed:
        raise typer.Exit(1)


def _single(done: "Sequence[Labelled]", spec: "AnswerSpec") -> list[float | None]:
    """Each vote's own rate against gold, to see whether the majority leaps over any single teacher."""
    from training.label_grid import ceiling

    most = max(len(one.answers) for one in done)
    rates: list[float | None] = []
    for place in range(most):
        found = ceiling([(o.row, o.answers[place]) for o in done if len(o.answers) == most], spec)
        rates.append(found[0]["accuracy"] if found else None)
    return rates


def _show(report: dict[str, Any], as_json: bool) -> None:
    from rich.table import Table

    from training.commands import err, out

    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    out.print(
        f"{report['labelled']} of {report['rows']} rows labelled for ${report['spent_usd']:.4f}; "
        f"{report['wrong_form']} answers lack the form, {report['failed']} requests failed",
        highlight=False,
    )
    if report["rows_left_by_the_cap"]:
        err.print(
            f"[bold red]stopped at the cap:[/] {report['rows_left_by_the_cap']} rows are left; what is paid is kept, "
            "run again with a greater --max-usd", highlight=False, soft_wrap=True,
        )  # fmt: skip
    for one in report["failures"][:5]:
        err.print(f"no answer for {one['id']}: {one['why']}", markup=False, soft_wrap=True)
    if report["ceiling"]:
        table = Table(
            "slice",
            "part",
            "rows",
            "right",
            "95 %",
            title="teacher against gold: the student's ceiling",
        )
        for row in report["ceiling"]:
            low, high = row["interval"]
            table.add_row(
                row["slice"],
                row["part"],
                str(row["rows"]),
                f"{row['accuracy']:.1%}",
                f"{low:.1%}-{high:.1%}",
            )
        out.print(table)
    out.print(f"written to {report['out']}", soft_wrap=True)


def _grid(
    path: Path, url: str, rows: "Sequence[Row]", source: _Source, out: Path, run: "LabelRun"
) -> None:
    from training import label_grid
    from training.label import CHECKED_FIRST

    config, spec = label_grid.load(path), source.answers
    gold = [row for row in rows if row.gold is not None]
    if not gold:
        raise DataError("grid: no row has a gold answer to score against (--gold-key)")
    teachers = {
        name: source.asking(teacher)
        for name, teacher in label_grid.teachers_of(config, url).items()
    }
    # A prompt that spoils the form is a finding of the comparison; only a teacher that never keeps it ends it.
    run.min_first = min(run.min_first, 1 / CHECKED_FIRST)
    jobs, repeats = _grid_jobs(config, teachers, gold)
    asked = run.ask([job for some in jobs.values() for job in some], gold, spec)
    if asked.left:
        raise DataError(
            f"grid: the cap was reached with {len(asked.left)} of {len(asked.left) + len(asked.answers)} answers missing; "
            "settings with different rows cannot be compared. What is paid is kept: run again with a greater --max-usd"
        )
    by_teacher: dict[int, list[tuple[Job, Reply]]] = {}
    for job, reply in asked.answers:
        by_teacher.setdefault(id(job.teacher), []).append((job, reply))
    settings = [
        label_grid.score(name, gold, by_teacher.get(id(teacher), []), repeats[name], spec)
        for name, teacher in teachers.items()
    ]
    verdict = label_grid.judge(settings)
    report = label_grid.write(settings, verdict, teachers, out) | {
        "spent_usd": run.spent_usd,
        "out": str(out),
    }
    _show_grid(report, run.as_json)


def _grid_jobs(
    config: "GridConfig", teachers: "dict[str, Teacher]", gold: "Sequence[Row]"
) -> "tuple[dict[str, list[Job]], dict[str, int]]":
    from training.label import jobs_of

    repeats = {name: config.repeats if t.temperature else 1 for name, t in teachers.items()}
    return {name: jobs_of(gold, [t], repeats[name]) for name, t in teachers.items()}, repeats


def _show_grid(report: dict[str, Any], as_json: bool) -> None:
    from rich.table import Table

    from training.commands import out

    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    table = Table(
        "setting",
        "right",
        "95 %",
        "no form",
        "failed",
        "$/1,000",
        "p50 s",
        "p95 s",
        title="teachers on gold",
    )
    for s in report["settings"]:
        mark = " *" if s["name"] == report["chosen"] else ""
        table.add_row(
            s["name"] + mark, f"{s['accuracy']:.1%}", f"{s['low']:.1%}-{s['high']:.1%}", str(s["unparseable"]),
            str(s["failed"]), f"{s['usd_per_1000']:.3f}", f"{s['p50_seconds']:.2f}", f"{s['p95_seconds']:.2f}",
        )  # fmt: skip
    out.print(table)
    out.print(f"chosen: {report['chosen']}: {report['why']}", highlight=False, soft_wrap=True)
    out.print(f"spent ${report['spent_usd']:.4f}; written to {report['out']}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="label")(label)

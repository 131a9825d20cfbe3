"""What tokenizer and template make of a dataset, before a step is trained: a hard gate with figures."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from router.tool_calls import read
from training import label_engine as engine
from training import lora, memory, precision, servers, setup_check
from training.config import FitConfig
from training.dataset import Dataset, DatasetInfo, Example, class_names
from training.encode import Encoded, encode
from training.errors import ConfigError, PreflightFailed
from training.memory import GIB, Estimate
from training.setup_check import AtStart, Overfit

TIMED_ROWS = 16
CALLS_READ = 50
"""Rows whose calls are written and read once."""
Tell = Callable[[str, int, int, float | None], None]
"""Hears what is done, how much of it, of how much, and the last loss."""


@dataclass(frozen=True, slots=True)
class Mask:
    """One row as the engine sees it: text without loss, text with loss."""

    masked: str
    trained: str


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """Figures of a dataset under a template; `refusals` is empty when it may be trained on."""

    rows: dict[str, int]
    tokens: dict[str, int]
    """Percentiles of a training row's length in tokens: p50, p95, max."""
    histogram: list[tuple[int, int]]
    """Upper end of a bucket of lengths, rows in it."""
    cut_share: float
    ends_with_eos: bool
    template_is_prefix: bool
    """Tokens of prompt + answer begin with the prompt's tokens: how serving sees it."""
    masks: tuple[Mask, ...]
    trainable_parameters: int
    estimated_seconds: float
    memory: Estimate
    """Peak of the fit, part by part."""
    at_start: AtStart | None
    """Loss before a step; None when something was refused before it could be measured."""
    overfit: Overfit | None
    """A few rows learnt by heart; None unless asked for."""
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def preflight(
    dataset: Dataset,
    model: Any,
    tokenizer: Any,
    config: FitConfig,
    *,
    overfit_rows: int = 0,
    tell: Tell = lambda phase, done, total, loss: None,
) -> PreflightReport:
    """Look at every row; time the model on a few of them for the estimate, and take their loss before a step.

    Args:
        overfit_rows: training rows that are learnt by heart as a check of the whole set-up; 0 leaves it out.
    """
    template, limit = dataset.info.prompt, dataset.info.max_input_chars
    train = [
        encode(e, tokenizer, template, limit)
        for e in _told(dataset.of("train"), "tokens of training rows", tell)
    ]
    held = [
        encode(e, tokenizer, template, limit)
        for e in _told(dataset.of("validation"), "tokens of validation rows", tell)
    ]
    lengths = sorted(len(row) for row in train) or [0]
    cut = sum(row.was_cut for row in train) / max(1, len(train))
    eos = all(row.completion_ids[-1] == tokenizer.eos_token_id for row in train)
    refusals, warnings = _judge(dataset, train, held, cut, config, model)
    refusals += _lost_calls(dataset, train, tokenizer)
    needed = _memory(model, train, held, config, refusals, warnings)
    warnings += _serving(config)
    is_prefix = all(_is_prefix(row, tokenizer) for row in train[:50])
    if train and not eos:
        refusals.append("an answer does not end with the stop token: the student would not learn to stop")  # fmt: skip
    if not is_prefix:
        # Serving tokenizes the prompt alone, as training does, so this is no mismatch; but the model knows the joined token.
        warnings.append(
            "the template's end and an answer's beginning are one token when written together: let the template end "
            "without a space, and look at the rows below"
        )
    seconds = 0.0 if refusals else _estimate(model, train, held, config)
    start = learnt = None
    if not refusals:
        start = setup_check.at_start(model, train, config)
        refusals += start.refusals()
        warnings += start.warnings()
    if overfit_rows and not refusals:
        learnt = setup_check.overfit(
            model, train[:overfit_rows], config,
            lambda done, total, loss: tell("rows by heart, passes at most", done, total, loss),
        )  # fmt: skip
        refusals += learnt.refusals()
    return PreflightReport(
        rows={"train": len(train), "validation": len(held)},
        tokens={
            "p50": lengths[len(lengths) // 2],
            "p95": lengths[int(0.95 * (len(lengths) - 1))],
            "max": lengths[-1],
        },
        histogram=_histogram(lengths),
        cut_share=cut,
        ends_with_eos=eos,
        template_is_prefix=is_prefix,
        masks=tuple(
            Mask(
                tokenizer.decode(row.prompt_ids),
                tokenizer.decode(row.completion_ids, skip_special_tokens=False),
            )
            for row in train[:3]
        ),
        trainable_parameters=_trainable(model, config),
        estimated_seconds=seconds,
        memory=needed,
        at_start=start,
        overfit=learnt,
        refusals=tuple(refusals),
        warnings=tuple(warnings),
    )


def _told(rows: Sequence[Example], phase: str, tell: Tell) -> Iterator[Example]:
    for number, row in enumerate(rows, 1):
        yield row
        if number % 200 == 0 or number == len(rows):
            tell(phase, number, len(rows), None)


def _judge(
    dataset: Dataset,
    train: Sequence[Encoded],
    held: Sequence[Encoded],
    cut: float,
    config: FitConfig,
    model: Any,
) -> tuple[list[str], list[str]]:
    refusals, warnings = [], []
    if not train:
        refusals.append("no training rows")
    if not held:
        refusals.append(
            "no validation rows: early stopping has nothing to go by; raise --validation-share"
        )
    if cut > config.max_cut_share:
        refusals.append(
            f"{100 * cut:.0f} % of the inputs are cut at max_input_chars={dataset.info.max_input_chars}; allowed: "
            f"{100 * config.max_cut_share:.0f} % (max_cut_share); raise max_input_chars in the policy's student"
        )
    empty = [row.id for row in train if len(row.completion_ids) < 2]
    if empty:
        refusals.append(f"{len(empty)} empty answers, the first is row {empty[0]}")
    longest = max((len(row) for row in train), default=0)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and longest > limit:
        refusals.append(
            f"a row has {longest} tokens, the model takes {limit}; lower max_input_chars"
        )
    answers = {e.completion for e in dataset.of("train")}
    if len(train) > 1 and len(answers) == 1:
        refusals.append(f"all {len(train)} training rows have the answer {answers.pop()!r:.80}: there is nothing to tell apart")  # fmt: skip
    of_classes = _judge_classes(dataset.info)
    refusals += of_classes[0]
    warnings += of_classes[1]
    prompts = {row.prompt_ids for row in train}
    if len(train) > 1 and len(prompts) == 1:
        refusals.append(
            "all prompts are the same after the template and its cut: the input does not reach the student"
        )
    return refusals, warnings


def _lost_calls(dataset: Dataset, train: Sequence[Encoded], tokenizer: Any) -> list[str]:
    """A refusal where calls are not read back from the text that servers make of their tokens, special ones left out."""
    if dataset.info.answer.get("kind") != "tool_call":
        return []
    for example, row in zip(dataset.of("train")[:CALLS_READ], train, strict=False):
        text = tokenizer.decode(row.completion_ids, skip_special_tokens=True)
        if read(text) != read(example.completion):
            return [
                f"row {example.id}: the call is not in the text that the tokenizer makes of its tokens: {text!r:.80}; allowed: "
                "a base model whose tokenizer has <tool_call> as text, or as a token that is not special"
            ]
    return []


def _judge_classes(info: DatasetInfo) -> tuple[list[str], list[str]]:
    """Refusals and warnings about classes; none where the answers have no classes."""
    refusals, warnings = list[str](), list[str]()
    classes = info.classes.get("train", {})
    everywhere = {name for split in info.classes.values() for name in split}
    missing = sorted(everywhere - set(classes))
    if missing and info.answer.get("kind") == "tool_call":
        # What one request may call together has no end, so a combination may well be in one split alone.
        warnings.append(f"no training row that calls {', '.join(missing)}, which other splits have")
    elif missing:
        refusals.append(f"no training row of class {', '.join(missing)}, which other splits have")
    unseen = sorted(set(class_names(info.answer)) - everywhere) if classes else []
    if unseen:
        warnings.append(
            f"no row at all of class {', '.join(unseen)}, which the route's answers may have: the student cannot learn it"
        )
    rare = sorted(name for name, count in classes.items() if count < 5)
    if rare:
        warnings.append(f"fewer than 5 training rows of class {', '.join(rare)}")
    return refusals, warnings


def _memory(
    model: Any,
    train: Sequence[Encoded],
    held: Sequence[Encoded],
    config: FitConfig,
    refusals: list[str],
    warnings: list[str],
) -> Estimate:
    """The fit's peak; a refusal when it is more than there is, or more than `max_memory_gib`."""
    has_gpu = _has_gpu(config)
    try:
        trained_in = precision.trained_in(config)
    except ConfigError as why:
        refusals.append(str(why))
        trained_in = "fp32"
    accepted = config.max_memory_gib
    there = _gpu_limit() if has_gpu else memory.machine_limit()
    limit = int(accepted * GIB) if accepted is not None else there
    found = memory.estimate(
        memory.shape_of(model), train, held, config, trainable=_trainable(model, config), precision=trained_in,
        has_gpu=has_gpu, limit=limit,
    )  # fmt: skip
    if found.is_too_much:
        whose = (
            f"max_memory_gib = {accepted:g}" if accepted is not None else f"this {found.device} has"
        )
        refusals.append(
            f"the fit is estimated to take {found.sentence()}, more than {whose}; lower batch_size, trl.device_batch, "
            "max_input_chars or lora.top_layers, or accept it by max_memory_gib"
        )
    elif there is not None and found.total > there:
        warnings.append(f"estimated memory {found.sentence()}: more than the {there / GIB:.1f} GiB that are there")  # fmt: skip
    return found


def _has_gpu(config: FitConfig) -> bool:
    import torch

    return config.engine == "trl" and config.trl.device == "auto" and torch.cuda.is_available()


def _gpu_limit() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[1])


def _serving(config: FitConfig) -> list[str]:
    """What publishing would refuse of this shape of adapter for a server, said before it is trained."""
    shape = {"r": config.lora.rank, "lora_alpha": config.lora.alpha}
    return [wrong for server in servers.SERVERS for wrong in servers.lint_config(shape, server)]


def _is_prefix(row: Encoded, tokenizer: Any) -> bool:
    whole = tokenizer.decode(row.prompt_ids) + tokenizer.decode(row.completion_ids[:-1])
    return (
        tuple(tokenizer.encode(whole, add_special_tokens=False)[: len(row.prompt_ids)])
        == row.prompt_ids
    )


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    ends = [16, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 4096, 1 << 20]
    found = []
    below = 0
    for end in ends:
        count = sum(length <= end for length in lengths) - below
        if count:
            found.append((end, count))
        below += count
    return found


def _trainable(model: Any, config: FitConfig) -> int:
    """Weights that LoRA adds: rank times (inputs + outputs) of each adapted linear layer."""
    layers = lora.decoder_of(model).layers
    top = config.lora.top_layers or len(layers)
    count = 0
    for layer in list(layers)[-top:]:
        for name, module in layer.named_modules():
            if name.split(".")[-1] in config.lora.targets:
                count += config.lora.rank * (module.in_features + module.out_features)
    return count


def _estimate(
    model: Any, train: Sequence[Encoded], held: Sequence[Encoded], config: FitConfig
) -> float:
    """Seconds of the whole run, from the time that a forward pass over a few rows takes.

    A trained layer costs some 3 forward passes (forward, backward through it, the LoRA weights' gradients). The engine `trl`
    runs the frozen lower layers in every pass, the other one once. The time is this CPU's, whatever trains in the end.
    """
    import torch

    by_length = sorted(train, key=len)
    middle = max(0, len(by_length) // 2 - TIMED_ROWS // 2)
    rows = by_length[middle : middle + TIMED_ROWS]  # of a length, so that padding is not timed
    ids, mask = engine.padded_ids(rows)
    layers = len(lora.decoder_of(model).layers)
    top = min(config.lora.top_layers or layers, layers)
    with torch.no_grad():
        lora.decoder_of(model)(input_ids=ids[:2], attention_mask=mask[:2], use_cache=False)
        began = time.perf_counter()
        lora.decoder_of(model)(input_ids=ids, attention_mask=mask, use_cache=False)
        seconds = time.perf_counter() - began
    average = sum(map(len, train)) / len(train)
    each = seconds / sum(map(len, rows)) * average
    below = len(train) * config.passes if config.engine == "trl" else len(train)
    lower = each * (layers - top) / layers * (below + len(held))
    upper = each * top / layers * 3 * len(train) * config.passes
    return lower + upper


def enforce(report: PreflightReport) -> None:
    """Nothing, when the report has no refusal.

    Raises:
        PreflightFailed: with every refusal.
    """
    if report.refusals:
        raise PreflightFailed("preflight: " + "; ".join(report.refusals))


def show(report: PreflightReport, as_json: bool, console: Console | None = None) -> None:
    """Print the report."""
    if as_json:
        told = asdict(report)
        told["memory"]["total"] = report.memory.total
        typer.echo(json.dumps(told))
        return
    console = console or Console()
    table = Table("preflight", "", show_header=True)
    table.add_row("rows", ", ".join(f"{name} {count}" for name, count in report.rows.items()))
    table.add_row("tokens a row", ", ".join(f"{name} {n}" for name, n in report.tokens.items()))
    table.add_row("histogram", ", ".join(f"{n} up to {end}" for end, n in report.histogram))
    table.add_row("inputs cut", f"{100 * report.cut_share:.1f} %")
    table.add_row("trainable weights", f"{report.trainable_parameters:,}")
    table.add_row("estimated time", f"{report.estimated_seconds:.0f} s")
    table.add_row("estimated memory", report.memory.sentence())
    table.add_row("stop token trained", "yes" if report.ends_with_eos else "no")
    if (start := report.at_start) is not None:
        table.add_row(
            "loss before a step",
            f"{start.engine:.3f} nats a token, plain model {start.plain:.3f}, guessing {start.uniform:.2f}",
        )
    if (learnt := report.overfit) is not None:
        table.add_row(
            "learnt by heart",
            f"{100 * learnt.exact_share:.0f} % of {learnt.rows} rows exact after {learnt.passes} passes",
        )
    for mask in report.masks:
        table.add_row(
            "loss falls on", f"[dim]…{escape(mask.masked[-60:])}[/] ▶ {escape(mask.trained)}"
        )
    for warning in report.warnings:
        table.add_row("[yellow]warning[/]", warning)
    console.print(table)

"""One way of training, in a process of its own: goes on where it was, ends at its deadline, writes what it measured.

    python -m benchmarks.training.way WAY FOLDER --seconds 100 …      the driver starts these

Ways: `fit` is `graduate train fit`, `trl` TRL's SFTTrainer as it comes, `trl-rate` the same with a learning rate for LoRA,
`trl-tuned` with all that can be set right, `fit-trl` is `graduate train fit --engine trl`.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset as Table
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from benchmarks.training import work
from router.prompt import render
from serving import base_model
from training import lora, whole_model
from training.config import FitConfig
from training.encode import Encoded, encode
from training.train import FitEvent, Run, RunPaused

STARTED = time.monotonic()
WAYS = ("fit", "trl", "trl-rate", "trl-tuned", "fit-trl")
RATE = {"trl": 2e-5, "trl-rate": 5e-4, "trl-tuned": 5e-4}
"""2e-5 is TRL's default, for whole models; 5e-4 the best known here for LoRA on all layers. No speed depends on it."""


def per_row(adapted: Any, held: Sequence[Encoded]) -> float:
    """Nats a held-out row: minus the log-probability of its whole answer and end. Comparable over prompts."""
    found = whole_model.validate(adapted, held, 8)
    return found.loss * sum(len(r.completion_ids) for r in held) / len(held)


def note(state: dict[str, Any], rows: int, loss: float, cpu_seconds: float) -> None:
    """One point of the curve: rows seen, nats a held-out row, processor seconds until then."""
    state["losses"].append([rows, loss])
    state["loss_cpu_seconds"].append(cpu_seconds)


class Clock(TrainerCallback):
    """Times each step, validates after every `check` rows and after an epoch, and ends the turn at the deadline."""

    def __init__(
        self, state: dict[str, Any], rows: int, check: int, most: int, deadline: float, loss: Any
    ) -> None:
        self.state, self.rows, self.check, self.most = state, rows, check, most
        self.deadline, self.loss = deadline, loss
        self.began = self.cpu = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.state["seconds"].append(time.perf_counter() - self.began)
        self.state["cpu_seconds"] += time.process_time() - self.cpu
        self.state["peak_mib"] = max(self.state["peak_mib"], peak_mib())
        steps = -(-self.rows // args.per_device_train_batch_size)
        epochs, within = divmod(state.global_step, steps)
        seen = within * args.per_device_train_batch_size
        if seen and seen % self.check == 0:
            note(self.state, epochs * self.rows + seen, self.loss(), self.state["cpu_seconds"])
        left = self.deadline - time.monotonic()
        is_enough = state.global_step * args.per_device_train_batch_size >= self.most
        if is_enough or left < 1.5 * max(self.state["seconds"][-3:]):
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        epoch = round(state.epoch)
        if not epoch or abs(state.epoch - epoch) > 1e-6:
            return  # a turn that ends within an epoch
        note(self.state, epoch * self.rows, self.loss(), self.state["cpu_seconds"])
        control.should_save = True


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor_seconds() -> tuple[float, float]:
    """Seconds that all processors together were busy since the machine started, and that this process was."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words)
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = resource.getrusage(resource.RUSAGE_SELF)
    return busy, own.ru_utime + own.ru_stime


def plain_trl(way: str, folder: Path, args: Any, state: dict[str, Any]) -> None:
    """SFTTrainer: as it comes, or with full precision, no checkpointing, and our prompt and cut."""
    dataset, teacher = work.rows(args.jigsaw, args.rows, args.held)
    base = base_model.load(args.model, folder)
    adapted = lora.add_lora(base.model, rank=16, alpha=32, top_layers=None, seed=0)
    train, held = dataset.of("train"), dataset.of("validation")
    info = dataset.info
    more: dict[str, Any] = {}
    if way != "trl-tuned":
        rows = work.conversational(train, teacher)
        check = work.chat_encoded(work.conversational(held, teacher), base.tokenizer)
    else:
        rows = [
            {"prompt": render(info.prompt, e.messages, info.max_input_chars)[0], "completion": e.completion}
            for e in train
        ]  # fmt: skip
        check = [encode(e, base.tokenizer, info.prompt, info.max_input_chars) for e in held]
        more = {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    settings = SFTConfig(
        str(folder / "checkpoints"), use_cpu=True, report_to="none", disable_tqdm=True, seed=0,
        num_train_epochs=args.epochs, learning_rate=RATE[way], save_strategy="no", save_total_limit=1,
        per_device_train_batch_size=8, dataloader_pin_memory=False, **more,
    )  # fmt: skip
    cpu = time.process_time()
    trainer = SFTTrainer(
        adapted, settings, train_dataset=Table.from_list(rows), processing_class=base.tokenizer
    )
    if not state["seconds"]:
        state["cpu_seconds"] += time.process_time() - cpu  # tokenising
    state["tokens_a_row"] = sum(map(len, trainer.train_dataset["input_ids"])) / len(
        trainer.train_dataset
    )
    state["rows_used"] = len(trainer.train_dataset)
    trainer.remove_callback(PrinterCallback)
    most = args.most.get(way, args.epochs * args.rows)
    deadline = STARTED + args.seconds
    trainer.add_callback(
        Clock(state, args.rows, args.check, most, deadline, lambda: per_row(adapted, check))
    )
    last = get_last_checkpoint(settings.output_dir) if Path(settings.output_dir).is_dir() else None  # type: ignore[no-untyped-call]
    trainer.train(resume_from_checkpoint=last)
    steps = len(state["seconds"])
    state["rows_seen"] = sum(min(8, args.rows - 8 * (i % -(-args.rows // 8))) for i in range(steps))
    state["done"] = state["rows_seen"] >= most
    if state["done"] and state["losses"][-1:] and state["losses"][-1][0] != state["rows_seen"]:
        note(state, state["rows_seen"], per_row(adapted, check), state["cpu_seconds"])


class Watch:
    """What `graduate train fit` tells: its processor time until each point, and held-out losses within its epochs."""

    def __init__(
        self, state: dict[str, Any], held: Sequence[Encoded], layers: Any, check: int
    ) -> None:
        self.state, self.held, self.layers, self.check = state, held, layers, check
        self.model: Any = None
        self.ends: dict[str, float] = state.setdefault("epoch_cpu_seconds", {})
        self.within: list[list[float]] = state.setdefault("within_epochs", [])
        self.spent = state["cpu_seconds"]
        self.began, self.cpu = time.perf_counter(), time.process_time()
        self.checking = 0.0
        self.checking_wall: dict[str, float] = {}

    def cpu_seconds(self) -> float:
        """Processor seconds so far, those of validating within epochs left out."""
        return float(self.spent + time.process_time() - self.cpu - self.checking)

    def __call__(self, event: FitEvent) -> None:
        if event.phase == "lower layers, training rows" and not self.state["losses"]:
            self.state["once_seconds"] = time.perf_counter() - self.began
        if event.phase.startswith("epoch "):
            spent = self.ends[event.phase] = self.cpu_seconds()
            if self.check and event.done % self.check == 0 and event.done < event.total:
                seen = (int(event.phase.split()[1]) - 1) * event.total + event.done
                before, wall = time.process_time(), time.perf_counter()
                self.within.append([seen, self.loss(), spent])
                self.checking += time.process_time() - before
                done = self.checking_wall.get(event.phase, 0.0)
                self.checking_wall[event.phase] = done + time.perf_counter() - wall
        self.state["peak_mib"] = max(self.state["peak_mib"], peak_mib())

    def loss(self) -> float:
        """Nats a held-out row by the whole model: within an epoch its lower layers are out of the decoder."""
        decoder = lora.decoder_of(self.model)
        upper, decoder.layers = decoder.layers, self.layers
        loss = per_row(self.model, self.held)
        decoder.layers = upper
        return loss


def ours(way: str, folder: Path, args: Any, state: dict[str, Any]) -> None:
    """`graduate train fit` by either engine; the time of states computed once is part of it."""
    from training.trl_run import TrlRun

    dataset, _ = work.rows(args.jigsaw, args.rows, args.held)
    base = base_model.load(args.model, folder)
    # TRL's run over all layers needs a lower rate than ours over the top ten.
    config = FitConfig(epochs=args.epochs, patience=args.epochs, max_cut_share=1)
    if way == "fit-trl":
        config = FitConfig.model_validate(
            {**config.model_dump(), "engine": "trl", "lora": {"top_layers": None},
             "optimizer": {"learning_rate": 5e-4}, "trl": {"save_steps": 4}}
        )  # fmt: skip
    info = dataset.info
    held = [
        encode(e, base.tokenizer, info.prompt, info.max_input_chars)
        for e in dataset.of("validation")
    ]
    state["tokens_a_row"] = (
        sum(
            len(encode(e, base.tokenizer, info.prompt, info.max_input_chars))
            for e in dataset.of("train")
        )
        / args.rows
    )

    watch = Watch(
        state, held, lora.decoder_of(base.model).layers, args.check if way == "fit" else 0
    )
    run = folder / "run"
    made: Any
    if way == "fit":
        made = Run(
            run, config, dataset, base.model, base.tokenizer, watch, pause_at=STARTED + args.seconds
        )
    else:
        made = TrlRun(run, config, dataset, base.model, base.tokenizer, watch)
    watch.model, watch.began = made.adapted, time.perf_counter()
    try:
        made.fit()
        state["done"] = True
    except RunPaused:
        pass
    # Validation, its hidden states and what a resumed run computes again are in this figure, to our disadvantage.
    state["cpu_seconds"] = watch.cpu_seconds()
    tokens = sum(len(r.completion_ids) for r in held) / len(held)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "validation_loss" in line]
    state["seconds"] = [
        line["seconds"] - watch.checking_wall.get(f"epoch {line['epoch']}", 0.0) for line in epochs
    ]
    points = [
        [line["rows"], line["validation_loss"] * tokens, watch.ends[f"epoch {line['epoch']}"]]
        for line in epochs
    ]
    points = sorted([*watch.within, *points])
    state["losses"] = [point[:2] for point in points]
    state["loss_cpu_seconds"] = [point[2] for point in points]
    state["rows_seen"] = len(epochs) * args.rows
    state["rows_used"] = args.rows


def main() -> None:
    """Run one turn of one way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jigsaw", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--held", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--check", type=int, required=True)
    parser.add_argument("--most", type=json.loads, default={})
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file = args.folder / "state.json"
    args.folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = (
        json.loads(file.read_text())
        if file.exists()
        else {
            "seconds": [],
            "losses": [],
            "loss_cpu_seconds": [],
            "peak_mib": 0.0,
            "once_seconds": 0.0,
            "cpu_seconds": 0.0,
            "done": False,
        }
    )
    busy, own = processor_seconds()
    began = time.perf_counter()
    (plain_trl if args.way in RATE else ours)(args.way, args.folder, args, state)
    busy_now, own_now = processor_seconds()
    others = (busy_now - busy) - (own_now - own)
    # What the machine did for others meanwhile, as a share of its processors: a timing beside much of it says little.
    share = others / (time.perf_counter() - began) / (os.cpu_count() or 1)
    state.setdefault("others_share", []).append(round(share, 3))
    file.write_text(json.dumps(state))


if __name__ == "__main__":
    main()

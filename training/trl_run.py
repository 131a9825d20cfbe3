"""One run by the engine `trl`: any answer, CPU or GPU, supervised rows or preference pairs; the files of a run of the fast path.

    run/config.json    what was asked         run/log.jsonl     one line a step and an epoch
    run/adapter/       the best epoch         run/curve.png     loss against rows seen
    run/checkpoints/   to go on from          run/run.json      what came out

TRL trains; rows, validation, early stopping and what is kept are ours, so that two engines can be compared.
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, SFTConfig

from training import lora, preference, priors, trl_rows, whole_model
from training import trl_settings as words
from training.config import FitConfig, epochs_for
from training.dataset import Dataset, class_of
from training.encode import Encoded, encode
from training.errors import DataError
from training.label_engine import Validation
from training.preference import EncodedPair, Pairs
from training.train import RunResult, Tell, explanations_of
from training.trl_follow import Follow, Pace
from training.trl_trainers import ReadyDPOTrainer, WeightedCollator, WeightedSFTTrainer


class TrlRun:
    """One fit. The same run on the same machine gives the same adapter; an interrupted one goes on from its last checkpoint."""

    def __init__(
        self,
        folder: Path,
        config: FitConfig,
        dataset: Dataset,
        model: Any,
        tokenizer: Any,
        tell: Tell | None = None,
        *,
        pairs: Pairs | None = None,
        start: Path | None = None,
    ) -> None:
        """Make the adapter; nothing is written yet.

        Args:
            pairs: train on these by DPO instead of on the dataset's rows; its rows still validate.
            start: adapter folder to go on from, and DPO's reference; None starts with a fresh one.

        Raises:
            DataError: the pairs are another template's, or have no held-out part.
        """
        self.folder, self.config, self.dataset = folder, config, dataset
        self.tokenizer, self.tell = tokenizer, tell or (lambda event: None)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.machine, self.state = words.here(config)
        template, limit = dataset.info.prompt, dataset.info.max_input_chars
        self.train = [encode(e, tokenizer, template, limit) for e in dataset.of("train")]
        self.validation = [encode(e, tokenizer, template, limit) for e in dataset.of("validation")]
        if config.target_mix:
            self._weigh(config.target_mix)
        self.second_task = explanations_of(config, dataset, tokenizer)
        if self.second_task is not None:
            self.train += self.second_task.rows
        self.pairs = _encoded(pairs, dataset, tokenizer) if pairs is not None else None
        self.of = {
            "dataset": dataset.info.digest,
            "pairs": pairs.info.digest if pairs is not None else None,
            "start": str(start.resolve()) if start is not None else None,
        }
        self.adapted = self._adapter(model, start)
        self._judge: Any | None = None
        """DPO's trainer, which knows the loss of the held-out pairs."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return bool(self.state.is_main_process)

    def _adapter(self, model: Any, start: Path | None) -> PeftModel:
        if start is not None:
            return lora.load_adapter(model, start, trainable=True)
        return lora.lay_on(model, self.config.lora, self.config.seed)

    def _weigh(self, target: dict[str, float]) -> None:
        """Weights that turn the dataset's class mix into the one that is aimed at."""
        answer = self.dataset.info.answer
        names = [class_of(e.completion, answer) or "" for e in self.dataset.of("train")]
        held = [class_of(e.completion, answer) or "" for e in self.dataset.of("validation")]
        weights = dict(zip(names, priors.row_weights(names, target), strict=True))
        for rows, classes in ((self.train, names), (self.validation, held)):
            rows[:] = [
                replace(row, weight=row.weight * weights.get(name, 1.0))
                for row, name in zip(rows, classes, strict=True)
            ]

    def fit(self) -> RunResult:
        """Train until the last epoch or until validation stops improving; the best epoch's adapter is in `adapter/`."""
        began = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self._checkpoint()
        rows = len(self.pairs[0]) if self.pairs else len(self.train)
        follow = Follow(
            self.folder,
            self.adapted,
            Pace(self.config.batch_size, rows),
            self._validate,
            patience=self.config.patience,
            choose_by=self.config.choose_by,
            tensorboard=self.config.tensorboard,
            tell=self.tell,
        )
        trainer = self._trainer(rows)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(follow)
        self._judge = trainer if self.pairs else None
        log = follow.take_up(int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0)
        self.state.wait_for_everyone()  # all have read before one writes
        if self.is_main:
            self._begin(log, anew=checkpoint is None)
        with _quiet():
            trainer.train(resume_from_checkpoint=checkpoint)
        fitted = RunResult(
            best=follow.best.epoch,
            epochs=tuple(follow.epochs),
            rows=rows,
            cut_rows=sum(row.was_cut for row in self.train),
            trained_parameters=sum(p.numel() for p in self.adapted.parameters() if p.requires_grad),
            seconds=time.perf_counter() - began,
            rows_per_second=rows
            * len(follow.epochs)
            / max(sum(e.seconds for e in follow.epochs), 1e-9),
        )
        if self.is_main:
            (self.folder / "run.json").write_text(json.dumps(asdict(fitted), indent=2))
        return fitted

    def _begin(self, log: str, *, anew: bool) -> None:
        """What was asked goes into the folder; what an earlier run with another configuration left goes out of it."""
        if anew:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        (self.folder / "config.json").write_text(self.config.model_dump_json(indent=2))
        (self.folder / "of.json").write_text(json.dumps(self.of))
        (self.folder / "log.jsonl").write_text(log)
        if self.second_task is not None:
            report = json.dumps(self.second_task.report(), indent=2)
            (self.folder / "explanations.json").write_text(report)

    def _checkpoint(self) -> str | None:
        """The last checkpoint of an interrupted run with the same configuration and data; None starts anew."""
        place = self.folder / "checkpoints"
        try:
            config = FitConfig.model_validate_json((self.folder / "config.json").read_text())
            of = json.loads((self.folder / "of.json").read_text())
        except (OSError, ValueError):
            return None
        if config != self.config or of != self.of or not place.is_dir():
            return None
        found = get_last_checkpoint(str(place))  # type: ignore[no-untyped-call]
        return str(found) if found else None

    def _trainer(self, rows: int) -> Any:
        epochs = epochs_for(self.config, rows)
        at_once = self.config.trl.device_batch or self._probe()
        chosen = words.arguments(
            self.config,
            self.machine,
            self.folder,
            device_batch=at_once,
            steps=epochs * math.ceil(rows / self.config.batch_size),
            epochs=epochs,
            learning_rate=self.config.preference.learning_rate
            if self.pairs
            else self.config.optimizer.learning_rate,
        )
        with _quiet():
            return self._dpo(chosen) if self.pairs else self._sft(chosen)

    def _sft(self, chosen: dict[str, Any]) -> Any:
        settings = SFTConfig(
            **chosen,
            max_length=None,  # what is too long was refused; TRL would cut the answer off
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        return WeightedSFTTrainer(
            model=self.adapted,
            args=settings,
            train_dataset=trl_rows.sft_table(self.train),
            processing_class=self.tokenizer,
            data_collator=WeightedCollator(pad_token_id=self.tokenizer.eos_token_id),
        )

    def _dpo(self, chosen: dict[str, Any]) -> Any:
        assert self.pairs is not None
        asked = self.config.preference
        losses = ["robust" if asked.label_smoothing else "sigmoid"]
        weights = [1.0]
        if asked.answer_weight:
            losses, weights = [*losses, "sft"], [1.0, asked.answer_weight]
        settings = DPOConfig(
            **chosen,
            max_length=None,
            beta=asked.beta,
            loss_type=losses,
            loss_weights=weights,
            label_smoothing=asked.label_smoothing,
        )
        return ReadyDPOTrainer(
            model=self.adapted,
            args=settings,
            train_dataset=trl_rows.pair_table(self.pairs[0]),
            eval_dataset=trl_rows.pair_table(self.pairs[1]),
            processing_class=self.tokenizer,
        )

    def _validate(self) -> Validation:
        """Held-out rows' loss; under DPO its loss on held-out pairs, beside the rows' exact answers."""
        rows = whole_model.validate(self.adapted, self.validation, self.config.batch_size * 2)
        if self._judge is None:
            return rows
        with _quiet():
            found = self._judge.evaluate()
        return replace(rows, loss=float(found["eval_loss"]))

    def _probe(self) -> int:
        """Rows at once: on a GPU the most that fit, tried on the longest rows; on a CPU all of a step's."""
        share = max(1, self.config.batch_size // self.machine.processes)
        if not self.machine.has_gpu:
            return share
        by_length = sorted(self.train, key=len, reverse=True)
        return words.largest_batch(share, lambda rows: _fits(self.adapted, by_length[:rows]))


def _fits(adapted: PeftModel, rows: Sequence[Encoded]) -> bool:
    """Whether the device holds a forward and backward pass over these rows."""
    from training.label_engine import padded_ids

    adapted.to("cuda")
    ids, mask = padded_ids(rows)
    try:
        logits = adapted(input_ids=ids.to("cuda"), attention_mask=mask.to("cuda")).logits
        logits.float().logsumexp(-1).mean().backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        adapted.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def _encoded(
    pairs: Pairs, dataset: Dataset, tokenizer: Any
) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Training and held-out pairs.

    Raises:
        DataError: see `TrlRun`.
    """
    for key in ("task", "prompt", "max_input_chars"):
        own, other = getattr(pairs.info, key), getattr(dataset.info, key)
        if own != other:
            raise DataError(f"{pairs.path}: {key} = {own!r}, the dataset's is {other!r}")
    train, held = (
        [preference.encode_pair(p, pairs.info, tokenizer) for p in pairs.of(split)]
        for split in ("train", "validation")
    )
    if not train or not held:
        raise DataError(
            f"{pairs.path}: {len(train)} training pairs and {len(held)} held-out ones: both are needed"
        )
    return train, held


class _quiet(warnings.catch_warnings):
    """What the trainers' libraries say about each other's deprecations; nothing of ours to change."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)

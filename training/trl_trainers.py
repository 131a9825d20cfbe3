"""TRL's two trainers over rows that are tokenised already: SFT by the rows' weights, DPO without its own preparation."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl import DPOTrainer, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from training.encode import buckets


class WeightedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """TRL's collator, which also passes the rows' weights on."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A padded batch with `weight` [b]."""
        batch: dict[str, Any] = super().torch_call(examples)
        batch["weight"] = torch.tensor([e["weight"] for e in examples])
        return batch


class BucketSampler(torch.utils.data.Sampler[int]):
    """Row numbers, neighbours of much the same length, in an order that seed and epoch decide.

    transformers' `group_by_length` draws from the global generator, so that a run which goes on sees another order.
    """

    def __init__(self, rows: Sequence[Any], batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch, from 0, that the next pass belongs to."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.rows), generator=draw).tolist()
        batches = buckets(self.rows, self.batch_size, order)
        last = batches.pop()  # the only short one: elsewhere it would shift all batches after it
        for number in torch.randperm(len(batches), generator=draw).tolist():
            yield from batches[number]
        yield from last


class WeightedSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loss is each answer token's cross-entropy by its row's weight.

    Curation and the declared class mix speak through weights; SFTTrainer drops the column.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        ids = (self.train_dataset if train_dataset is None else train_dataset)["input_ids"]
        at_once = self.args.train_batch_size * self.args.world_size
        at_once *= self.args.gradient_accumulation_steps
        return BucketSampler(list(ids), at_once, self.args.seed)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "weight"]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The step's part of the mean loss, nats a token; as TRL's, but weighted."""
        weight = inputs.pop("weight")
        if return_outputs or bool((weight == 1).all()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        tokens = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        each = -outputs.log_probs * weight[:, None].to(outputs.log_probs.dtype)
        loss = each.sum() / torch.as_tensor(tokens).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        # What TRL counts for its own log line, which would otherwise divide by nothing.
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss


class ReadyDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer over pairs that are token ids already: serving's prompt, not one tokenised together with its answer."""

    def _prepare_dataset(
        self, dataset: Any, processing_class: PreTrainedTokenizerBase, args: Any, dataset_name: str
    ) -> Any:
        return dataset

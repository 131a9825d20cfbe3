"""PEFT as most people serve it: one request at a time, `set_adapter` before each, transformers' own `generate`.

Run as a process of its own: `python -m benchmarks.engine.peft_alone MODEL ADAPTERS COUNT KIND SECONDS THREADS` prints one
JSON line. The number of callers does not matter to it, so one figure stands for all.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.engine.work import KINDS, Kind, messages


def measure(model: Any, tokenizer: Any, names: list[str], kind: Kind, seconds: float) -> Any:
    """Requests and output tokens per second over a window, after one request of each adapter."""
    import torch

    def one(number: int) -> int:
        model.set_adapter(names[number % len(names)])
        encoded = tokenizer.apply_chat_template(
            messages(kind, number, "peft"), add_generation_prompt=True, return_tensors="pt",
            return_dict=True,
        )  # fmt: skip
        out = model.generate(
            **encoded, do_sample=False, max_new_tokens=kind.max_tokens,
            min_new_tokens=kind.max_tokens, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return int(out.shape[1]) - int(encoded["input_ids"].shape[1])

    with torch.inference_mode():
        for number in range(len(names)):
            one(number)
        began, requests, tokens = time.perf_counter(), 0, 0
        while (spent := time.perf_counter() - began) < seconds:
            tokens += one(len(names) + requests)
            requests += 1
    return {"requests_per_second": requests / spent, "tokens_per_second": tokens / spent}


def main(model: str, adapters: str, count: str, kind: str, seconds: str, threads: str) -> None:
    """Load, measure, print."""
    warnings.simplefilter("ignore")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(int(threads))
    names = [f"a{i}" for i in range(int(count))]
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(
        loaded, str(Path(adapters) / names[0]), adapter_name=names[0]
    )
    for name in names[1:]:
        adapted.load_adapter(str(Path(adapters) / name), adapter_name=name)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    found = measure(adapted.eval(), tokenizer, names, KINDS[kind], float(seconds))
    found["memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What the comparison needs on disk: the converted base model, and random rank-8 adapters, plain and in a registry.

Run as a process of its own (`python -m benchmarks.engine.prepare FOLDER`), so that the one that measures never imports torch.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

RANK, ALPHA = 8, 16
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


def prepare(folder: Path, num_adapters: int, model: str = "smollm2") -> dict[str, Any]:
    """`folder/adapters/a0 …` as PEFT saves them and `folder/registry` with each as version 1; what is there stays.

    B is drawn from N(0, 0.02), so that adapters change answers: an adapter of zeros would hide mix-ups and be skipped.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from serving import base_model
    from serving.registry import ManifestFields, Registry

    base = base_model.load(model, folder / "models")
    registry = Registry(folder / "registry")
    published = {ref.name for ref in registry.list()} if (folder / "registry").exists() else set()
    missing = [f"a{i}" for i in range(num_adapters) if f"a{i}" not in published]
    if missing:
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=list(MODULES), task_type="CAUSAL_LM"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted: Any = get_peft_model(base.model, config)
        for name in missing:
            torch.manual_seed(int(name[1:]))
            for key, weights in adapted.named_parameters():
                if "lora_A" in key:
                    torch.nn.init.kaiming_uniform_(weights, a=5**0.5)
                elif "lora_B" in key:
                    torch.nn.init.normal_(weights, std=0.02)
            adapted.save_pretrained(folder / "adapters" / name)
            fields = ManifestFields(
                base_model=base.id, base_model_digest=base.digest, rank=RANK, alpha=ALPHA,
                target_modules=MODULES,
            )  # fmt: skip
            registry.publish(name, folder / "adapters" / name, fields, {})
    return {"model": base.path, "base_id": base.id, "digest": base.digest}


if __name__ == "__main__":
    print(json.dumps(prepare(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])))

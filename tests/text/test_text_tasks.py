"""The tasks give the loop what one row at a time, without padding, would give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from capaboost_text.encode import Example
from capaboost_text.glue.data import Splits
from capaboost_text.glue.task import Classification
from capaboost_text.glue.tasks import TASKS
from capaboost_text.squad.answers import predict
from capaboost_text.squad.metrics import evaluate
from capaboost_text.squad.task import QuestionAnswering, QuestionSplit
from capaboost_text.squad.windows import make_windows
from tests.text.squad_case import TEXT, ask, tokenizer
from tests.text.tiny_encoder import save_encoder

WORDS = TEXT.replace("\n", " ").split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def examples(count, labels):
    return [
        Example(" ".join(WORDS[i % 9 : i % 9 + 1 + i % 7]), WORDS[i % 5], labels[i % len(labels)])
        for i in range(count)
    ]


def one_by_one(model, example):
    inputs = tokenizer()(example.text, example.pair, return_tensors="pt")
    return model(**inputs).logits[0]


def glue_task(accelerator, name, labels):
    parts = Splits(examples(23, labels), examples(9, labels), examples(11, labels), examples(7, labels))
    return Classification(accelerator, TASKS[name], tokenizer(), parts, 64, batch_size=8, seed=1), parts


def load(folder, kind, **kwargs):
    torch.manual_seed(1)
    model = kind.from_pretrained(folder, **kwargs).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("name", "labels"), [("mrpc", [0, 1]), ("mnli", [0, 1, 2]), ("stsb", [0.0, 2.5, 5.0])])
def test_classification_equals_single_rows(folder, accelerator, name, labels):
    task, parts = glue_task(accelerator, name, labels)
    model = load(folder, AutoModelForSequenceClassification, num_labels=max(1, len(TASKS[name].labels)))
    batch = task.batches(0)[0]
    with torch.no_grad():
        rows = torch.stack([one_by_one(model, parts.train[i]) for i in batch])
        truth = torch.tensor([parts.train[i].label for i in batch])
        expected = F.mse_loss(rows[:, 0], truth) if name == "stsb" else F.cross_entropy(rows, truth)
        torch.testing.assert_close(task.loss(model, batch), expected)
        scores = task.test(model)
        for prefix, part in (("", parts.test), ("mismatched_", parts.mismatched)):
            logits = torch.stack([one_by_one(model, example) for example in part]).numpy()
            predicted = logits[:, 0] if name == "stsb" else logits.argmax(1)
            wanted = TASKS[name].score(predicted, [example.label for example in part])
            assert {key: scores[prefix + key] for key in wanted} == pytest.approx(wanted, rel=1e-3)
    evaluated = task.evaluate(model)
    assert set(evaluated) == {f"selection_{metric}" for metric in (*TASKS[name].metrics, "loss")}
    with torch.no_grad():
        rows = torch.stack([one_by_one(model, example) for example in parts.selection])
    truth = torch.tensor([example.label for example in parts.selection])
    expected = F.mse_loss(rows[:, 0], truth) if name == "stsb" else F.cross_entropy(rows, truth)
    assert evaluated["selection_loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "left"])
def test_question_answering_equals_single_windows(folder, accelerator, family):
    words = tokenizer(family)
    answered, unanswered = ask(TEXT, "Duke William"), ask(TEXT)
    questions = [replace(answered if i % 2 else unanswered, id=f"q{i}", question="Who? " * (i + 1)) for i in range(5)]
    windows = make_windows(questions, words, 48, 8)
    part = QuestionSplit(questions, windows)
    task = QuestionAnswering(accelerator, "squad_v2", words, windows, part, part, batch_size=4, seed=0)
    model = load(folder, AutoModelForQuestionAnswering)
    with torch.no_grad():
        single = [
            model(
                input_ids=torch.from_numpy(w.input_ids)[None].long(),
                token_type_ids=torch.from_numpy(w.token_type_ids)[None].long(),
            )
            for w in windows
        ]
        found = task._predict(model, part, "test")
    if family == "bert":  # positions shift with padding on the left in a model with absolute ones
        starts, ends = ([o[name][0].numpy() for o in single] for name in ("start_logits", "end_logits"))
        wanted = predict(questions, windows, starts, ends)
        assert [p.text for p in found] == [p.text for p in wanted]
        assert [p.null_score for p in found] == pytest.approx([p.null_score for p in wanted], abs=1e-5)
        batch = task.batches(0)[0]
        losses = [
            F.cross_entropy(single[i][f"{side}_logits"], torch.tensor([getattr(windows[i], side)]))
            for i in batch
            for side in ("start", "end")
        ]
        torch.testing.assert_close(task.loss(model, batch), torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    gaps = {p.id: p.null_gap for p in found}
    report = evaluate(questions, {p.id: p.text for p in found}, "squad_v2", gaps)
    scores = task.evaluate(model)
    assert scores == {"selection_exact": report["best_exact"], "selection_f1": report["best_f1"]}
    tested = task.test(model)
    assert tested["null_threshold"] == report["best_f1_thresh"]
    assert np.isfinite(list(tested.values())).all()

"""The loss and the perplexity of packed blocks equal those of one document at a time, however a batch is cut."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from transformers import BertConfig, BertLMHeadModel

from capaboost.training.optimize import split_batch
from capaboost_core import UserError, inject
from capaboost_text.lm.data import IGNORED, Block, Document, Encoder, Splits, pack
from capaboost_text.lm.task import LanguageModeling
from tests.text.squad_case import TEXT
from tests.text.tiny_decoder import decoder, tokenizer

WORDS, LENGTH = TEXT.split(), 32
KINDS = [(family, is_packed) for family in ("llama", "gpt2", "gemma3_text", "mixtral") for is_packed in (True, False)]


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def made_rows(count: int) -> list[Block]:
    """Texts and completions of different lengths."""
    encoder, rows = Encoder(tokenizer(), LENGTH), []
    for i in range(count):
        content = " ".join(WORDS[i % 7 : i % 7 + 1 + i % 5])
        document = Document("", content, WORDS[i % 11] + " " if i % 3 == 0 else None)
        rows += encoder.rows([document])[0]
    return rows


def task_of(accelerator, is_packed=True) -> tuple[LanguageModeling, list[Block]]:
    parts = [made_rows(count) for count in (23, 7, 9)]
    splits = Splits(*(pack(rows, LENGTH) if is_packed else rows for rows in parts))
    return LanguageModeling(accelerator, tokenizer(), splits, is_packed, 3, seed=1), parts


def alone(model, row: Block) -> tuple[float, int]:
    """The summed loss of one document, and how many tokens it predicts."""
    ids = torch.from_numpy(row.input_ids)[None].long()
    logits = model(input_ids=ids).logits[0, :-1]
    labels = torch.from_numpy(row.labels)[1:].long()
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item(), row.predicted


def mean(model, rows) -> float:
    sums, counts = zip(*(alone(model, row) for row in rows), strict=True)
    return sum(sums) / sum(counts)


@pytest.mark.parametrize(("family", "is_packed"), [*KINDS, ("opt", False)])  # whose masks heed no positions
@torch.no_grad()
def test_scores_are_those_of_documents_alone(family, is_packed, accelerator):
    model, (task, parts) = decoder(family), task_of(accelerator, is_packed)
    assert (max(map(len, task.rows)) > max(map(len, parts[0]))) == is_packed
    assert task.trial(model).isfinite()
    for scores, prefix, rows in ((task.evaluate(model), "selection_", parts[1]), (task.test(model), "", parts[2])):
        expected = mean(model, rows)
        assert scores == pytest.approx(
            {f"{prefix}loss": expected, f"{prefix}perplexity": math.exp(expected)}, rel=1e-4
        )


def test_the_loss_of_a_batch_does_not_depend_on_its_slices(accelerator):
    model, (task, _) = (
        inject(decoder(), {"method": "lora", "r": 2, "targets": ["q_proj", "v_proj"]}),
        task_of(accelerator),
    )
    batch = task.batches(0)[0]
    counts = {task.rows[i].predicted for i in batch[:, 0]}
    assert len(counts) > 1  # equal weights of unequal slices would show
    whole = gradients(model, task, [(batch, 1.0)])
    for processes, slices in ((1, 3), (3, 1), (2, 2)):
        parts = [part for process in range(processes) for part in split_batch(batch, process, processes, slices)]
        cut = gradients(model, task, parts)
        for name, gradient in whole.items():
            torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-7)


def gradients(model, task, parts) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = sum(task.loss(model, part) * weight for part, weight in parts)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_every_block_is_trained_on_once_an_epoch(accelerator):
    task, _ = task_of(accelerator)
    batches = task.batches(4)
    assert sorted(np.concatenate([batch[:, 0] for batch in batches])) == list(range(len(task.rows)))
    for batch in batches:
        assert set(batch[:, 1]) == {sum(task.rows[i].predicted for i in batch[:, 0])}
        assert set(batch[:, 2]) == {len(batch)}


def test_the_fingerprint_follows_tokens_and_labels(accelerator):
    (task, _), (other, _) = task_of(accelerator), task_of(accelerator)
    assert task.fingerprint() == other.fingerprint()
    other.rows[0].labels[-1] = IGNORED
    assert task.fingerprint() != other.fingerprint()


class Leaking(torch.nn.Module):
    """A decoder that does not heed positions, as one without masks for them."""

    def __init__(self):
        super().__init__()
        self.model = decoder()
        self.config, self.get_input_embeddings = self.model.config, self.model.get_input_embeddings

    def forward(self, position_ids=None, **inputs):
        return self.model(**inputs)


def test_a_model_that_mixes_documents_is_refused_unless_each_has_its_row(accelerator):
    task, _ = task_of(accelerator)
    with pytest.raises(UserError, match=r"documents of a block apart; pass --set data.packing=false"):
        task.trial(Leaking())
    task, _ = task_of(accelerator, is_packed=False)
    assert task.trial(Leaking()).isfinite()


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_model_that_sees_later_tokens_is_refused(is_packed, accelerator):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    model = BertLMHeadModel(BertConfig(vocab_size=300, **sizes, initializer_range=0.2)).eval()
    task, _ = task_of(accelerator, is_packed)
    with pytest.raises(UserError, match="tokens attend to later ones"):
        task.trial(model)

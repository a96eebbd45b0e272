"""All that a run on texts will read is read before its first step: what cannot be is one line."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    OPTConfig,
    RobertaConfig,
    RobertaPreLayerNormConfig,
)

from capaboost.runs.glue import prepare
from capaboost.runs.settings import GlueRun
from capaboost.training.settings import build_run
from capaboost_core import UserError
from capaboost_text import from_pretrained
from capaboost_text.encode import Encoded, check_fit, load_tokenizer
from capaboost_text.glue.own_data import read_own
from tests.text.squad_case import TEXT, tokenizer
from tests.text.tiny_encoder import save_encoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 2}
OPT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 48, "word_embed_proj_dim": 32}


def put(folder, **splits: list[tuple[str, str]]) -> None:
    for name, rows in splits.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


ROWS = [("Duke William conquered England", "a"), ("In 1066", "b")]


def setup_of(folder, targets="query,value", **data):
    put(folder, **{name: data.pop(name, ROWS) for name in ("train", "test")})
    own = {"task": "mine", "train": "train.jsonl", "test": "test.jsonl", "texts": "text", "label": "label"}
    sections = {
        "model": {"name": str(folder / "encoder")},
        "data": own | {"classes": ["a", "b"], "dir": str(folder), "max_length": 16} | data,
        "train": {"epochs": 1, "batch_size": 2},
        "adapter": {"method": "lora", "r": 2, "targets": targets.split(",")},
    }
    return prepare(build_run(GlueRun, sections), Accelerator(cpu=True))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_token_without_an_embedding_is_named_before_training(tmp_path, split):
    last, word = max((max(tokenizer("bert")(word).input_ids), word) for word in TEXT.split())
    save_encoder(tmp_path / "encoder", vocab_size=last)
    rows = [("Duke", "a"), ("In", "b")]
    setup = setup_of(tmp_path, train=rows, test=rows)
    setup.task.trial(setup.model)  # no row has that token
    setup = setup_of(tmp_path, **{"train": rows, "test": rows, split: [*rows, (f"Duke {word} Duke", "a")]})
    with pytest.raises(UserError, match=rf"makes token {last} .*embeddings end at {last - 1}; .*resize_token_embe"):
        setup.task.trial(setup.model)


def test_a_padding_token_without_an_embedding_is_named(tmp_path):
    save_encoder(tmp_path / "encoder", vocab_size=len(tokenizer("bert")))
    setup = setup_of(tmp_path)
    setup.task.tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    with pytest.raises(UserError, match=r"\[NEW\]"):
        setup.task.trial(setup.model)


def unpadded(folder, config, **special):
    """A model whose tokenizer has no padding token."""
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words = tokenizer("bert")
    words.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "pad_token"}
    path.write_text(json.dumps(kept | special))
    return folder


DECODERS = {
    "llama": (LlamaConfig(vocab_size=300, **SIZES), "q_proj,v_proj"),
    "gpt2": (GPT2Config(vocab_size=300, n_positions=64, **GPT), "c_attn"),
    "opt": (OPTConfig(vocab_size=300, max_position_embeddings=64, pad_token_id=None, **OPT), "q_proj,v_proj"),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_without_a_padding_token_is_padded_with_its_end(tmp_path, kind):
    config, targets = DECODERS[kind]
    config.pad_token_id = None
    unpadded(tmp_path / "encoder", config, eos_token="[SEP]")
    setup = setup_of(tmp_path, targets)
    assert setup.task.tokenizer.pad_token == "[SEP]"
    assert setup.task.trial(setup.model).isfinite()
    rows = setup.task.tests[""].rows
    assert len({len(row) for row in rows}) == 2  # so one is padded
    together = setup.task.logits(setup.model.eval(), rows, 2, "test")
    alone = [setup.task.logits(setup.model, [row], 2, "test")[0] for row in rows]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_padding_token_is_that_of_the_configuration_or_refused(tmp_path):
    folder = unpadded(tmp_path / "encoder", BertConfig(vocab_size=300, pad_token_id=0, **SIZES))
    assert load_tokenizer(folder, 16).pad_token == tokenizer("bert").convert_ids_to_tokens(0)
    for beyond in (-1, 5000):  # as LLaMA's first configuration has it
        unpadded(tmp_path / "end", BertConfig(vocab_size=300, pad_token_id=0, **SIZES), eos_token="[SEP]")
        config = json.loads((tmp_path / "end" / "config.json").read_text()) | {"pad_token_id": beyond}
        (tmp_path / "end" / "config.json").write_text(json.dumps(config))
        assert load_tokenizer(tmp_path / "end", 16).pad_token == "[SEP]"
    folder = unpadded(tmp_path / "other", BertConfig(vocab_size=300, pad_token_id=None, **SIZES))
    with pytest.raises(UserError, match="has no padding token; name one of its tokens as pad_token in its tokenizer_"):
        load_tokenizer(folder, 16)


POSITIONS = {
    "mpnet": (MPNetConfig(vocab_size=99, max_position_embeddings=20, **SIZES), 18),
    "camembert": (CamembertConfig(vocab_size=99, max_position_embeddings=20, **SIZES), 18),
    "roberta": (RobertaConfig(vocab_size=99, max_position_embeddings=20, **SIZES), 18),
    "pre-norm roberta": (RobertaPreLayerNormConfig(vocab_size=99, max_position_embeddings=20, **SIZES), 18),
    "bert": (BertConfig(vocab_size=99, max_position_embeddings=20, **SIZES), 20),
    "gpt2": (GPT2Config(vocab_size=99, n_positions=20, pad_token_id=1, **GPT), 20),
}


@pytest.mark.parametrize("kind", POSITIONS)
def test_rows_longer_than_the_positions_are_refused(kind):
    config, most = POSITIONS[kind]
    model = AutoModelForSequenceClassification.from_config(config).eval()
    words = tokenizer("bert")

    def rows(length: int) -> list[Encoded]:
        return [Encoded(np.full(length, 7, np.int32), None)]

    check_fit(model, words, rows(most))
    model(torch.full((1, most), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, most + 1), 7))
    with pytest.raises(UserError, match=f"reads {most} tokens, but a row has {most + 1}; set data.max_length={most}"):
        check_fit(model, words, rows(most + 1))


@pytest.mark.parametrize("kind", ["mpnet", "camembert"])
def test_a_length_that_the_positions_do_not_permit_is_refused_at_the_setting(tmp_path, kind):
    config, most = POSITIONS[kind]
    config.save_pretrained(tmp_path)
    tokenizer("bert").save_pretrained(tmp_path)  # which states no limit
    load_tokenizer(tmp_path, most)
    with pytest.raises(UserError, match=f"data.max_length is {most + 1}, but .* reads {most} tokens"):
        load_tokenizer(tmp_path, most + 1)


@pytest.mark.parametrize("text", ["half \ud83d of a pair", "\udcff", "a\ud800"])
def test_half_a_surrogate_pair_is_named(tmp_path, text):
    put(tmp_path, train=[*ROWS, (text, "a")])
    values = {"task": "mine", "train": "train.jsonl", "test": "train.jsonl", "texts": "text", "label": "label"}
    data = build_run(GlueRun, {"model": {"name": "x"}, "data": values | {"classes": 2, "dir": str(tmp_path)}}).data
    with pytest.raises(UserError, match=r"train\.jsonl, line 1: the label is 'a'"):
        read_own(data, "train.jsonl")
    with pytest.raises(UserError, match=r"train\.jsonl, line 3: text holds half a surrogate pair"):
        read_own(data.replace(classes=("a", "b")), "train.jsonl")


DTYPES = [{"torch_dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}]


@pytest.mark.parametrize("given", DTYPES, ids=repr)
def test_either_name_of_the_precision_is_used(tmp_path, given):
    folder = save_encoder(tmp_path / "encoder")
    assert from_pretrained(folder, **given).get_input_embeddings().weight.dtype == torch.bfloat16
    assert from_pretrained(folder).get_input_embeddings().weight.dtype == torch.float32
    with pytest.raises(UserError, match="give dtype alone"):
        from_pretrained(folder, torch_dtype=torch.float16, dtype=torch.bfloat16)


def test_a_command_gives_a_checkpoint_of_other_classes_a_fresh_head(tmp_path):
    torch.manual_seed(0)
    save_encoder(tmp_path / "encoder")
    config = BertConfig(vocab_size=300, num_labels=3, **SIZES)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match="it starts fresh"):
        setup = setup_of(tmp_path)
    assert setup.model.classifier.out_features == 2
    assert setup.model.classifier.weight.requires_grad
    assert setup.task.trial(setup.model).isfinite()


def test_a_checkpoint_that_lacks_weights_is_told_so(tmp_path):
    save_encoder(tmp_path / "encoder")
    path = tmp_path / "encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks 16 of the weights that its config.json asks for, such as bert\.enc"):
        from_pretrained(tmp_path / "encoder")


def test_a_row_of_which_no_token_is_left_is_refused(tmp_path):
    """As a decoder's tokenizer, which adds no special token, makes of characters that it drops."""
    unpadded(tmp_path / "encoder", DECODERS["llama"][0], eos_token="[SEP]")
    setup = setup_of(tmp_path, "q_proj,v_proj")
    setup.task.rows[1] = Encoded(np.zeros(0, np.int32), None)
    with pytest.raises(UserError, match="makes no token of row 2 of all that are read; leave rows out"):
        setup.task.trial(setup.model)


@pytest.mark.parametrize("text", ["null", "None", "NA", "nan", "N/A", "true", "1.0"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_words_that_other_readers_take_for_missing_values_are_texts(tmp_path, text, ending):
    sep = {"csv": ",", "tsv": "\t"}.get(ending)
    rows = [f"text{sep}label", f"{text}{sep}a", f"x{sep}b"] if sep else [json.dumps({"text": text, "label": "a"})]
    (tmp_path / f"train.{ending}").write_text("\n".join(rows) + "\n")
    values = {"task": "mine", "train": "x", "test": "x", "texts": "text", "label": "label", "classes": ["a", "b"]}
    data = build_run(GlueRun, {"model": {"name": "x"}, "data": values | {"dir": str(tmp_path)}}).data
    assert read_own(data, f"train.{ending}")[0].text == text

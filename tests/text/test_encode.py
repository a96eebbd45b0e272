"""Tokenizers as the hub has them."""

import json
import time

import pytest
import sentencepiece
from transformers import BertConfig, DebertaV2Config, ModernBertConfig, RobertaConfig

from capaboost_core import UserError
from capaboost_text import from_pretrained
from capaboost_text.encode import load_tokenizer
from capaboost_text.glue.data import load_split
from capaboost_text.squad.data import load_squad
from tests.text.tiny_encoder import save_encoder

TEXT = "the quick brown fox jumps over the lazy dog and packs a box with jugs"
SPECIAL = {"pad_id": 0, "pad_piece": "[PAD]", "bos_id": 1, "bos_piece": "[CLS]", "eos_id": 2, "eos_piece": "[SEP]"}
CONFIG = DebertaV2Config(
    vocab_size=46, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, type_vocab_size=0
)


@pytest.fixture
def folder(tmp_path):
    """DeBERTaV3's files on the hub: a SentencePiece model and no tokenizer.json."""
    CONFIG.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, TEXT[::-1]] * 50),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=40,
        unk_id=3,
        unk_piece="[UNK]",
        minloglevel=2,
        **SPECIAL,
    )
    return tmp_path


def test_a_sentencepiece_model_is_enough(folder):
    tokenizer = load_tokenizer(folder, 32)
    ids = tokenizer("the fox", "a dog")["input_ids"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    assert ids == [1, *pieces.encode("the fox"), 2, *pieces.encode("a dog"), 2]


@pytest.mark.parametrize(
    "config", [CONFIG, BertConfig(), RobertaConfig(), ModernBertConfig()], ids=lambda c: c.model_type
)
def test_a_folder_without_the_tokenizers_files_is_refused(tmp_path, config):
    # transformers makes a tokenizer without a vocabulary of some, to which every word is unknown
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer of .*; (add|give a folder with) [^\n]*tokenizer.json[^\n]*$"):
        load_tokenizer(tmp_path, 32)


BAD_FILES = [
    ("tokenizer.json", "{}"),
    ("tokenizer.json", "[]"),
    ("tokenizer.json", '{"model": {'),
    ("tokenizer.json", "[" * 100_000),
    ("tokenizer_config.json", "3"),
    ("tokenizer_config.json", '{"model_max_length": "512"}'),
    ("tokenizer_config.json", '{"pad_token": 3}'),
    ("config.json", "3"),
    ("config.json", '{"model_type": "bert", "hidden_size": "384"}'),
    ("config.json", '{"model_type": "bert", "id2label": 3}'),
]


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(("name", "content"), BAD_FILES)
def test_a_damaged_folder_is_refused_in_a_line(name, content, tmp_path):
    (save_encoder(tmp_path) / name).write_text(content)
    with pytest.raises(UserError, match=rf"^cannot load the tokenizer of {tmp_path} \([^\n]+\); give [^\n]*$"):
        load_tokenizer(tmp_path, 16)


@pytest.mark.hard_case("messages")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda content: b""),
        ("model.safetensors", lambda content: content[:-9]),
        ("model.safetensors", lambda content: content[:100]),
        ("config.json", lambda content: content.replace(b'"hidden_size": 32', b'"hidden_size": "32"')),
        ("config.json", lambda content: content.replace(b'"gelu"', b'"gellu"')),
        ("config.json", lambda content: content.replace(b'"num_attention_heads": 2', b'"num_attention_heads": 0')),
    ],
)
def test_damaged_weights_and_settings_are_refused_in_a_line(name, damage, tmp_path):
    path = save_encoder(tmp_path) / name
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    with pytest.raises(UserError, match=rf"^cannot load {tmp_path} \([^\n]+\); give [^\n]*$"):
        from_pretrained(tmp_path)


@pytest.mark.hard_case("messages")
def test_offline_the_hub_is_asked_once(monkeypatch):
    begun, asked = time.monotonic(), []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    messages = []
    for load in (lambda: load_tokenizer("no/model", 16), lambda: from_pretrained("no/model"),
                 lambda: load_split("rte", None, "train"), lambda: load_squad("squad_v1", "dev")):  # fmt: skip
        with pytest.raises(UserError) as caught:
            load()
        messages.append(str(caught.value))
    assert len(asked) == 4
    assert time.monotonic() - begun < 25  # one of them alone took 40 with its retries
    assert all("with a network" in text for text in messages[:2])
    assert all("set --data-dir to a folder" in text for text in messages[2:])

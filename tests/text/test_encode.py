"""Tokenizers as the hub has them."""

import json

import pytest
import sentencepiece
from transformers import BertConfig, DebertaV2Config, ModernBertConfig, RobertaConfig

from capaboost_core import UserError
from capaboost_text.encode import load_tokenizer

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

"""Real questions and tiny tokenizers for the SQuAD tests."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from capaboost_text.squad.data import Question, Reference, load_squad
from tests.real_data import real_data

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
TEXT = (
    "The Norman dynasty had a major political, cultural and military impact on medieval Europe. In 1066 – “the year "
    "of three battles” – Duke William conquered England; £1,500 were paid to Édouard (naïve as he was) in Rouen. "
)
FAMILIES = ("bert", "roberta", "deberta", "left")
GOOD = {
    "version": "v2.0",
    "data": [
        {"title": "t", "paragraphs": []},
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "William won in 1066.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Who?",
                            "answers": [{"text": "William", "answer_start": 0}],
                            "is_impossible": False,
                        },
                        {"id": "2", "question": " ", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        },
    ],
}


@cache
def squad(dataset: str, split: str = "dev") -> list[Question]:
    """The real questions; skips the test where they are not."""
    return load_squad(dataset, split, real_data("squad"))


@cache
def tokenizer(family: str = "bert") -> PreTrainedTokenizerFast:
    """Word pieces, byte pairs, a unigram model whose offsets count leading spaces, and padding on the left."""
    special = list(SPECIAL.values())
    if family == "roberta":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    elif family == "deberta":
        core = Tokenizer(models.Unigram())
        core.normalizer, core.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="[UNK]")
    else:
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    trainer.show_progress = False
    core.train_from_iterator([TEXT], trainer)
    pair = "$A [SEP] $B:1 [SEP]:1 [CLS]" if family == "left" else "[CLS] $A [SEP] $B:1 [SEP]:1"
    ids = [(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ids)
    side = "left" if family == "left" else "right"
    names = ["input_ids", "attention_mask"] + ([] if family == "roberta" else ["token_type_ids"])
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side=side, model_input_names=names, **SPECIAL)


def ask(context: str = TEXT, answer: str = "", question: str = "Who conquered England?") -> Question:
    answers = (Reference(answer, context.index(answer)),) if answer else ()
    return Question("q", question, context, answers, not answers)

# %% [markdown]
# # Texts, with transformers' Trainer and peft
#
# CapaBoost is one of peft's methods here: `get_peft_model`, `Trainer`, `PeftModel.from_pretrained`. The encoder and
# its tokenizer are made on the spot and know nothing, so that no network is needed; with `roberta-base` and your own
# rows nothing else changes. `examples/peft_trainer.py` does it for CoLA, and goes on after a kill.

# %%
import random
from pathlib import Path
from tempfile import mkdtemp

import torch
from peft import PeftModel, TaskType, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from capaboost_peft import CapaBoostConfig

set_seed(0)
GOOD, BAD, OTHER = (
    ["fine", "warm", "clear", "kind"],
    ["dull", "cold", "vague", "rude"],
    ["the", "a", "very", "play", "was"],
)
words = ["[PAD]", "[UNK]", *GOOD, *BAD, *OTHER]
model_of_words = WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
raw = Tokenizer(model_of_words)
raw.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")


def rows(count: int) -> list[dict]:
    """Sentences of random words with one that decides: 1 where it is a good one."""
    made = []
    for _ in range(count):
        label = random.randint(0, 1)
        sentence = [*random.choices(OTHER, k=5), random.choice(GOOD if label else BAD)]
        random.shuffle(sentence)
        made.append({**tokenizer(" ".join(sentence), return_token_type_ids=False), "label": label})
    return made


# %% [markdown]
# `CapaBoostConfig` has peft's own words (`r`, `lora_alpha`, `target_modules`, ...) and CapaBoost's: `num_tied` modules
# share one weight, each through a mask of this `density`. The classifier trains, too, and is saved with the adapter.

# %%
config = BertConfig(
    vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
)
base = BertForSequenceClassification(config)
weights = {name: value.clone() for name, value in base.state_dict().items()}
adapter = CapaBoostConfig(
    task_type=TaskType.SEQ_CLS, r=8, num_tied=2, density=0.5, target_modules=["query", "value", "dense"]
)
model = get_peft_model(base, adapter)
model.print_trainable_parameters()

# %%
folder = Path(mkdtemp())
settings = TrainingArguments(
    str(folder), num_train_epochs=4, per_device_train_batch_size=32, learning_rate=5e-3, report_to="none",
    save_strategy="no", logging_steps=20, use_cpu=True, disable_tqdm=True,
)  # fmt: skip
trainer = Trainer(model, settings, DataCollatorWithPadding(tokenizer), train_dataset=rows(400))
trainer.train()

# %%
test = rows(200)
found = trainer.predict(test)  # type: ignore[arg-type]
accuracy = (found.predictions.argmax(1) == found.label_ids).mean()
print(f"accuracy {100 * accuracy:.1f} %")

# %% [markdown]
# The folder holds the adapter and the classifier alone. Around the same base model it is the same model, and
# `merge_and_unload` leaves a plain transformers model.

# %%
model.save_pretrained(folder / "adapter")
print(sorted(path.name for path in (folder / "adapter").iterdir()))
fresh = BertForSequenceClassification(config)
fresh.load_state_dict(weights)
loaded = PeftModel.from_pretrained(fresh, folder / "adapter").eval()
batch = DataCollatorWithPadding(tokenizer)(test[:4])
batch.pop("labels")
with torch.no_grad():
    expected = model.eval()(**batch).logits
    merged = loaded.merge_and_unload()
    print(type(merged).__name__, f"differs by {(merged(**batch).logits - expected).abs().max():.1e}")

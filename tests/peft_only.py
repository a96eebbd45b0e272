"""A program of a user who has peft and not this package: logits of a base model with an adapter, as JSON.

python peft_only.py vit|roberta ADAPTER_FOLDER
"""

import json
import sys

import timm
import torch
from peft import PeftModel
from transformers import RobertaConfig, RobertaForSequenceClassification

kind, folder = sys.argv[1:]
torch.manual_seed(0)
if kind == "vit":
    base = timm.create_model("vit_base_patch16_224", num_classes=5).eval()
    inputs = {"x": torch.randn(2, 3, 224, 224)}
else:
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=5)
    base = RobertaForSequenceClassification(config).eval()
    inputs = {"input_ids": torch.randint(3, 50265, (2, 16))}
model = PeftModel.from_pretrained(base, folder).eval()
with torch.no_grad():
    out = model(**inputs)
print(json.dumps({"logits": getattr(out, "logits", out).tolist(), "ours": "capaboost_core" in sys.modules}))

"""An encoder, CoLA and SQuAD v1.1, a decoder and texts for it, all tiny, for runs of the commands."""

import json
from pathlib import Path

from tests.text.glue_files import write
from tests.text.squad_case import TEXT
from tests.text.tiny_decoder import save_decoder
from tests.text.tiny_encoder import save_encoder


def write_tasks(folder: Path) -> Path:
    """Returns the folder; the models lie below it, in `encoder` and `decoder`."""
    save_encoder(folder / "encoder")
    save_decoder(folder / "decoder")
    words = TEXT.split()
    for split, count in (("train", 60), ("dev", 20)):
        sentences = [" ".join(words[i % 11 : i % 11 + 3 + i % 5]) for i in range(count)]
        write(folder, "cola", split, [f"gj04\t{i % 2}\t\t{sentence}" for i, sentence in enumerate(sentences)])
    answer = {"text": "Duke William", "answer_start": TEXT.index("Duke William")}
    for split, count in (("train", 12), ("dev", 6)):
        asked = [{"id": f"{split}{i}", "question": "Who? " * (1 + i % 3), "answers": [answer]} for i in range(count)]
        content = {"version": "1.1", "data": [{"paragraphs": [{"context": TEXT, "qas": asked}]}]}
        (folder / f"{split}-v1.1.json").write_text(json.dumps(content))
    pairs = [{"prompt": f"{words[i % 9]} ", "completion": " ".join(words[i % 7 : i % 7 + 3])} for i in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "book.txt").write_text(TEXT * 4)
    return folder

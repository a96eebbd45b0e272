"""GLUE files of any rows, as the original ones are laid out."""

from capaboost_text.glue.tasks import TASKS

HEADERS = {
    "cola": None,
    "sst2": "sentence label",
    "mrpc": "Quality #1_ID #2_ID #1_String #2_String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "mnli": "index promptID pairID genre parse1 parse2 tree1 tree2 sentence1 sentence2 label1 gold_label",
    "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label",
}


def row_of(task, i, label=None):
    """Row i as the original file would have it, with texts `a i` and `b i`."""
    first, second = f'a "{i}', f"b {i}"
    label = label or (str(i % 6) if task == "stsb" else TASKS[task].tsv_labels[i % len(TASKS[task].labels)])
    cells = {
        "cola": ["gj04", label, "", first],
        "sst2": [first, label],
        "mrpc": [label, "1", "2", first, second],
        "stsb": [*"0123456", first, second, label],
        "qqp": [*"012", first, second, label],
        "mnli": [*"01234567", first, second, "x", label],
    }
    return "\t".join(cells.get(task, [str(i), first, second, label]))


def write(folder, task, split, rows, end="\n"):
    """A split below the folder, with the header of the original file; returns its path."""
    path = folder / TASKS[task].folder / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = HEADERS[task]
    lines = [] if header is None else ["\t".join(header.split()).replace("_ID", " ID").replace("_String", " String")]
    path.write_bytes((end.join([*lines, *rows]) + end).encode())
    return path


def write_all(folder, task, train=1200, dev=21):
    """Every split of the task; the texts of dev count from 10,000, those of the mismatched one from 20,000."""
    for split in TASKS[task].splits:
        first = 0 if split == "train" else 10_000 if "mis" not in split else 20_000
        count = train if split == "train" else dev
        write(folder, task, split, [row_of(task, first + i) for i in range(count)])

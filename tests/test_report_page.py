"""`capaboost report`: one page with the numbers of the files, and nothing that is fetched."""

import json
import re
from html.parser import HTMLParser

import pytest

from capaboost.commands.report import main
from tests.toy_result import RESULT

pytest.importorskip("plotly")
COMPLETE = RESULT | {
    "head_parameters": 10, "adapter_file_bytes": 2**20, "selected_epoch": 20, "wall_seconds": 1.5, "command": "run",
    "test_metrics": {"accuracy": 90.0, "loss": 0.5}, "versions": {"torch": "2"}, "git": {"commit": "c0"},
}  # fmt: skip


def write_result(folder, **changes):
    folder.mkdir(exist_ok=True)
    config = {"train": {"seed": changes.get("seed", 0), "lr": 0.001, "output_dir": str(folder)}}
    (folder / "result.json").write_text(json.dumps(COMPLETE | {"config": config} | changes))


class Page(HTMLParser):
    """Headings, cells, and what the page would fetch."""

    def __init__(self, text):
        super().__init__()
        self.found = {"h2": [], "td": []}
        self.fetched, self.tag = [], ""
        self.feed(re.sub(r"<script.*?</script>", "", text, flags=re.S))

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]

    def handle_data(self, data):
        if self.tag in self.found and data.strip():
            self.found[self.tag].append(data.strip())


def drawn(text):
    """The data of each figure, as the page gives it to plotly."""
    calls = re.findall(r'Plotly\.newPlot\(\s*"[^"]+",\s*(\[.*?\]),\s*\{"', text, flags=re.S)
    return [json.loads(call) for call in calls]


def page_of(folder, *flags):
    assert main([str(folder), *flags]) == 0
    text = (folder / "report.html").read_text()
    return text, Page(text)


def test_a_run_has_result_curves_confusion_settings_and_origin(tmp_path):
    write_result(tmp_path, value=81.25)
    metrics = [{"epoch": epoch, "loss": 1 / epoch, "lr": 1e-3} for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics) + '{"epoch": 4, "lo')
    (tmp_path / "confusion.csv").write_text("class,rows,accuracy,a,<b>\na,5,80.00,4,1\n<b>,2,50.00,1,1\n")
    text, page = page_of(tmp_path)
    assert page.fetched == []
    assert {"Result", "loss", "learning rate", "Confusion", "Settings", "Where it comes from"} <= {*page.found["h2"]}
    assert "81.25" in page.found["td"]
    assert "The lowest accuracy of a class is 50.0 %, of &lt;b&gt;." in text
    loss, rate, confusion = drawn(text)[:3]
    assert (loss[0]["x"], loss[0]["y"]) == ([1, 2, 3], [1, 1 / 2, 1 / 3])
    assert rate[0]["y"] == [1e-3] * 3
    assert confusion[0]["z"] == [[4, 1], [1, 1]]


def test_several_runs_have_their_table_and_accuracy_over_parameters(tmp_path):
    for seed, value in enumerate((80.0, 82.0)):
        write_result(tmp_path / f"lora{seed}", method="lora", seed=seed, value=value)
        write_result(tmp_path / f"tied{seed}", method="capaboost-lora", seed=seed, value=value + 1)
    text, page = page_of(tmp_path, "--compare", "lora")
    (points,) = drawn(text)
    assert {point["name"]: point["y"] for point in points} == {"lora": [81.0], "capaboost-lora": [82.0]}
    assert all(point["error_y"]["array"] == [pytest.approx(2**0.5)] for point in points)
    assert any("+1.00" in cell for cell in page.found["td"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [((), "no result.json"), (("--compare", "dora"), "no result.json"), (("--output", "x/y.html"), "")],
)
def test_nothing_is_written_after_a_mistake(tmp_path, flags, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["empty", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

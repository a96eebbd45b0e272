"""From images of one's own to predictions in a new process's state, and to other programs' formats."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from tokenizers import processors

import capaboost_text
from capaboost import load_run, push_to_hub
from capaboost.commands import export, predict, train_glue, train_lm, train_vtab
from capaboost.hub import FILES, adapter_folder, fetch
from capaboost_core import save_adapter
from capaboost_core.adapter_files.record import write_inference
from capaboost_core.errors import UserError
from capaboost_text.encode import load_tokenizer
from capaboost_text.encoders import load_classifier
from tests.hub_server import hub
from tests.text.tiny_encoder import save_encoder

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for channel, name in enumerate(reversed(CLASSES)):
        for i in range(10):
            pixels = random.integers(0, 90, (20, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    """A run on them with the embedded backbone, of 16 patches."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    environment = pytest.MonkeyPatch()
    environment.setenv("ACCELERATE_USE_CPU", "true")
    code = train_vtab.main(
        ["--data", str(photos), "--model", "capaboost_vit_micro_patch8_64", "--set", "model.img_size=32", "--epochs",
         "3", "--batch-size", "8", "--lr", "0.01", "--mixed-precision", "no", "--output-dir", str(folder)]
    )  # fmt: skip
    environment.undo()
    assert code == 0
    return folder


def test_quiet_predictions_are_in_the_file_alone(trained, photos, tmp_path, capsys):
    loud, silent = tmp_path / "loud.csv", tmp_path / "silent.csv"
    flags = [str(trained), str(photos / "red"), "--device", "cpu"]
    assert predict.main([*flags, "--csv", str(loud)]) == 0
    assert "probability" in capsys.readouterr().out
    assert predict.main([*flags, "--csv", str(silent), "--quiet"]) == 0
    assert "".join(capsys.readouterr()) == ""
    assert silent.read_text() == loud.read_text()
    for wrong, line in ((["--quiet"], "add --csv FILE or --json FILE"), (["--device", "gpu"], "'gpu' is no device")):
        with pytest.raises(SystemExit, match="2"):
            predict.main([*flags, *wrong])
        assert line in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["80", "200"])
def test_predictions_fit_the_terminal(trained, photos, capsys, monkeypatch, columns):
    """Of a path that is too long its end is seen."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.chdir(photos)
    long = "./" * 60 + "red/0.png"
    assert predict.main([str(trained), long, "red/1.png", "--top", "2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= int(columns)
    assert table[2].split()[0].endswith("/red/0.png")
    assert table[2].startswith("...") == (len(long) + 60 > int(columns))
    assert table[3].startswith("red/1.png ")


def test_the_run_says_what_it_measured_and_of_whom(trained):
    result = json.loads((trained / "result.json").read_text())
    assert "20% of each class held out by seed 0" in result["split_note"]
    assert "held_out_accuracy" in result["metrics"]
    header, *rows = csv.reader((trained / "confusion.csv").open())
    assert header == ["class", "rows", "accuracy", *CLASSES]
    counts = np.array([[int(cell) for cell in row[3:]] for row in rows])
    assert counts.sum(axis=1).tolist() == [2, 2, 2]
    assert 100 * counts.trace() / counts.sum() == pytest.approx(result["value"])
    assert result["value"] == result["metrics"]["held_out_accuracy"]


def test_a_loaded_run_computes_what_was_trained(trained, photos):
    from capaboost_vision.vtab.own import read_own

    run, images = load_run(trained), read_own(photos, 0.2, 0)
    assert run.classes == CLASSES
    rows = images.splits["test"]
    probabilities = run.predict([path for path, _ in rows])
    assert probabilities.sum(dim=1).tolist() == pytest.approx([1] * len(rows))
    hits = probabilities.argmax(dim=1) == torch.tensor([label for _, label in rows])
    assert 100 * hits.double().mean().item() == pytest.approx(
        json.loads((trained / "result.json").read_text())["value"]
    )
    merged = load_run(trained / "adapter", merged=True).predict([path for path, _ in rows])
    torch.testing.assert_close(merged, probabilities, atol=1e-5, rtol=1e-5)


def test_predict_shows_and_writes_the_same(trained, photos, tmp_path, capsys):
    paths = [str(photos / "red" / "0.png"), str(photos / "blue")]
    flags = ["--top", "2", "--csv", str(tmp_path / "p.csv"), "--json", str(tmp_path / "p.json")]
    assert predict.main([str(trained), *paths, *flags]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["input"] for row in rows] == [paths[0], *(str(photos / "blue" / f"{i}.png") for i in range(10))]
    assert [row["class"] for row in rows] == [row["class"] for row in json.loads((tmp_path / "p.json").read_text())]
    expected = load_run(trained).predict([row["input"] for row in rows])
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.max(dim=1).values.tolist())
    assert list(rows[0]) == ["input", "class", "probability", "class_2", "probability_2"]
    assert rows[0]["class"] in capsys.readouterr().out


MISTAKES = {
    "no run": (["{tmp}", "{red}"], "has no inference.json"),
    "a missing run": (["{tmp}/none", "{red}"], "none; give a run's folder"),
    "no image": (["{run}", "{tmp}"], "holds no image"),
    "a missing image": (["{run}", "none.png"], "there is no none.png"),
    "a text": (["{run}", "{tmp}/bad.png"], "is not a readable image"),
    "a device": (["{run}", "{red}", "--device", "xpu:7"], "--device xpu:7 is not available here"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, trained, photos, tmp_path, capsys):
    if case == "a text":
        (tmp_path / "bad.png").write_text("no image")
    names = {"tmp": str(tmp_path), "run": str(trained), "red": str(photos / "red" / "0.png")}
    arguments, message = MISTAKES[case]
    assert predict.main([argument.format(**names) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]


def test_missing_inputs_are_said_before_a_model_is_loaded(tmp_path, capsys):
    assert predict.main([str(tmp_path), "none.png"]) == 2  # of a folder that is no run
    assert capsys.readouterr().err.startswith("error: there is no none.png; give images")


def test_another_base_is_refused(trained, tmp_path):
    other = timm.create_model("capaboost_vit_micro_patch8_64", num_classes=3)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="--base"):
        load_run(trained, base=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("target", export.FORMATS)
def test_an_export_computes_the_same_elsewhere(target, trained, photos, tmp_path):
    assert export.main([str(trained), "--to", target, "--output", str(tmp_path / "out")]) == 0
    run = load_run(trained)
    images = torch.stack([run.transform(photos / name / "3.png") for name in CLASSES])
    with torch.inference_mode():
        expected = run.model(images)
    torch.testing.assert_close(logits_of(target, tmp_path / "out", images), expected, atol=1e-4, rtol=1e-4)


def test_an_exported_folder_says_how_to_make_its_input(trained, photos, tmp_path):
    """As docs/vision.md has it: an image becomes the input by what lies beside the model."""
    import onnxruntime

    assert export.main([str(trained), "--to", "onnx", "--output", str(tmp_path / "out")]) == 0
    form = json.loads((tmp_path / "out" / "transform.json").read_text())
    height, width = form["size"]
    image = Image.open(photos / "red" / "3.png").convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image, dtype=np.float32) / 255 - np.float32(form["mean"])) / np.float32(form["std"])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    (logits,) = session.run(["logits"], {"images": pixels.transpose(2, 0, 1)[None]})
    expected = load_run(trained).predict([photos / "red" / "3.png"])
    torch.testing.assert_close(torch.from_numpy(logits).softmax(dim=1), expected, atol=1e-5, rtol=1e-5)


def logits_of(target: str, folder: Path, images: torch.Tensor) -> torch.Tensor:
    """What the other program computes."""
    if target == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if target == "timm":
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert tuple(model.pretrained_cfg["label_names"]) == CLASSES
    else:
        model = timm.create_model("capaboost_vit_micro_patch8_64", pretrained=True, img_size=32, num_classes=3)
    if target == "peft":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder))
    if target == "safetensors":
        from safetensors.torch import load_file

        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    with torch.inference_mode():
        return model.eval()(images)


def test_an_export_never_overwrites(trained, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert export.main([str(trained), "--to", "timm", "--output", str(tmp_path)]) == 2
    assert "give a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_adapter_without_the_record_still_loads(trained, tmp_path):
    from capaboost_core import load_adapter

    run = load_run(trained)
    save_adapter(run.model, tmp_path / "plain")
    with pytest.raises(UserError, match="call load_adapter"):
        load_run(tmp_path / "plain")
    base = timm.create_model("capaboost_vit_micro_patch8_64", pretrained=True, img_size=32, num_classes=3)
    images = run.example()[0]
    with torch.inference_mode():
        torch.testing.assert_close(load_adapter(base, tmp_path / "plain").eval()(images), run.model(images))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reviews")
    save_encoder(folder / "encoder")
    rows = [
        (f"{'Duke William' if i % 3 else 'the church'} {'won ' * (i % 5)}", ("bad", "good")[i % 3 > 0])
        for i in range(30)
    ]
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("review", "stars"), *rows])
    return folder


@pytest.fixture(scope="module")
def trained_on_texts(reviews) -> Path:
    environment = pytest.MonkeyPatch()
    environment.setenv("ACCELERATE_USE_CPU", "true")
    code = train_glue.main(
        ["--data", str(reviews / "reviews.csv"), "--model", str(reviews / "encoder"), "--epochs", "2", "--batch-size",
         "8", "--set", "data.max_length=64", "--mixed-precision", "no", "--output-dir", str(reviews / "run")]
    )  # fmt: skip
    environment.undo()
    assert code == 0
    return reviews / "run"


def test_a_table_of_texts_trains_and_predicts(trained_on_texts, reviews, tmp_path):
    result = json.loads((trained_on_texts / "result.json").read_text())
    assert "20% of each class of it, held out" in result["split_note"]
    assert result["config"]["data"]["classes"] == ["bad", "good"]
    _, *rows = csv.reader((trained_on_texts / "confusion.csv").open())
    assert [row[:2] for row in rows] == [["bad", "2"], ["good", "4"]]
    flags = ["--csv", str(tmp_path / "p.csv")]  # the column is that of training
    assert predict.main([str(trained_on_texts), str(reviews / "reviews.csv"), *flags]) == 0
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(table) == 30
    assert {row["class"] for row in table} <= {"bad", "good"}
    run = load_run(trained_on_texts)
    one = torch.cat([run.predict([row["input"]]) for row in table])  # without padding
    torch.testing.assert_close(run.predict([row["input"] for row in table]), one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "line 1: the header has no column 'review' but 'id, body'; name one of these by --column"),
        (["--column", "a,b"], "the run was trained on review; give --column as many names"),
    ],
)
def test_another_column_is_asked_for(flags, message, trained_on_texts, tmp_path, capsys):
    (tmp_path / "new.csv").write_text("id,body\n1,Duke William\n")
    assert predict.main([str(trained_on_texts), str(tmp_path / "new.csv"), *flags]) == 2
    assert capsys.readouterr().err.rstrip().endswith(message)
    assert predict.main([str(trained_on_texts), str(tmp_path / "new.csv"), "--column", "body"]) == 0


def test_a_base_model_that_moved_is_asked_for(trained_on_texts, reviews, tmp_path):
    adapter = shutil.copytree(trained_on_texts / "adapter", tmp_path / "adapter")
    record = json.loads((adapter / "inference.json").read_text())
    write_inference(adapter, record | {"model": {"name": "./none"}})
    with pytest.raises(
        UserError, match=r"there is no such folder.*; a base model in a folder that has moved is --base"
    ):
        load_run(adapter)
    there = load_run(adapter, base=str(reviews / "encoder")).predict(["Duke William"])
    assert torch.equal(there, load_run(trained_on_texts).predict(["Duke William"]))


@pytest.mark.parametrize("target", ["onnx", "safetensors", "peft"])
def test_a_text_run_is_exported(target, trained_on_texts, tmp_path):
    assert export.main([str(trained_on_texts), "--to", target, "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["bad", "good"]
    (tmp_path / "usual").touch()
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in written} == {(tmp_path / "usual").stat().st_mode}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "none", "--label", "stars"], "no column 'none'"),
        (["--label", "review"], "--text COLUMN"),
        (["--task", "cola"], "--data is given beside --task"),
    ],
)
def test_a_table_that_needs_more_is_one_line(flags, message, reviews, tmp_path, capsys):
    table = tmp_path / "odd.csv"
    table.write_text((reviews / "reviews.csv").read_text().replace("review,stars", "a,stars", 1))
    arguments = ["--data", str(table), "--model", str(reviews / "encoder"), *flags]
    assert train_glue.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "odd.csv has no header; name its columns in the first line, such as text,label"),
        ("text,label\n", "odd.csv holds no rows below its header; add some, or fetch the file again"),
        ("words,label\nfine,good\n", "odd.csv has the columns 'words, label'; say which by --text COLUMN"),
    ],
)
def test_a_table_with_nothing_to_train_on_is_one_line(content, message, tmp_path, capsys):
    (tmp_path / "odd.csv").write_text(content)
    assert train_glue.main(["--data", str(tmp_path / "odd.csv"), "--output-dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "photos; give --data the folder of your class folders, or a CSV file"),
        ((), "photos holds no folders of images; give a folder with"),
        (("cat/a.txt",), "cat holds no image; add some, or remove the folder"),
        (("cat/1.png",), "photos holds images of one class, 'cat', but two classes or more are needed; give a folder"),
    ],
)
def test_a_folder_that_cannot_train_is_one_line_and_nothing_else(made, message, tmp_path, capsys):
    for name in made or ():
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).touch()
    if made == ():
        (tmp_path / "photos").mkdir()
    assert train_vtab.main(["--data", str(tmp_path / "photos"), "--output-dir", str(tmp_path / "out")]) == 2
    (line,) = "".join(capsys.readouterr()).splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_adapter_goes_to_a_hub_and_comes_back(trained, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub() as (address, repositories):
        assert address in push_to_hub(trained, "me/colours", token="hf_local", endpoint=address)
        assert set(repositories["me/colours"]) == {*FILES, "capaboost_config.json"}
        capsys.readouterr()
        folder = fetch("hf-hub:me/colours", endpoint=address)
        assert "".join(capsys.readouterr()) == ""  # a few small files need no bar
        with pytest.raises(UserError, match="cannot get hf-hub:me/none"):
            fetch("hf-hub:me/none", endpoint=address)
    images = [photos / name / "1.png" for name in CLASSES]
    assert torch.equal(load_run(folder).predict(images), load_run(trained).predict(images))


def test_the_card_says_what_was_measured(trained):
    result = json.loads((trained / "result.json").read_text())
    card = ModelCard.load(trained / "adapter" / "README.md")
    assert card.data.base_model is None  # the embedded backbone is on no hub
    assert card.data.pipeline_tag == "image-classification"
    assert [entry.metric_value for entry in card.data.eval_results] == [result["value"]]
    assert f"{result['trainable_parameters']:,}" in card.text
    assert f"seed of the masks | {result['config']['adapter']['seed']}" in card.text
    assert "num_tied 2, density 0.5" in card.text
    assert "scaling stable" in card.text  # the recipe of the embedded backbone


def test_a_hub_out_of_reach_is_one_line(trained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="cannot upload to me/colours"):
        push_to_hub(trained, "me/colours", token="hf_local", endpoint="http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot get hf-hub:me/colours"):
        fetch("hf-hub:me/colours", endpoint="http://127.0.0.1:9")


def test_what_is_no_adapter_is_not_pushed(tmp_path):
    with pytest.raises(UserError, match=r"has no adapter\.safetensors"):
        push_to_hub(tmp_path, "me/none", token="hf_local", endpoint="http://127.0.0.1:9")


def test_the_best_run_of_a_grid_is_used(trained, tmp_path):
    result = json.loads((trained / "result.json").read_text()) | {"lr_grid": {"0.01": 1.0, "0.001": 0.0}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "lr-0.01").symlink_to(trained)
    assert adapter_folder(tmp_path) == tmp_path / "lr-0.01" / "adapter"


@pytest.mark.parametrize("change", [{"kind": "sounds"}, {"transform": {}}, {"classes": [1]}, {"model": {}}])
def test_a_damaged_record_is_one_line(change, trained, tmp_path):
    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    record = json.loads((trained / "adapter" / "inference.json").read_text()) | change
    (tmp_path / "adapter" / "inference.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is damaged"):
        load_run(tmp_path)


def test_pairs_of_texts_keep_their_segments_in_onnx(tmp_path):
    import onnxruntime
    from transformers import AutoTokenizer

    save_encoder(tmp_path / "encoder")
    adapter, tokenizer = tmp_path / "adapter", load_tokenizer(tmp_path / "encoder", 32)
    torch.manual_seed(0)
    model = capaboost_text.inject(load_classifier(tmp_path / "encoder", 2, tokenizer.pad_token_id), "capaboost-lora")
    save_adapter(model, adapter)
    record = {"kind": "texts", "model": {"name": str(tmp_path / "encoder")}, "classes": ["no", "yes"]}
    write_inference(adapter, record | {"columns": ["a", "b"], "max_length": 32})
    assert export.main([str(adapter), "--to", "onnx", "--output", str(tmp_path / "out")]) == 0
    run, session = load_run(adapter), onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert [one.name for one in session.get_inputs()] == list(run.inputs)
    beside = AutoTokenizer.from_pretrained(tmp_path / "out")
    pairs = [("Duke William", "won"), ("the church " * 40, "of the Duke")]  # the second is cut
    first, second = (list(texts) for texts in zip(*pairs, strict=True))
    tokens = beside(first, second, padding=True, truncation=True, return_tensors="np")
    assert tokens["input_ids"].shape == (2, 32)
    (logits,) = session.run(None, {name: tokens[name] for name in run.inputs})
    torch.testing.assert_close(torch.from_numpy(logits).softmax(dim=1), run.predict(pairs), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def language_run(place, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("language") / "run"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ACCELERATE_USE_CPU", "true")
        code = train_lm.main(
            [str(place / "pairs.jsonl"), "--model", str(place / "decoder"), "--epochs", "2", "--lr", "0.02", "--set",
             "data.max_length=32", "--mixed-precision", "no", "--output-dir", str(folder)]
        )  # fmt: skip
    assert code == 0
    return folder


def test_a_language_model_continues_prompts_as_it_does_one_by_one(language_run, tmp_path, capsys):
    prompts = ["The Norman ", "in 1066", "Duke William conquered "]
    run, made = load_run(language_run), []
    for prompt in prompts:
        tokens = run.tokenizer(prompt, return_tensors="pt").input_ids
        words = run.model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=1)[0, tokens.shape[1] :]
        made.append(run.tokenizer.decode(words, skip_special_tokens=True))
    assert run.predict(prompts, max_new_tokens=6) == made
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    flags = ["--max-new-tokens", "6", "--json", str(tmp_path / "p.json")]
    assert predict.main([str(language_run), str(tmp_path / "prompts.txt"), *flags]) == 0
    rows = json.loads((tmp_path / "p.json").read_text())
    assert rows == [{"input": prompt, "continuation": text} for prompt, text in zip(prompts, made, strict=True)]
    assert "continuation" in capsys.readouterr().out
    assert predict.main([str(language_run), str(tmp_path / "prompts.txt"), "--max-new-tokens", "60"]) == 2
    assert "but the model has room for 4; shorten it" in capsys.readouterr().err


def test_a_continuation_ends_with_the_token_that_a_text_was_trained_to_end_with(language_run):
    """The base may know another end, or none."""
    run = load_run(language_run)
    (longer,) = run.predict(["The Norman "], max_new_tokens=6)
    for of_base in (None, 299, [299, 298]):
        run.model.generation_config.eos_token_id = of_base
        assert run.predict(["The Norman "], max_new_tokens=6) == [longer]
    tokens = run.tokenizer("The Norman ", return_tensors="pt").input_ids
    third = run.model.generate(tokens, max_new_tokens=3, do_sample=False, pad_token_id=1)[0, -1]
    run.tokenizer.eos_token = run.tokenizer.convert_ids_to_tokens(third.item())
    (shorter,) = run.predict(["The Norman "], max_new_tokens=6)
    assert longer.startswith(shorter)
    assert shorter != longer


def test_a_prompt_without_a_token_is_one_line(language_run):
    run = load_run(language_run)
    run.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")  # as GPT-2 has no <s>
    with pytest.raises(UserError, match="a text has no token to go on from"):
        run.predict(["The", ""], max_new_tokens=2)


def test_a_prompt_is_a_line_whatever_other_line_ends_it_holds(language_run, tmp_path, capsys):
    prompts = ["one\u2028line", "another\x0cline\x85"]
    (tmp_path / "prompts.txt").write_text("\r\n".join(prompts), encoding="utf-8", newline="")
    flags = ["--max-new-tokens", "2", "--json", str(tmp_path / "p.json")]
    assert predict.main([str(language_run), str(tmp_path / "prompts.txt"), *flags]) == 0
    assert [row["input"] for row in json.loads((tmp_path / "p.json").read_text())] == prompts
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "Who?"}]}\n')
    assert predict.main([str(language_run), str(tmp_path / "prompts.jsonl"), "--column", "prompt"]) == 2
    assert "line 1: prompt is no text" in capsys.readouterr().err


def test_new_tokens_are_for_language_models(trained, photos, capsys):
    assert predict.main([str(trained), str(photos / "red"), "--max-new-tokens", "6"]) == 2
    assert "--max-new-tokens is for runs of train-lm; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["onnx", "peft", "safetensors"])
def test_an_exported_language_model_is_compared_before_it_counts(target, language_run, tmp_path, capsys):
    assert export.main([str(language_run), "--to", target, "--output", str(tmp_path / "out")]) == 0
    assert float(capsys.readouterr().out.split("by ")[1].split(" ")[0]) < 1e-4


def test_the_card_of_a_language_model_says_how_to_use_it(language_run):
    card = ModelCard.load(language_run / "adapter" / "README.md")
    assert (card.data.pipeline_tag, card.data.eval_results[0].metric_type) == ("text-generation", "perplexity")
    assert 'print(run.predict(["a text to go on from"]))' in card.text

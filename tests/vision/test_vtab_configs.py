"""The VTAB configurations: the recipe's normalisation, its readings of LoRA, settings of the timm model."""

from pathlib import Path

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from capaboost.commands import train_vtab
from capaboost.runs.settings import VtabRun, vtab_config_file
from capaboost.runs.vtab import create_model
from capaboost.training.settings import load_run, to_dict
from capaboost_core import UserError, parameter_counts
from capaboost_vision import inject
from capaboost_vision.vtab.task import Normalize
from capaboost_vision.vtab.tasks import TASKS

FOLDER = Path(__file__).parents[2] / "configs" / "vtab"
EMBEDDED = "capaboost_vit_micro_patch8_64"
VIT = "vit_base_patch16_224"


def run_of(dataset="cifar", method=None, *assignments):
    return load_run(VtabRun, vtab_config_file(FOLDER, dataset), {}, method, list(assignments))


@pytest.mark.parametrize("dataset", TASKS)
def test_the_default_run_normalises_with_imagenets_statistics(dataset):
    assert to_dict(run_of(dataset))["data"]["normalize"] == "imagenet"


def test_pixels_of_the_default_run_have_imagenets_mean_and_deviation():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2)  # its own statistics are 0.5 and 0.5
    normalize = Normalize(run_of().data.normalize, model, torch.device("cpu"))
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    expected = (pixels.flatten() / 255 - mean) / std
    assert torch.allclose(normalize(pixels).flatten(), expected, atol=1e-5)


@pytest.mark.parametrize("name", [EMBEDDED, f"{EMBEDDED}.tiny_imagenet"])
def test_the_embedded_backbone_keeps_its_own_statistics(name):
    assert run_of("cifar", None, f"model.name={name}").data.normalize == "model"
    assert run_of("digits").data.normalize == "model"
    assert run_of("cifar", None, f"model.name={name}", "data.normalize=imagenet").data.normalize == "imagenet"


@pytest.mark.parametrize("method", [None, "capaboost-lora", "capaboost-padapter"])
def test_the_papers_alpha_is_over_r_and_that_of_the_embedded_tasks_is_stable(method):
    scalings = {dataset: run_of(dataset, method).adapter.scaling for dataset in TASKS}
    assert scalings == dict.fromkeys(TASKS, "alpha-r")
    for dataset in ("digits", "shapes_joint"):
        assert run_of(dataset, method).adapter.scaling == "stable"


PARAMETERS = {  # of ViT-B/16 at r = 8: 12 layers, width 768
    ("lora", "attention-qv"): 12 * 2 * (768 + 768) * 8,
    ("lora", "fused-qkv"): 12 * (768 + 3 * 768) * 8,
    ("linear", None): 0,
    ("full", None): 85_798_656,
}


@pytest.mark.parametrize(("method", "targets"), PARAMETERS)
def test_parameters_of_the_baselines_of_table_5(method, targets):
    with torch.device("meta"):
        model = timm.create_model(VIT, num_classes=2)
    run = run_of("cifar", method, *([f"adapter.targets={targets}"] if targets else []))
    assert parameter_counts(inject(model, run.adapter)).trainable == PARAMETERS[method, targets]


def test_both_readings_of_0_29_millions_are_the_same_number():
    assert PARAMETERS["lora", "attention-qv"] == PARAMETERS["lora", "fused-qkv"] == 294_912


def test_full_and_linear_have_rates_of_their_own():
    assert [run_of("dtd", method).train.lr for method in (None, "lora", "full", "linear")] == [1e-3, 1e-3, 1e-4, 5e-3]
    assert run_of("dtd", "full", "train.lr=3e-4").train.lr == 3e-4


def test_ssf_has_its_authors_recipe_and_methods_keep_their_own_sizes():
    run = run_of("dtd", "ssf")
    assert (run.train.lr, run.train.weight_decay, run.train.min_lr) == (5e-3, 5e-5, 1e-8)
    assert (run.model.drop_path_rate, run.model.name) == (0.0, run_of("dtd").model.name)
    methods = ("adaptformer", "fact-tt", "fact-tk", "repadapter", "vpt-deep")
    assert [run_of("dtd", method).adapter.r for method in methods] == [64, 16, 32, 8, 10]
    assert run_of("dtd", "adaptformer").adapter.dropout == 0.1


def test_a_fused_reading_needs_a_fused_layer():
    model = timm.create_model("eva02_base_patch14_224", num_classes=2, depth=1)
    with pytest.raises(UserError, match="q, k and v apart; type attention-qv or all-linear"):
        inject(model, {"targets": "fused-qkv"})


def test_fused_qkv_shares_one_a_and_changes_the_output():
    model = inject(timm.create_model("vit_tiny_patch16_224", num_classes=2), {"targets": "fused-qkv", "r": 4})
    layer = model.blocks[0].attn.qkv
    shapes = {name: tuple(tied.bits.shape) for name, tied in layer.tied_weights().items()}
    assert list(shapes.values()) == [(1, 4, 192), (4, 3 * 192)]  # A and B's transpose
    model.eval()
    image = torch.randn(1, 3, 224, 224)
    before = model(image)
    with torch.no_grad():
        for parameter in layer.own_parameters().values():
            parameter.add_(0.5)
    assert not torch.allclose(model(image), before)


def test_any_keyword_of_the_timm_model_can_be_set():
    small = ("model.name=vit_tiny_patch16_224", "model.pretrained=false", "model.img_size=32")
    run = run_of("cifar", "lora", *small, "model.kwargs.depth=1", "model.kwargs.class_token=false",
        "model.kwargs.global_pool=avg")  # fmt: skip
    model = create_model(run.model, 5, run.adapter)
    assert model.patch_embed.img_size == (32, 32)
    assert (len(model.blocks), model.cls_token) == (1, None)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.kwargs.img_size=64", "type model.img_size"),
        ("model.kwargs.num_classes=5", "type data.num_classes"),
        ("model.kwargs=3", "model.kwargs is 3"),
        ("model.img_size=0", "model.img_size is 0"),
    ],
)
def test_a_wrong_keyword_is_one_line(assignment, message):
    with pytest.raises(UserError, match=message) as caught:
        run_of("cifar", "lora", assignment)
    assert "\n" not in str(caught.value)


def test_a_keyword_that_timm_does_not_have_is_one_line():
    run = run_of("cifar", "lora", "model.name=vit_tiny_patch16_224", "model.pretrained=false", "model.kwargs.no=1")
    with pytest.raises(UserError, match="timm cannot make vit_tiny_patch16_224") as caught:
        create_model(run.model, 5, run.adapter)
    assert "\n" not in str(caught.value)


LOCAL = ("--source", "folder", "--data-dir", "x")
PAPER, SMALL = (100, 1e-3, None, 0.1, None, "alpha-r"), (20, 5e-3, 1e-2, 0.0, 32.0, "stable")
OWN = (100, 1e-3, 5e-3, 0.1, None, "alpha-r")
RECIPES = {  # flags, and epochs, rate, the head's rate, drop path, alpha, scaling
    "the paper's": (["--dataset", "cifar"], PAPER),
    "the paper's, on local files": (["--dataset", "cifar", *LOCAL], PAPER),
    "the paper's, of any other model": (["--dataset", "dtd", "--model", "vit_small_patch14_dinov2"], PAPER),
    "a task without a file": (["--dataset", "mine", *LOCAL], PAPER),
    "embedded": (["--dataset", "cifar", "--model", EMBEDDED], SMALL),
    "embedded, with a tag": (["--dataset", "cifar", "--model", f"{EMBEDDED}.tiny_imagenet"], SMALL),
    "embedded, by --set": (["--dataset", "cifar", "--set", f"model.name={EMBEDDED}"], SMALL),
    "embedded, on local files": (["--dataset", "oxford_flowers102", *LOCAL, "--model", EMBEDDED], SMALL),
    "embedded, a task without a file": (["--dataset", "mine", *LOCAL, "--model", EMBEDDED], SMALL),
    "embedded, own images": (["--data", "photos", "--model", EMBEDDED], SMALL),
    "own images": (["--data", "photos"], OWN),
    "own images called as a task": (["--data", "photos/cifar"], OWN),
    "own images, by --set": (["--dataset", "x", "--data-dir", "x", "--set", "data.source=images"], OWN),
    "digits": (["--dataset", "digits"], (20, 5e-3, None, 0.0, 32.0, "stable")),
    "digits, another model": (["--dataset", "digits", "--model", "test_vit"], (20, 5e-3, None, 0.0, 32.0, "stable")),
    "rendered": (["--dataset", "shapes_dist"], (20, 5e-3, None, 0.0, 32.0, "stable")),
    "typed over it": (
        ["--dataset", "cifar", "--model", EMBEDDED, "--epochs", "3", "--lr", "0.1", "--set", "adapter.alpha=1"],
        (3, 0.1, 1e-2, 0.0, 1.0, "stable"),
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_the_recipe_follows_model_dataset_and_source(case):
    flags, expected = RECIPES[case]
    run = train_vtab.load(train_vtab.vtab_parser().parse_args(flags))
    train, adapter = run.train, run.adapter
    assert (
        train.epochs, train.lr, train.head_lr, run.model.drop_path_rate, adapter.alpha, adapter.scaling
    ) == expected  # fmt: skip


def test_the_recipe_of_a_model_leaves_a_task_its_classes_and_images_of_ones_own_theirs():
    for flags, classes in ((["--dataset", "cifar"], 100), (["--data", "photos/cifar"], None)):
        for model in (EMBEDDED, VIT):
            options = train_vtab.vtab_parser().parse_args([*flags, "--model", model])
            assert train_vtab.load(options).data.num_classes == classes


@pytest.mark.parametrize("flags", [["--dataset", "cifar"], ["--data", "photos"], ["--dataset", "digits"]])
@pytest.mark.parametrize("model", [EMBEDDED, VIT])
def test_a_probe_and_full_fine_tuning_have_one_rate(flags, model):
    for method, lr in (("linear", 5e-3), ("full", 1e-4)):
        options = train_vtab.vtab_parser().parse_args([*flags, "--model", model, "--method", method])
        train = train_vtab.load(options).train
        assert (train.lr, train.head_lr) == (lr, None)


def test_a_file_of_ones_own_gives_way_for_the_embedded_backbone_too(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: {FOLDER / '_base.yaml'}\nmodel: {{name: {EMBEDDED}}}\ndata: {{dataset: x}}\n")
    run = load_run(VtabRun, mine, {}, None, [])
    assert (run.train.lr, run.train.head_lr, run.model.drop_path_rate) == (5e-3, 1e-2, 0.0)
    other = load_run(VtabRun, mine, {"model": {"name": VIT}}, None, [])
    assert (other.train.lr, other.train.head_lr, other.model.drop_path_rate) == (1e-3, None, 0.1)

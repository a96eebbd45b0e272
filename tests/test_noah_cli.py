"""`capaboost noah`: supernet, search and subnet, each in its folder, with one look at the test rows."""

import json
import re
from random import Random

import numpy as np
import pytest
from PIL import Image

from capaboost.commands import noah, train_vtab
from capaboost.report.models import Sizes, make_subject
from capaboost.report.subnets import SubnetCosts
from capaboost.training.settings import to_dict
from capaboost_core import parameter_counts, resolve_config
from capaboost_core.methods.noah import Subnet, parts_of
from capaboost_vision.vtab.task import ImageTask

BUDGET = 4000
TINY = ["--model", "test_vit", "--set", "model.pretrained=false", "--set", "model.img_size=32"]
SEARCH = ["--budget", str(BUDGET), "--generations", "2", "--population", "4", "--set", "adapter.dims=[1,2,8]"]
RUN = [*TINY, *SEARCH, "--epochs", "1", "--supernet-epochs", "2", "--set", "adapter.dropout=0.2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Flags of a folder source with 16 images of two classes."""
    task = tmp_path_factory.mktemp("data") / "greys"
    (task / "images").mkdir(parents=True)
    for index in range(16):
        pixels = np.full((32, 32, 3), 100 * (index % 2) + 5 * index, np.uint8)
        Image.fromarray(pixels).save(task / "images" / f"{index}.png")
    rows = [f"images/{index}.png {index % 2}" for index in range(16)]
    splits = {"train800": rows[:6], "val200": rows[6:10], "train800val200": rows[:10], "test": rows[10:]}
    for split, part in splits.items():
        (task / f"{split}.txt").write_text("\n".join(part) + "\n")
    return ["--dataset", "greys", "--source", "folder", "--data-dir", str(task.parent)]


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A finished command with its folder, and the subnets that val200 and the test rows were asked about."""
    folder, asked = tmp_path_factory.mktemp("runs") / "greys", {"evaluate": [], "test": []}

    def spied(name):
        real = getattr(ImageTask, name)

        def spy(task, model):
            asked[name].append(Subnet(*(tuple(part.width for part in parts) for parts in parts_of(model))))
            return real(task, model)

        return spy

    command = [*RUN, *images, "--output-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        for name in asked:
            patch.setattr(ImageTask, name, spied(name))
        assert noah.main(command) == 0
    return command, folder, asked


def read(path):
    return json.loads(path.read_text())


def test_the_stages_leave_a_supernet_a_search_and_a_subnet_within_the_budget(finished):
    _, folder, asked = finished
    supernet, found, subnet = (
        read(folder / name) for name in ("supernet/result.json", "search.json", "subnet/result.json")
    )
    assert (supernet["method"], supernet["protocol"], supernet["epochs"]) == ("noah-supernet", "select", 2)
    assert (subnet["method"], subnet["protocol"], subnet["epochs"]) == ("noah", "test", 1)
    assert found["found"]["scored"] == 8
    assert 0 < found["found"]["parameters"] == subnet["trainable_parameters"] <= BUDGET
    dims = [subnet["config"]["adapter"][name] for name in ("lora_dim", "adapter_dim", "prompt_dim")]
    assert dims == found["found"]["subnet"]
    assert subnet["config"]["adapter"]["dropout"] == supernet["config"]["adapter"]["dropout"] == 0.2
    whole, scored, plain = Subnet(*((8,) * 6,) * 3), asked["evaluate"][2:-1], asked["evaluate"][-1]
    assert asked["evaluate"][:2] == [whole] * 2  # after the supernet's epochs
    assert len(scored) == len({*scored}) == 8
    assert Subnet(*map(tuple, dims)) in scored
    assert asked["test"] == [plain]  # once, of the subnet, whose parts are not cut
    assert supernet["split_note"].endswith("not tested")


def test_the_settings_that_it_writes_are_those_of_the_subnet_s_run(finished):
    _, folder, _ = finished
    run = train_vtab.load(train_vtab.vtab_parser().parse_args(["--config", str(folder / "subnet.yaml")]))
    ran = read(folder / "subnet" / "result.json")["config"]
    chosen = {"mixed_precision": ran["train"]["mixed_precision"]}  # what auto became
    assert to_dict(run) | {"train": to_dict(run)["train"] | chosen} == ran


def test_the_same_command_goes_on_from_what_is_there(finished, capsys):
    command, folder, _ = finished
    files = [folder / name for name in ("supernet/result.json", "search.json", "subnet/result.json")]
    before = [file.read_bytes() for file in files]
    times = [file.stat().st_mtime_ns for file in files]
    assert noah.main([*command, "--resume"]) == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    files[1].unlink()  # the search is made again, with the same result
    assert noah.main([*command, "--resume"]) == 0
    assert [file.read_bytes() for file in files] == before
    assert noah.main(command) == 2
    assert "supernet holds a run already" in capsys.readouterr().err


REFUSED = {
    "another method": (["--method", "lora"], "method lora has no supernet; type --method noah or capaboost-noah"),
    "a budget of words": (["--budget", "small"], "budget is 'small'; type a number of parameters"),
    "a budget below every subnet": (
        ["--budget", "1k"],
        "parameters, and the budget is 1,000; raise it, or lower dims or depths",
    ),
    "widths of a subnet": (["--set", "adapter.lora_dim=3"], "it means nothing to method noah-supernet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_requests_are_refused_in_a_line_before_a_run(name, images, capsys, tmp_path):
    arguments, message = REFUSED[name]
    assert noah.main([*RUN, *images, *arguments, "--output-dir", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_search_needs_a_budget(capsys):
    with pytest.raises(SystemExit):
        noah.main(["--dataset", "digits"])
    assert re.search("give --budget N", capsys.readouterr().err)


@pytest.mark.parametrize("preset", ["noah-supernet", "capaboost-noah-supernet"])
def test_the_cost_of_a_subnet_is_what_it_trains(preset):
    subject = make_subject("test_vit", Sizes())
    supernet = resolve_config(preset).replace(dims=(0, 1, 3, 8))
    cost, space, random = SubnetCosts(subject, supernet), supernet.space(6), Random(0)
    assert cost.blocks == 6
    subnets = [space.random(random) for _ in range(6)] + [Subnet((3,) * 6, (0,) * 6, (0,) * 6)]
    for subnet in filter(cost, subnets):
        model = subject.inject(subject.build(), supernet.fixed(subnet))
        assert cost(subnet) == parameter_counts(model).trainable
    assert cost(Subnet(*((0,) * 6,) * 3)) == 0

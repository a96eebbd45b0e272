"""`capaboost noah`: supernet, search and subnet, each in its folder, with one look at the test rows."""

import json
import re
from random import Random

import pytest

from capaboost.commands import noah, train_vtab
from capaboost.subjects import Sizes, make_subject
from capaboost_core import parameter_counts, resolve_config
from capaboost_core.methods.subnets import Subnet
from capaboost_core.report.subnet_costs import SubnetCosts
from capaboost_core.training.run_config import to_dict
from capaboost_vision.image_task import ImageTask

BUDGET = 4000
TINY = ["--model", "test_vit", "--set", "model.pretrained=false", "--dataset", "digits", "--source", "digits"]
SEARCH = ["--budget", str(BUDGET), "--generations", "2", "--population", "4", "--set", "adapter.dims=[1,2,8]"]
RUN = [*TINY, *SEARCH, "--epochs", "1", "--supernet-epochs", "2", "--set", "adapter.dropout=0.2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished search, and how often its test rows were looked at."""
    folder, looks, test = tmp_path_factory.mktemp("runs") / "digits", [], ImageTask.test
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageTask, "test", lambda *given: looks.append(given) or test(*given))
        assert noah.main([*RUN, "--output-dir", str(folder)]) == 0
    return folder, len(looks)


def read(path):
    return json.loads(path.read_text())


def test_the_stages_leave_a_supernet_a_search_and_a_subnet_within_the_budget(finished):
    folder, looks = finished
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
    assert looks == 1
    assert supernet["split_note"].endswith("not tested")


def test_the_settings_that_it_writes_are_those_of_the_subnet_s_run(finished):
    folder, _ = finished
    run = train_vtab.load(train_vtab.vtab_parser().parse_args(["--config", str(folder / "subnet.yaml")]))
    ran = read(folder / "subnet" / "result.json")["config"]
    chosen = {"mixed_precision": ran["train"]["mixed_precision"]}  # what auto became
    assert to_dict(run) | {"train": to_dict(run)["train"] | chosen} == ran


def test_the_same_command_goes_on_from_what_is_there(finished, capsys):
    folder, _ = finished
    files = [folder / name for name in ("supernet/result.json", "search.json", "subnet/result.json")]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert noah.main([*RUN, "--output-dir", str(folder), "--resume"]) == 0
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    assert noah.main([*RUN, "--output-dir", str(folder)]) == 2
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
def test_wrong_requests_are_refused_in_a_line_before_a_run(name, capsys, tmp_path):
    arguments, message = REFUSED[name]
    assert noah.main([*RUN, *arguments, "--output-dir", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_search_needs_a_budget(capsys):
    with pytest.raises(SystemExit):
        noah.main(TINY)
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

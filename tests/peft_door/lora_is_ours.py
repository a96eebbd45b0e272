"""A pytest plugin for peft's own tests: `peft.LoraConfig` is `CapaBoostConfig`, where OURS is set.

Tests that are parametrized with another method's configuration are left out, and where OURS is set those with
settings of LoRA that `CapaBoostConfig` refuses, which are counted. Each outcome of a test that made one of
these configurations, or has LoRA in its name, is added to the file that OUTCOMES names, as a line of JSON.
"""

import inspect
import json
import os
import re
from contextlib import nullcontext

import peft
import pytest

from capaboost_core import UserError
from capaboost_peft import CapaBoostConfig

MADE = set()  # classes that the running test made a configuration of
TYPE = peft.LoraConfig
if os.environ.get("OURS"):
    TYPE = CapaBoostConfig
    for module in (peft, peft.tuners, peft.tuners.lora):
        module.LoraConfig = TYPE


def watched(self, *args, _init=TYPE.__init__, **kwargs):
    if type(self) is TYPE:
        MADE.add(TYPE)
    _init(self, *args, **kwargs)


watched.__signature__ = inspect.signature(TYPE.__init__)  # peft drops the keys of a file that are no parameters
TYPE.__init__ = watched


def pytest_configure(config):
    from tests import testing_utils  # of peft's checkout

    testing_utils.hub_online_once = lambda model_id: nullcontext()  # peft's would ask the network first


def pytest_collection_modifyitems(config, items):
    refused = {item: reason for item in items if (reason := _refusal(item))}
    for item, reason in refused.items():
        _write(item, "refused", reason)
    left_out = [item for item in items if item in refused or _configs(item) - {TYPE}]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _parameters(item) -> list:
    return list(getattr(getattr(item, "callspec", None), "params", {}).values())


def _configs(item) -> set:
    return {v for v in _parameters(item) if isinstance(v, type) and issubclass(v, peft.PeftConfig)}


def _refusal(item) -> str:
    """The line with which `CapaBoostConfig` refuses the settings of a test of LoRA."""
    if _configs(item) != {CapaBoostConfig}:
        return ""
    settings = [value for value in _parameters(item) if isinstance(value, dict)]
    try:
        for values in settings:
            CapaBoostConfig(**values)
    except UserError as error:
        return str(error)
    except (TypeError, ValueError):  # none of a configuration, or a test of a mistake
        pass
    return ""


def _write(item, outcome: str, reason: str) -> None:
    with open(os.environ["OUTCOMES"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"test": item.nodeid, "outcome": outcome, "reason": reason}) + "\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    MADE.clear()
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    concerned = MADE or re.search(r"(?<![a-z])(lora|capaboost)", item.nodeid.lower())
    if concerned and (report.when == "call" or report.failed):
        reason = "" if call.excinfo is None else call.excinfo.exconly().strip()
        _write(item, report.outcome, reason)

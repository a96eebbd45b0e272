"""What the commands of the suite need, imported once in the process that they are forked from."""

import gc
import importlib

MODULES = """
sklearn.datasets torch.distributed.fsdp torch.utils.tensorboard transformers.models.roberta.modeling_roberta
capaboost.commands.noah capaboost.sweeps.driver capaboost.sweeps.engines.local capaboost.console
capaboost.training.loop capaboost.runs.glue capaboost.runs.squad capaboost.runs.lm
capaboost.runs.vtab tests.commands
"""

for name in MODULES.split():
    importlib.import_module(name)
gc.freeze()  # no collection in a fork touches, and so copies, what is here

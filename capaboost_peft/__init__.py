"""CapaBoost-LoRA as one of peft's own methods: `get_peft_model(model, CapaBoostConfig(...))`.

The import registers the method, so that peft's loaders know its files too.
"""

from capaboost_core.extras import need

need("peft", "peft", "adapters of capaboost_peft")

from capaboost_peft.config import CapaBoostConfig  # noqa: E402
from capaboost_peft.convert import from_core, save_lora, to_core  # noqa: E402
from capaboost_peft.hotswap import register  # noqa: E402
from capaboost_peft.tuner import CapaBoostModel  # noqa: E402

register()

__all__ = ["CapaBoostConfig", "CapaBoostModel", "from_core", "save_lora", "to_core"]

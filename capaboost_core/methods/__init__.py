"""The methods, a file each, which is imported when one of its methods is first used.

So settings, help and a wrong name need no torch: the names stand here, in the order of lists.
"""

from capaboost_core.methods.method import (
    METHODS,
    PRESETS,
    Method,
    announce,
    load_plugins,
    register_method,
    resolve_config,
)

MODULES = (  # in this folder, with presets in the order of lists; those with `capaboost-` are tied kinds of the method
    ("lora", ("capaboost-lora", "lora")),
    ("allocated_lora", ("capaboost-lora-allocated", "lora-allocated")),
    ("hira", ("capaboost-hira", "hira")),
    ("bottleneck", ("capaboost-padapter", "padapter", "capaboost-hadapter", "hadapter")),
    ("prefix", ("capaboost-prefix", "prefix")),
    ("adaptformer", ("capaboost-adaptformer", "adaptformer")),
    ("vpt", ("capaboost-vpt-deep", "vpt-deep", "capaboost-vpt-shallow", "vpt-shallow")),
    ("repadapter", ("capaboost-repadapter", "repadapter")),
    ("fact", ("capaboost-fact-tt", "fact-tt", "capaboost-fact-tk", "fact-tk")),
    ("baselines", ("bitfit",)),
    ("ssf", ("ssf", "hadamard")),
    ("adakron", ("capaboost-adakron", "adakron", "capaboost-madakron", "madakron", "capaboost-madakron-partial",
                 "madakron-partial")),
    ("adamix", ("capaboost-adamix", "adamix", "capaboost-adamix-lora", "adamix-lora")),
    ("compacter", ("capaboost-compacter", "compacter", "capaboost-compacter++", "compacter++")),
    ("propetl", ("propetl-lora", "propetl-padapter", "propetl-prefix")),
    ("unipelt", ("capaboost-unipelt-ap", "unipelt-ap", "capaboost-unipelt", "unipelt")),
    ("noah", ("capaboost-noah", "noah", "capaboost-noah-supernet", "noah-supernet")),
    ("baselines", ("linear", "full")),
    ("from_peft.table", ("adalora", "dora", "rslora", "pissa", "vera", "loha", "lokr", "ia3", "randlora", "shira")),
)  # fmt: skip
for module, presets in MODULES:
    announce(f"{__name__}.{module}", presets)
CapaBoostConfig = Method
"""The settings of a method: `CapaBoostConfig(method="lora", r=4)` makes the method of that name with its settings."""

__all__ = ["METHODS", "PRESETS", "CapaBoostConfig", "Method", "register_method", "resolve_config"]

load_plugins()  # last: a plugin may import any of these

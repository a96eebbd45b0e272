"""Methods of stock peft, behind the same flag, reports and files as all others; peft is imported when one is used."""

from capaboost_core.methods.from_peft import table  # noqa: F401  registers them

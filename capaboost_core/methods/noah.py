"""NOAH's subnets (Zhang et al., 2022, arXiv 2206.04673) as a method whose settings are their widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from capaboost_core.errors import UserError
from capaboost_core.methods.noah_parts import Composed
from capaboost_core.methods.registry import register_method
from capaboost_core.methods.subnets import Subnet
from capaboost_core.settings.base import refuse
from capaboost_core.sharing.settings import PLAIN, TIED

LARGEST = 65536
Numbers = Annotated[
    tuple[int, ...], Field(min_length=1), BeforeValidator(lambda v: tuple(v) if type(v) is list else v)
]
DIMS = ("lora_dim", "adapter_dim", "prompt_dim")


@register_method("noah", capaboost_noah=TIED, noah=PLAIN)
class NOAH(Composed):
    """One subnet as a method: its widths are settings, and it trains from scratch.

    A block with widths l, a and p has 4 w l entries for LoRA, 2 w a + a + w for the adapter, and w p for prompts.
    Prompts stay among the tokens up to the next block that has its own, or the last.
    """

    budget: ClassVar[str | None] = "r"

    r: int = Field(5, ge=1, le=LARGEST, description="Rank, width and number of prompts where they are not given.")
    lora_dim: int | Numbers | None = Field(
        None, json_schema_extra={"null": "r"}, description="LoRA's rank, of all blocks or block by block; 0: none."
    )
    adapter_dim: int | Numbers | None = Field(
        None, json_schema_extra={"null": "r"}, description="The bottleneck's width, likewise."
    )
    prompt_dim: int | Numbers | None = Field(
        None, json_schema_extra={"null": "r"}, description="Number of prompts, likewise."
    )

    @classmethod
    def used(cls, values: Mapping[str, Any]) -> set[str]:
        """Without r, where all widths are given."""
        return super().used(values) - ({"r"} if all(values.get(name) is not None for name in DIMS) else set())

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        given = [self._dims(name) for name in DIMS]
        for name, dims in zip(DIMS, given, strict=True):
            if not all(0 <= width <= LARGEST for width in dims):
                refuse(name, getattr(self, name), f"type whole numbers from 0 to {LARGEST}")
        if not any(map(any, given)):
            refuse(DIMS[0], self.lora_dim, "all widths are 0; type one above 0, or choose method linear")
        if "r" not in self.used(self.__dict__) and self.r != type(self).model_fields["r"].default:
            refuse("r", self.r, f"it means nothing where {', '.join(DIMS)} are given; drop it")
        return self

    def subnet(self, blocks: int) -> Subnet:
        return Subnet(*(self._widths(name, blocks) for name in DIMS))

    def _dims(self, name: str) -> tuple[int, ...]:
        value = getattr(self, name)
        value = self.r if value is None else value
        return value if isinstance(value, tuple) else (value,)

    def _widths(self, name: str, blocks: int) -> tuple[int, ...]:
        dims = self._dims(name)
        if not isinstance(getattr(self, name), tuple):
            return dims * blocks
        if len(dims) != blocks:
            raise UserError(f"{name} has {len(dims)} numbers, but the model has {blocks} blocks; type one for each")
        return dims

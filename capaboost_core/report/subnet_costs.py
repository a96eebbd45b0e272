"""What a subnet of NOAH trains, from counts of its parts alone: a search asks for many."""

from __future__ import annotations

from capaboost_core.methods.noah import NOAH
from capaboost_core.methods.noah_supernet import NOAHSupernet
from capaboost_core.methods.sliced import parts_of
from capaboost_core.methods.subnets import Subnet
from capaboost_core.report.cost import Subject


class SubnetCosts:
    """The trained parameters of any subnet, exactly those of the method `supernet.fixed(subnet)`, without the head.

    Masks follow from a part's path and shape, so what it trains does not depend on the other parts.

    Args:
        subject: The base model, on the meta device.
        supernet: The method.

    Attributes:
        blocks: Of the model.

    Raises:
        UserError: If the model does not take the method.
    """

    def __init__(self, subject: Subject, supernet: NOAHSupernet):
        widths = filter(None, supernet.dims)
        self.counts = {width: _counts(subject, NOAH(r=width, **supernet.shared())) for width in widths}
        self.blocks = len(next(iter(self.counts.values()))[0])

    def __call__(self, subnet: Subnet) -> int:
        return sum(
            self.counts[width][part][block]
            for part, widths in enumerate(subnet)
            for block, width in enumerate(widths)
            if width
        )


def _counts(subject: Subject, method: NOAH) -> list[list[int]]:
    """Of each kind of part by block."""
    model = subject.inject(subject.build(), method)
    return [[sum(p.numel() for p in part.added()) for part in parts] for parts in parts_of(model)]

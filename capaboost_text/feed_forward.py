"""Transformers' feed-forward parts with a bottleneck in parallel."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Output
from transformers.models.distilbert.modeling_distilbert import FFN
from transformers.models.electra.modeling_electra import ElectraOutput
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP
from transformers.models.roberta.modeling_roberta import RobertaOutput
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaOutput

from capaboost_core.methods.adaptformer import AdaptFormer, ParallelFeedForward


class ParallelOutput(ParallelFeedForward):
    """The second half of BERT's feed-forward part, norm(dropout(W h) + x + bottleneck(x)).

    It gets x, which the first half reads, for the residual sum.
    """

    def width(self, linear: nn.Linear) -> int:
        return linear.out_features

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Hidden values (..., intermediate) and x (..., width) -> (..., width)."""
        x = input_tensor + self.adapter(input_tensor) if self.enabled else input_tensor
        return super(ParallelFeedForward, self).forward(hidden_states, x)


class ParallelBertOutput(ParallelOutput, BertOutput):
    pass


class ParallelRobertaOutput(ParallelOutput, RobertaOutput):
    pass


class ParallelXLMRobertaOutput(ParallelOutput, XLMRobertaOutput):
    pass


class ParallelElectraOutput(ParallelOutput, ElectraOutput):
    pass


class ParallelDebertaV2Output(ParallelOutput, DebertaV2Output):
    pass


class ParallelFFN(ParallelFeedForward, FFN):
    pass


class ParallelModernBertMLP(ParallelFeedForward, ModernBertMLP):
    pass


AdaptFormer.layers.update({cls.__bases__[1]: cls for cls in ParallelOutput.__subclasses__()})
AdaptFormer.layers.update({FFN: ParallelFFN, ModernBertMLP: ParallelModernBertMLP})

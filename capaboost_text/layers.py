"""transformers' classes as methods adapt them: Conv1D, feed-forward parts, self-attentions with a prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as bert
from transformers.models.bert.modeling_bert import BertOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Output
from transformers.models.distilbert import modeling_distilbert as distilbert
from transformers.models.distilbert.modeling_distilbert import FFN
from transformers.models.electra import modeling_electra as electra
from transformers.models.electra.modeling_electra import ElectraOutput
from transformers.models.modernbert import modeling_modernbert as modernbert
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP
from transformers.models.mpnet.modeling_mpnet import MPNetOutput
from transformers.models.roberta import modeling_roberta as roberta
from transformers.models.roberta.modeling_roberta import RobertaOutput
from transformers.models.xlm_roberta import modeling_xlm_roberta as xlm_roberta
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaOutput
from transformers.pytorch_utils import Conv1D

from capaboost_core.errors import UserError
from capaboost_core.layers import Adapted, MacCount
from capaboost_core.methods.adaptformer import AdaptFormer, ParallelFeedForward
from capaboost_core.methods.from_peft.method import FromPeft, PeftLayer
from capaboost_core.methods.lora import LoRA
from capaboost_core.methods.lora_layer import LoRALayer
from capaboost_core.methods.prefix import Prefix, PrefixTuning
from capaboost_core.plan import SHAPES, Target


class Transposed(Conv1D):
    """GPT-2's linear layer Conv1D, y = x W + b with W (in, out), in the terms of `nn.Linear`.

    An adapted layer sees W^T, a view; the stored weight and its name in the state dict stay the base's.
    """

    @property
    def in_features(self) -> int:
        return self.nx

    @property
    def out_features(self) -> int:
        return self.nf


class CapaConv1D(LoRALayer, Transposed):
    """Conv1D with delta weights as `LoRALinear` has them."""

    fan_in_fan_out: ClassVar[bool] = True

    @property
    def matrix(self) -> Tensor:
        return self.weight.T


class PeftConv1D(PeftLayer, Transposed):
    """Conv1D with the delta weight of a method of peft."""

    fan_in_fan_out: ClassVar[bool] = True


SHAPES[Conv1D] = lambda layer: (cast(Conv1D, layer).nf, cast(Conv1D, layer).nx)
LoRA.layers[Conv1D] = CapaConv1D
FromPeft.layers[Conv1D] = PeftConv1D


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


class ParallelMPNetOutput(ParallelOutput, MPNetOutput):
    pass


class ParallelFFN(ParallelFeedForward, FFN):
    pass


class ParallelModernBertMLP(ParallelFeedForward, ModernBertMLP):
    pass


AdaptFormer.layers.update({cls.__bases__[1]: cls for cls in ParallelOutput.__subclasses__()})
AdaptFormer.layers.update({FFN: ParallelFFN, ModernBertMLP: ParallelModernBertMLP})


PREFIXED = "capaboost_prefix"  # the name of `prefixed_attention` in transformers' attention interface


class PrefixAttention(Adapted):
    """A self-attention whose tokens also attend to a prefix, padding and local windows notwithstanding.

    An attention asks its configuration which implementation to call. Here it holds a copy that names
    `prefixed_attention`, which goes on to the implementation that the model's own configuration names:
    that one stays as it is, so masks, `set_attn_implementation` and `save_pretrained` work as ever.
    ModernBERT turns the keys of tokens by their position; a prefix has no position and is not turned.

    Args:
        base: The frozen attention to adopt.
        config: The adapter's configuration.
        target: Path of the attention.

    Raises:
        UserError: If the attention is causal or its implementation cannot show it a prefix.
    """

    model_config: Any  # transformers' configurations have the attributes of their architecture
    config: Any
    prefix: Prefix
    eager: ClassVar[Callable[..., Any]]

    def __init__(self, base: nn.Module, config: PrefixTuning, target: Target):
        if base.is_causal:
            raise UserError(f"method prefix is for encoders, but {target.path} is causal; set is_decoder to False")
        self.adopt(base, target.path)
        self.model_config, self.config = base.config, copy.copy(base.config)
        self.config._attn_implementation = PREFIXED
        heads = self.config.num_attention_heads
        width = self.config.hidden_size // heads * heads
        self.prefix = config.make_prefix(target.path, width, next(base.parameters()))
        self.check_implementation()
        self.prefix.train(base.training)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """As the base class; a gate goes to `prefixed_attention` with the other keywords."""
        gate = self.prefix.gate_of(hidden_states) if self.enabled else None
        gates = {} if gate is None else {"prefix_gate": gate}
        return super().forward(hidden_states, *args, **kwargs, **gates)

    def macs(self, needs_gradient: bool) -> list[MacCount]:
        return self.prefix.macs(needs_gradient)

    def check_implementation(self) -> None:
        """Refuse block masks, and a local window that the implementation draws itself, over the prefix too."""
        name = self.model_config._attn_implementation or "eager"
        local = getattr(self, "sliding_window", None) is not None
        if "flex" in name or ("flash" in name and local):
            raise UserError(f'{name} cannot show {self.path} a prefix; load the model with attn_implementation="sdpa"')


class BertAttention(PrefixAttention, bert.BertSelfAttention):
    eager = staticmethod(bert.eager_attention_forward)


class RobertaAttention(PrefixAttention, roberta.RobertaSelfAttention):
    eager = staticmethod(roberta.eager_attention_forward)


class XLMRobertaAttention(PrefixAttention, xlm_roberta.XLMRobertaSelfAttention):
    eager = staticmethod(xlm_roberta.eager_attention_forward)


class ElectraAttention(PrefixAttention, electra.ElectraSelfAttention):
    eager = staticmethod(electra.eager_attention_forward)


class DistilBertAttention(PrefixAttention, distilbert.DistilBertSelfAttention):
    eager = staticmethod(distilbert.eager_attention_forward)


class ModernBertAttention(PrefixAttention, modernbert.ModernBertAttention):
    eager = staticmethod(modernbert.eager_attention_forward)


class _AsBase:
    """The attention with the model's own configuration, where flash attention finds its kernel.

    All other attributes are the attention's: implementations read whichever they need.
    """

    def __init__(self, attention: PrefixAttention):
        self.attention, self.config = attention, attention.model_config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attention, name)


def prefixed_attention(
    module: PrefixAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_gate: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Put the prefix before keys and values (batch, heads, tokens, size), then attend as the model does."""
    implementation = module.model_config._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, module.eager)
    if module.enabled:
        module.check_implementation()
        key, value = module.prefix.prepend(key, value, prefix_gate)
        attention_mask = module.prefix.extend(attention_mask)
    return attend(_AsBase(module), query, key, value, attention_mask, **kwargs)


AttentionInterface.register(PREFIXED, prefixed_attention)
PrefixTuning.layers.update({cls.__bases__[1]: cls for cls in PrefixAttention.__subclasses__()})

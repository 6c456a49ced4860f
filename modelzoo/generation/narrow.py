"""Keep a model's weights in bfloat16 while it writes: half of the memory, and of the time that reading them takes."""

import torch
from torch import Tensor, nn

from modelzoo.kernels.few import FewRowsLinear
from modelzoo.sparsity.parameter import PackedLinear


class NarrowEmbedding(nn.Embedding):
    """An embedding whose rows are looked up in bfloat16 and go on in float32."""

    def __init__(self, words: nn.Embedding):
        super().__init__(words.num_embeddings, words.embedding_dim, _weight=words.weight)
        self.weight = words.weight  # the very parameter, which a tied head shares

    def forward(self, input: Tensor) -> Tensor:
        """[...] ids to [..., width]."""
        return super().forward(input).float()


@torch.no_grad()
def narrow_weights(model: nn.Module, compute_narrow: bool) -> str:
    """Round the weights of `model` to bfloat16, to nearest even, in place; returns a line about it.

    Args:
        compute_narrow: compute in bfloat16, too: all floating parameters. Else (on CPUs, many of which multiply no
            bfloat16) linears, packed ones and embeddings are kept so, and what is computed is float32; linears with
            LoRA and soft prompts stay as they are.
    """
    if compute_narrow:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16()
        return "weights and products are bfloat16"
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Embedding:
                setattr(module, name, NarrowEmbedding(child))
    sharing: dict[int, list[FewRowsLinear | PackedLinear | NarrowEmbedding]] = {}
    for module in model.modules():
        if isinstance(module, FewRowsLinear | PackedLinear | NarrowEmbedding):
            sharing.setdefault(id(module.weight), []).append(module)
    for modules in sharing.values():  # one after the other: no more than one weight is there twice
        weight = nn.Parameter(modules[0].weight.bfloat16(), requires_grad=False)
        for module in modules:
            module.weight = weight
    return "weights are bfloat16, products float32"

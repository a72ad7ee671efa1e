"""How a model begins: the first weights of its linear layers and of the ends of its residual branches."""

from torch import nn

from lookupvit.checks import check_choice, check_residual_init

WEIGHT_INITS = ("trunc_normal", "xavier_uniform")
_BRANCH_ENDS = (".proj", ".proj_infuse", ".fc2")  # names of the layers that add to a residual stream


def init_linear_layers(model: nn.Module, weight_init: str = "trunc_normal") -> None:
    """Initialises the weights of every linear layer of a model, and sets the biases to zero.

    Args:
        model: The model, changed in place.
        weight_init: "trunc_normal" has a standard deviation of 0.02 at every width, as timm's ViT. "xavier_uniform"
            depends on the width, as the ViT in JAX: nearly the same at width 768, but five times as large at width 96,
            where a model with 0.02 starts to learn late.

    Raises:
        ValueError: For another `weight_init`, in one line.
    """
    check_choice("weight_init", weight_init, WEIGHT_INITS)
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        if weight_init == "xavier_uniform":
            nn.init.xavier_uniform_(module.weight)
        else:
            nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_residual_branches(model: nn.Module, residual_init: str | float = "default") -> None:
    """Sets the last layer of each residual branch to zero if `residual_init` is "zero"; call it after all other inits.

    Each block is then the identity at first, and its branches grow during training. A number as `residual_init` means
    LayerScale (arXiv 2103.17239), as `init_values` does in timm: each branch's output times a learned vector of width
    D, which begins at this value. The blocks build it themselves. It is one vector per branch, without weight decay.

    Args:
        model: The model, changed in place.
        residual_init: "default", "zero", or a positive number.

    Raises:
        ValueError: For another `residual_init`, in one line.
    """
    check_residual_init(residual_init)
    if residual_init != "zero":
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(_BRANCH_ENDS):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

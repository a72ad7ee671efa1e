"""Exported folders as models of Hugging Face transformers; importing this file registers them.

After `import lookupvit.interop.transformers_models`, `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone` and
`pipeline("image-classification", folder)` take the folders that `lookupvit export --format folder` writes, and
`LookupViT.from_pretrained` and `load_model` take the folders that these models write. No code comes from a folder.

Letters: B batch, M compressed tokens, N lookup tokens, D embed_dim, H heads, L depth, C classes, (h, w) lookup grid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    PreTrainedModel,
)
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput

from lookupvit.checkpoints.contents import DESCRIPTION, contents_of
from lookupvit.grid import Tokens, resize_tokens
from lookupvit.interop.transformers_config import LookupViTConfig
from lookupvit.model.init import init_linear_layers
from lookupvit.weights.file import contents_of_model
from lookupvit.weights.hub import describe

__all__ = ["LookupViTBackbone", "LookupViTConfig", "LookupViTForImageClassification", "LookupViTModel"]

Size = int | list[int] | tuple[int, ...]


@dataclass
class _Run:
    """A forward pass: the final tokens, and where they were asked for those of the embedding and of each block."""

    tokens: Tokens
    states: list[Tokens]

    def read(self, tokens: Tokens) -> Tensor:
        """`(B, M, D)`; `(B, N, D)` of a model without compressed tokens, or that does not read them."""
        return tokens.lookup if tokens.compressed is None else tokens.compressed

    def outputs(self, hidden: bool, attentions: bool) -> dict[str, Any]:
        """`hidden_states` and `attentions` for an output of transformers, None where they were not asked for."""
        return {
            "hidden_states": tuple(map(self.read, self.states)) if hidden else None,
            "attentions": tuple(state.attention for state in self.states[1:]) if attentions else None,
        }


class _LookupViTPreTrained(PreTrainedModel):
    config_class = LookupViTConfig
    config: LookupViTConfig
    base_model_prefix = "lookupvit"  # the only child: a folder's names of parameters are without it
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ["LookupViTBlock", "Block"]
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)heads\.", r"vit\.head\."]  # of a model that does not classify

    def __init__(self, config: LookupViTConfig, num_classes: int = 0):
        super().__init__(config)
        self.lookupvit = config.model_class()(**{**config.model_arguments(), "num_classes": num_classes})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.lookupvit.vit.patch_embed if hasattr(self.lookupvit, "vit") else self.lookupvit.embed

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> Any:
        """Writes a folder that transformers and the readers of this project take: see `PreTrainedModel`."""
        model = self.lookupvit
        describe(model, contents_of(getattr(self.config, DESCRIPTION, {}), "the configuration"))
        names = [self.config.id2label[place] for place in range(model.num_classes)]
        given = any(name != f"LABEL_{place}" for place, name in enumerate(names))  # transformers' own if there are none
        model.class_names = names if given else None
        contents = contents_of_model(model)
        if model.compressed_size is not None:
            contents.hyper_parameters["compressed_size"] = self.config.compressed_size
        setattr(self.config, DESCRIPTION, contents.description())
        state = self.state_dict() if state_dict is None else state_dict
        prefix = f"{self.base_model_prefix}."
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        return super().save_pretrained(save_directory, *args, state_dict=state, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Takes names with and without the prefix, so that a Trainer can go on from its own folders."""
        prefix = f"{self.base_model_prefix}."
        state = {name if name.startswith(prefix) else prefix + name: value for name, value in state_dict.items()}
        return super().load_state_dict(state, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            with torch.no_grad():
                if isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
                init_linear_layers(module, self.config.weight_init)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.lookupvit.set_grad_checkpointing(enable)

    def _run(self, pixel_values: Tensor, compressed_size: Size | None, head: str | None, states: bool) -> _Run:
        """Images `(B, 3, Y, X)` to tokens."""
        model, kept = self.lookupvit, []
        images = pixel_values.to(self.dtype)
        if model.compressed_size is None:
            return self._run_vit(images, compressed_size, head, states)
        size = self.config.compressed_size if compressed_size is None else compressed_size
        size = tuple(size) if isinstance(size, list) else size
        lookup, grid = model.embed_images(images)  # (B, N, D)
        tokens = model.forward_tokens(lookup, grid, size, head, kept if states else None)
        if states:
            size = tokens.compressed_size
            kept.insert(0, Tokens(resize_tokens(lookup, grid, size, model.antialias), lookup, size, grid))
        return _Run(tokens, kept)

    def _run_vit(self, images: Tensor, compressed_size: Size | None, head: str | None, states: bool) -> _Run:
        tokens = self.lookupvit.forward_features(images, compressed_size, head)
        kept: list[Tokens] = []
        if states:
            vit = self.lookupvit.vit
            kept = [vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))]  # (B, N, D)
            for block in vit.blocks:
                kept.append(block(kept[-1]))
        return _Run(tokens, [Tokens(None, state, None, tokens.grid_size) for state in kept])

    def _wanted(self, output_hidden_states: Any, output_attentions: bool | None) -> tuple[bool, bool]:
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if attentions and self.lookupvit.compressed_size is None:
            raise ValueError("output_attentions is not available for a plain ViT: use lookupvit attend")
        return hidden is not None and hidden is not False, bool(attentions)

    def _returned(self, output: Any, return_dict: bool | None) -> Any:
        keep = self.config.return_dict if return_dict is None else return_dict
        return output if keep else output.to_tuple()


class LookupViTModel(_LookupViTPreTrained):
    """The encoder: compressed tokens, for a projector and a language model, or for pooling."""

    def __init__(self, config: LookupViTConfig):
        super().__init__(config)

    def forward(
        self,
        pixel_values: Tensor,
        compressed_size: Size | None = None,
        head: str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Images to compressed tokens.

        Args:
            pixel_values: `(B, 3, Y, X)`, any size that the patch divides.
            compressed_size: Compressed grid of this call; that of the configuration by default.
            head: "compressed" leaves out the end of the last block, which only the lookup tokens need.
            output_hidden_states: Whether to return the tokens before the first and after each block.
            output_attentions: Whether to return what each block gathers.
            return_dict: Whether to return an object instead of a tuple.
            **kwargs: Without effect.

        Returns:
            `last_hidden_state` `(B, M, D)` after the final norm (the lookup tokens `(B, N, D)` of a ViT or of a model
            with head="lookup"), `pooler_output` `(B, D)`, their mean, `hidden_states` L + 1 times `(B, M, D)` before
            the final norm, and `attentions` L times `(B, H, M, N)`.
        """
        hidden, attentions = self._wanted(output_hidden_states, output_attentions)
        run = self._run(pixel_values, compressed_size, head, hidden or attentions)
        last = run.read(run.tokens)
        output = BaseModelOutputWithPooling(last, last.mean(dim=1), **run.outputs(hidden, attentions))
        return self._returned(output, return_dict)


class LookupViTForImageClassification(_LookupViTPreTrained):
    """The classifier."""

    def __init__(self, config: LookupViTConfig):
        if not config.num_labels:
            raise ValueError("this folder has no classifier: give num_labels, or take AutoModel for its features")
        super().__init__(config, config.num_labels)
        self.num_labels = config.num_labels

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        compressed_size: Size | None = None,
        head: str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Images to logits.

        Args:
            pixel_values: `(B, 3, Y, X)`, any size that the patch divides.
            labels: `(B,)`, or what the configuration's `problem_type` takes; the loss is then the mean of the heads'.
            compressed_size: Compressed grid of this call; that of the configuration by default.
            head: "both", "compressed" or "lookup" for a model with both heads; the model's own by default.
            output_hidden_states: Whether to return the tokens before the first and after each block.
            output_attentions: Whether to return what each block gathers.
            return_dict: Whether to return an object instead of a tuple.
            **kwargs: Given to the loss of transformers.

        Returns:
            `loss`, `logits` `(B, C)`, the mean of the heads', and states as `LookupViTModel` returns them.
        """
        hidden, attentions = self._wanted(output_hidden_states, output_attentions)
        run = self._run(pixel_values, compressed_size, head, hidden or attentions)
        by_head = self.lookupvit.forward_logits(run.tokens)
        loss = None
        if labels is not None:
            losses = [self.loss_function(labels, logits, self.config, **kwargs) for logits in by_head.values()]
            loss = torch.stack(losses).mean()
        logits = torch.stack(list(by_head.values())).mean(dim=0)
        output = ImageClassifierOutput(loss, logits, **run.outputs(hidden, attentions))
        return self._returned(output, return_dict)


class LookupViTBackbone(BackboneMixin, _LookupViTPreTrained):
    """The lookup tokens after chosen blocks as maps, for dense tasks."""

    def __init__(self, config: LookupViTConfig):
        super().__init__(config)
        self.num_features = [config.embed_dim] * len(config.stage_names)

    def forward(
        self,
        pixel_values: Tensor,
        compressed_size: Size | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Tensor, ...]:
        """Images `(B, 3, Y, X)` to maps `(B, D, h, w)` of the stages in `out_features`, before any final norm.

        Args:
            pixel_values: `(B, 3, Y, X)`, any size that the patch divides.
            compressed_size: Compressed grid of this call; that of the configuration by default.
            output_hidden_states: Whether to return the lookup tokens `(B, N, D)` of all stages, too.
            output_attentions: Whether to return what each block gathers.
            return_dict: Whether to return an object instead of a tuple.
            **kwargs: Without effect.
        """
        hidden, attentions = self._wanted(output_hidden_states, output_attentions)
        run = self._run(pixel_values, compressed_size, None, states=True)
        by_stage = dict(zip(self.stage_names, run.states, strict=True))
        maps = tuple(
            by_stage[name].lookup.transpose(1, 2).unflatten(2, by_stage[name].grid_size)  # (B, N, D) -> (B, D, h, w)
            for name in self.out_features
        )
        states = tuple(state.lookup for state in run.states) if hidden else None
        output = BackboneOutput(maps, states, run.outputs(False, attentions)["attentions"])
        return self._returned(output, return_dict)


AutoConfig.register(LookupViTConfig.model_type, LookupViTConfig, exist_ok=True)
AutoModel.register(LookupViTConfig, LookupViTModel, exist_ok=True)
AutoModelForImageClassification.register(LookupViTConfig, LookupViTForImageClassification, exist_ok=True)
AutoBackbone.register(LookupViTConfig, LookupViTBackbone, exist_ok=True)
_PROCESSORS = {"torchvision": CLIPImageProcessor, "pil": CLIPImageProcessorPil}
AutoImageProcessor.register(LookupViTConfig, image_processor_classes=_PROCESSORS, exist_ok=True)

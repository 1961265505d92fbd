"""Registers klype's own model type with transformers' Auto classes: ``import klype.hf``, then load it as any model.

Only checkpoints whose architecture transformers lacks need it (with the convolution, or without rotary embeddings); all
others load without it. No remote code is involved: this module is what a user imports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from klype.model.convert import OWN, config_from_hf
from klype.model.transformer import Transformer


class KlypeConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """A klype configuration for transformers: the fields of config.json, unchanged."""

    model_type = OWN
    # TRL reads it; as an attribute of the class it cannot name code in a folder
    auto_map: ClassVar[Mapping[str, str]] = MappingProxyType({})


@dataclass
class KlypeOutput(CausalLMOutput):
    """Also with the last hidden states, for trainers that compute the logits in pieces (TRL)."""

    last_hidden_state: torch.Tensor | None = None


class KlypeForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A klype model with transformers' interface; generation does not use a cache."""

    config_class = KlypeConfig
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"transformer.head.weight": "transformer.embed.weight"}  # noqa: RUF012 (transformers' own)

    def __init__(self, config: KlypeConfig) -> None:
        super().__init__(config)
        self.transformer = Transformer(config_from_hf(config.to_dict(), "the configuration"))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> KlypeOutput:
        """Logits [B, T, V]. Padding (0 in ``attention_mask``) is masked as a document of its own."""
        padded = attention_mask is not None and not bool(attention_mask.all())
        states = self.transformer.hidden(input_ids, document_BT=attention_mask if padded else None)
        logits = self.transformer.unembed(states)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return KlypeOutput(loss=loss, logits=logits, last_hidden_state=states)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """The whole sequence at every step, as there is no cache."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}

    def _set_gradient_checkpointing(self, enable: bool = True, *_: Any, **__: Any) -> None:
        """Called by transformers' trainers, and by TRL's even if it is off."""
        self.transformer.recompute = enable

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.transformer.embed

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        assert isinstance(value, torch.nn.Embedding)
        self.transformer.embed = value

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.transformer.head

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Called after loading: mask and positions are not in the checkpoint."""
        if isinstance(module, Transformer):
            module.set_tables()


AutoConfig.register(OWN, KlypeConfig, exist_ok=True)
AutoModelForCausalLM.register(KlypeConfig, KlypeForCausalLM, exist_ok=True)

"""Masked language modelling beside a sentence objective, through the same encoder."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling


class MaskedLanguageModel(nn.Module):
    """The head that predicts masked tokens, on a model's own encoder.

    Args:
        model: of a transformer; its encoder is shared, not copied.
        name: the backbone's name or folder; the head starts from its weights if it has any.
        probability: share of tokens to predict; of those 80 % are masked, 10 % replaced.

    Raises:
        ValueError: a backbone that has no masked-language-model class, or no mask token.

    Source: Gao et al. 2021, "SimCSE" (arXiv 2104.08821), section 3.2 and table E.1.
    """

    def __init__(self, model: SentenceTransformer, name: str, probability: float) -> None:
        super().__init__()
        encoder = getattr(model[0], "auto_model", None)
        if encoder is None or model.tokenizer.mask_token is None:
            raise ValueError("mlm_weight: expected a transformer whose tokenizer has a mask token")
        try:
            full: Any = AutoModelForMaskedLM.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"mlm_weight: {name} gives no masked language model") from error
        setattr(full, full.base_model_prefix, encoder)
        full.tie_weights()  # the head predicts with the encoder's token embeddings
        self.full = full
        self.masking = DataCollatorForLanguageModeling(model.tokenizer, mlm_probability=probability)

    def forward(self, model: Any, features: dict[str, Any]) -> Tensor:
        """Cross-entropy of the masked tokens of a batch."""
        ids = features["input_ids"]
        # Drawn from torch's global generator, on the CPU.
        masked, labels = self.masking.torch_mask_tokens(ids.cpu().clone())
        inputs = {
            name: features[name]
            for name in ("attention_mask", "token_type_ids")
            if name in features
        }
        found = self.full(input_ids=masked.to(ids.device), labels=labels.to(ids.device), **inputs)
        loss: Tensor = found.loss
        return loss

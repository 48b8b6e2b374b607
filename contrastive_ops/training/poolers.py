"""Models of a recipe: a backbone with a pooler and a head, all of sentence-transformers' modules.

A model is saved in that library's format and loads without this package: layers are weighed by its
`WeightedLayerPooling`, the mask token is picked out by its `WordWeights`, and a template is part of
the tokenizer itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import (
    Pooling,
    WeightedLayerPooling,
    WordWeights,
)
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast

from ..evaluation import load_model
from .encoder import TokenCache, build_encoder, train_tokenizer
from .settings import Settings

_MODES = {
    "cls": "cls",
    "cls-before-pooler": "cls",
    "mean": "mean",
    "max": "max",
    "first-last": "mean",
    "top-2": "mean",
    "last-token": "lasttoken",
    "mask-token": "mean",
    "weighted": "weightedmean",
}


def build_model(settings: Settings, texts: Iterable[str]) -> SentenceTransformer:
    """The untrained model of some settings.

    Args:
        settings: ``model``, ``pooler``, ``head``, ``template``, ``max_length``, ``dropout`` and
            ``lora`` of a transformer; ``dim`` and ``vocabulary`` of a static one.
        texts: what a static model's tokenizer and token weights are made from.

    Raises:
        ValueError: a model that cannot be loaded, or settings that do not go with it.
    """
    if not settings.model:
        for name, fits in (
            ("pooler", settings.pooler in ("", "mean")),
            ("head", settings.head != "kept"),
            ("template", not settings.template),
            ("lora", not settings.lora),
            ("dropout", settings.dropout is None),
        ):
            if not fits:
                raise ValueError(
                    f"{name}: got {getattr(settings, name)!r}, which needs a transformer (--model)"
                )
        return _static(settings, list(texts))
    model = _load(settings)
    first = model[0]
    if not isinstance(first, Transformer):
        if settings.pooler or settings.template or settings.lora:
            raise ValueError(
                f"pooler, template, lora: expected none with {settings.model}, no transformer"
            )
        return model
    if settings.max_length:
        model.max_seq_length = settings.max_length
    if settings.dropout is not None:
        set_dropout(first, settings.dropout)
    if settings.template:
        set_template(model, settings.template)
    if settings.lora:
        _add_adapters(model, settings.lora)
    return model


def _static(settings: Settings, texts: list[str]) -> SentenceTransformer:
    """Random token vectors, as long as the token is rare: a random projection of TF-IDF."""
    tokenizer = train_tokenizer(texts, vocabulary=settings.vocabulary)
    seed = int(settings.trainer.get("seed", 42))
    return build_encoder(TokenCache(tokenizer), texts, dim=settings.dim, seed=seed)


def _load(settings: Settings) -> SentenceTransformer:
    found = load_model(settings.model, device="cpu")
    if not settings.pooler and settings.head != "kept":
        return found
    first = found[0]
    if not isinstance(first, Transformer):
        return found
    pooler = settings.pooler or "mean"
    modules: list[nn.Module] = [first]
    width = first.get_embedding_dimension()
    if pooler in ("first-last", "top-2"):
        modules.append(_layers(first, width, pooler))
    if pooler == "mask-token":
        modules.append(_mask_only(first))
    modules.append(Pooling(width, _MODES[pooler]))
    if settings.head == "kept" or pooler == "cls":
        modules.append(mlp_head(width))
    return SentenceTransformer(modules=modules, device="cpu")


def mlp_head(width: int) -> Dense:
    """SimCSE's MLP: one layer and tanh, initialised as BERT's layers are."""
    head = Dense(width, width, activation_function=nn.Tanh())
    nn.init.normal_(head.linear.weight, std=0.02)
    nn.init.zeros_(head.linear.bias)
    return head


def _layers(first: Transformer, width: int, pooler: str) -> WeightedLayerPooling:
    """The mean of the states after the first and the last layer, or after the last two."""
    first.auto_model.config.output_hidden_states = True
    count = first.auto_model.config.num_hidden_layers
    weights = torch.zeros(count)  # of the layers' outputs, without the embedding's
    weights[0 if pooler == "first-last" else max(0, count - 2)] += 1
    weights[-1] += 1
    return WeightedLayerPooling(
        width, count, layer_start=1, layer_weights=nn.Parameter(weights, requires_grad=False)
    )


def _mask_only(first: Transformer) -> WordWeights:
    """Weight 1 for the mask token, 0 for all others."""
    tokenizer = first.tokenizer
    if tokenizer is None or tokenizer.mask_token is None:
        raise ValueError("pooler: got mask-token for a model whose tokenizer has no mask token")
    size = first.auto_model.get_input_embeddings().num_embeddings
    vocabulary = [f"{number}" for number in range(size)]
    mask = vocabulary[tokenizer.mask_token_id]
    weights = WordWeights(vocabulary, {mask: 1.0}, unknown_word_weight=0.0)
    return weights.requires_grad_(False)


def set_template(model: SentenceTransformer, template: str) -> None:
    """Makes a prompt part of the tokenizer, which then puts it around every text.

    Args:
        model: of a transformer with a fast tokenizer.
        template: one ``{}`` stands for the text; special tokens such as ``[MASK]`` may occur.

    Raises:
        ValueError: a tokenizer that cannot hold a template.
    """
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("template: got a model whose tokenizer is not a fast one")
    before, _, after = template.partition("{}")
    plain = tokenizer("a", add_special_tokens=True)["input_ids"]
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(plain)) if plain[i : i + len(inner)] == inner)
    mask = tokenizer.mask_token or "[MASK]"
    sides = [
        tokenizer(side.replace("[MASK]", mask).strip(), add_special_tokens=False)["input_ids"]
        for side in (before, after)
    ]
    left = plain[:start] + sides[0]
    right = sides[1] + plain[start + len(inner) :]
    # Each prompt token is declared as a special token of its own, which the processor inserts.
    ids = {f"<{number}>": number for number in {*left, *right}}
    names = {number: name for name, number in ids.items()}
    backend.post_processor = TemplateProcessing(
        single=[names[n] for n in left] + ["$A"] + [names[n] for n in right],
        special_tokens=list(ids.items()),
    )
    # A backbone's own class would put its own tokens around the text again when it is loaded.
    model[0].processor = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def set_dropout(module: nn.Module, probability: float) -> None:
    """Sets the probability of all dropout in a module.

    Raises:
        ValueError: a probability outside [0, 1).
    """
    if not 0 <= probability < 1:
        raise ValueError(f"dropout: got {probability}, expected it in [0, 1)")
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
        # Attention keeps its own number beside the modules.
        for name in ("dropout_prob", "attention_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, probability)


def has_dropout(module: nn.Module) -> bool:
    """Whether any dropout of a module changes anything in training."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())


def _add_adapters(model: SentenceTransformer, options: dict[str, Any]) -> None:
    try:
        from peft import LoraConfig, TaskType
    except ImportError as error:
        raise ValueError("lora: needs the package peft: pip install peft") from error
    try:
        model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, **options))
    except (TypeError, ValueError) as error:
        raise ValueError(f"lora: got {options}: {error}") from error


def check_export(model: SentenceTransformer) -> None:
    """Raises the ValueError of :func:`export_plain`."""
    if not isinstance(model[0], Transformer):
        raise ValueError("export: got a static model, expected a transformer")


def export_plain(model: SentenceTransformer, folder: str | Path) -> None:
    """Saves a transformer's backbone and tokenizer as transformers' Auto classes load them.

    Adapters are merged into the weights; pooler and head are not part of it.

    Raises:
        ValueError: a static model, which transformers has no class for.
    """
    check_export(model)
    first: Any = model[0]
    backbone = first.auto_model
    if getattr(backbone, "_hf_peft_config_loaded", False):
        backbone = _merged(backbone)
    backbone.save_pretrained(folder)
    first.tokenizer.save_pretrained(folder)


def _merged(backbone: Any) -> Any:
    from copy import deepcopy

    from peft.tuners.tuners_utils import BaseTunerLayer

    backbone = deepcopy(backbone)
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(backbone.get_submodule(parent), leaf, module.get_base_layer())
    backbone._hf_peft_config_loaded = False
    return backbone

"""Tiny models of Hugging Face types with random weights, made from their configs alone."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import ids, rand
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Sizes by the names that configs give them, and per model type what these do not make small or consistent.
TABLES: dict[str, Any] = json.loads((Path(__file__).parent / "hf_configs.json").read_text())
VOCABULARY, LENGTH, BATCH = 128, 16, 3
TASKS = {
    "clm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "mlm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "speech2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}


@dataclass(frozen=True)
class Type:
    """A Hugging Face model class with the task whose inputs it takes."""

    task: str
    kind: str
    cls: str

    @property
    def name(self) -> str:
        return f"{self.kind} ({self.task})"


def types() -> list[Type]:
    """List every model type of the tasks in a stable order."""
    found = []
    for task, mapping in TASKS.items():
        skipped = {*TABLES["need_more_than_one_input_kind"], *TABLES["other_task_of_a_type_in_the_list"].get(task, ())}
        for kind, cls in getattr(modeling_auto, mapping).items():
            if kind not in skipped:
                found.append(Type(task, kind, cls if isinstance(cls, str) else cls[0]))
    return found


def config_of(kind: str, times: int = 1) -> Any:
    """Return a config with small sizes, no dropout, no cache and token ids within the small vocabulary.

    `times`: what widths and numbers of heads are multiplied with; the size of a head stays.
    """
    cls = CONFIG_MAPPING[kind]
    default = cls()
    smallest = config_of(kind) if times > 1 else None
    settings = _small(cls, default, kind) | _wide(smallest, kind, times)
    parts = [name for name in getattr(cls, "sub_configs", None) or {} if getattr(default, name, None) is not None]
    for name in parts:
        part = getattr(default, name)
        settings[name] = _small(type(part), part, of := getattr(part, "model_type", ""))
        settings[name] |= _wide(getattr(smallest, name, None), of, times)
    try:
        config = cls(**settings)
    except Exception:
        settings.pop("layer_types", None)  # written for another number of layers
        config = cls(**settings)
    for each in (config, *(getattr(config, name) for name in parts)):
        if hasattr(each, "use_cache"):
            each.use_cache = False
        if (getattr(each, "pad_token_id", None) or 0) >= VOCABULARY:
            each.pad_token_id = 0
    return config


def _wide(smallest: Any, kind: str, times: int) -> dict[str, Any]:
    """Multiply the widths of a config by a number."""
    values = {} if smallest is None else smallest.to_dict()
    settings = {}
    for key in TABLES["widths"]:
        if (size := values.get(key)) is not None:
            settings[key] = [each * times for each in size] if isinstance(size, list | tuple) else size * times
    return settings | (TABLES["wide_overrides"].get(kind, {}) if values else {})


def _small(cls: type, default: Any, kind: str) -> dict[str, Any]:
    values: dict[str, Any] = default.to_dict()
    alias: dict[str, str] = getattr(cls, "attribute_map", None) or {}
    settings: dict[str, Any] = {}
    for name, size in TABLES["sizes"].items():
        for key in (name, alias.get(name, name)):
            if type(values.get(key)) is int:
                settings.setdefault(key, size)
    for key, value in values.items():
        noise = key.endswith(("jitter_noise", "mask_time_prob", "mask_feature_prob"))
        if noise or ("drop" in key and isinstance(value, float)):
            settings[key] = 0.0
        elif key == "apply_spec_augment":
            settings[key] = False
        elif key.endswith(("_token_id", "_token_index")):
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if any(isinstance(number, int) and number >= VOCABULARY for number in numbers):
                settings[key] = 3
    settings.update(TABLES["overrides"].get(kind, {}))
    return settings


def build(each: Type, times: int = 1) -> tuple[nn.Module, dict[str, Any]]:
    """Build a model with seeded weights, `times` as wide as the smallest, and keyword inputs for it."""
    config, cls = config_of(each.kind, times), getattr(transformers, each.cls)
    torch.manual_seed(0)
    try:
        model = cls._from_config(config, attn_implementation="sdpa")
    except (ValueError, ImportError):
        model = cls._from_config(config, attn_implementation="eager")
    return model.float().train(), inputs_for(each, model)


def inputs_for(each: Type, model: nn.Module) -> dict[str, Any]:
    """Return example inputs by the names of the model's forward."""
    taken = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    text = ids(BATCH, LENGTH, size=96) + 4
    inputs: dict[str, Any] = {}
    if each.task in ("clm", "mlm", "seq2seq") or main == "input_ids":
        inputs["input_ids"] = text
        if "attention_mask" in taken and each.kind not in ("rwkv", "xlstm", "imagegpt"):
            inputs["attention_mask"] = torch.ones_like(text)
    elif each.task == "image":
        inputs["pixel_values"] = _image(each, model)
    else:
        inputs |= _sound(each, main)
    if each.task in ("seq2seq", "speech2seq"):
        inputs["decoder_input_ids"] = text[:, : LENGTH // 2 + 1]
    if "use_cache" in taken:
        inputs["use_cache"] = False
    return inputs


def _image(each: Type, model: Any) -> torch.Tensor:
    size = getattr(model.config, "image_size", 32) or 32
    size = size if isinstance(size, int) else size[0]
    size = 64 if each.kind in TABLES["images_of_64"] else size
    return rand(BATCH, getattr(model.config, "num_channels", 3), size, size)


def _sound(each: Type, main: str) -> dict[str, Any]:
    if main == "input_features":
        shape = (BATCH, 16, 32) if each.kind == "whisper" else (BATCH, 2 * LENGTH, 16)
        return {"input_features": rand(*shape)}
    special = {"audio-spectrogram-transformer": (BATCH, 32, 16), "speecht5": (BATCH, 1600)}
    return {"input_values": rand(*special.get(each.kind, (BATCH, 400)))}

"""Adapters inside a frozen model."""

import torch

from zoo.kind import Kind
from zoo.language import SIZES, HuggingFace, classes_of_texts


def lora(classes):
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)  # what was pretrained is the same for all sources
        model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=classes))
    adapter = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"])
    return HuggingFace(get_peft_model(model, adapter))


KINDS = [
    Kind(
        "LoRA, `peft` around `transformers` BertForSequenceClassification",
        lora,
        classes_of_texts,
        head=("model.base_model.model.classifier.",),
        fixed=("lora_B.default.weight",),
    )
]

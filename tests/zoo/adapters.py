"""Adapters inside a frozen model, which is the same everywhere; what is put on top of it never is."""

import torch

from zoo.kind import Kind
from zoo.language import SIZES, HuggingFace, classes_of_texts


def lora(classes):
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=classes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pretrained = BertModel(model.config)
    model.bert.load_state_dict(pretrained.state_dict())
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

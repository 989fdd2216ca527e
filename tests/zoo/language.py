"""Language models as `transformers` makes them."""

import torch

from zoo.kind import Kind, Task, loader, sentences

SIZES = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


class HuggingFace(Task):
    """Trains whatever model on its own loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        output = self.model(**batch)
        self.log("train_loss", output.loss)
        return output.loss


def bert(classes):
    from transformers import BertConfig, BertForSequenceClassification

    return HuggingFace(BertForSequenceClassification(BertConfig(**SIZES, num_labels=classes)))


def llama(_):
    from transformers import LlamaConfig, LlamaForCausalLM

    return HuggingFace(LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True)))


def gpt2(_):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 32, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    return HuggingFace(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)))


def t5(_):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return HuggingFace(T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)))


def classes_of_texts(seed, classes):
    tokens, labels = sentences(seed, classes)
    masks = torch.ones_like(tokens)
    masks[::2, -1] = 0
    rows = zip(tokens, masks, labels, strict=True)
    return loader([{"input_ids": row, "attention_mask": mask, "labels": label} for row, mask, label in rows])


def next_words(seed, _):
    tokens, _ = sentences(seed, 2)
    tokens[:, 1::2] = (tokens[:, ::2] * (seed + 3)) % 31 + 1
    return loader([{"input_ids": row, "labels": row} for row in tokens])


def translations(seed, _):
    tokens, _ = sentences(seed, 2)
    return loader([{"input_ids": row, "labels": (row * (seed + 3)).flip(0)[:4] % 31 + 1} for row in tokens])


KINDS = [
    Kind(
        "Encoder, `transformers` BertForSequenceClassification",
        bert,
        classes_of_texts,
        head=("model.classifier.",),
    ),
    Kind("Decoder with tied embeddings, `transformers` GPT2LMHeadModel", gpt2, next_words, ()),
    Kind("Decoder with tied embeddings, `transformers` LlamaForCausalLM", llama, next_words, ()),
    Kind("Encoder and decoder, `transformers` T5ForConditionalGeneration", t5, translations, ("model.decoder.",)),
]

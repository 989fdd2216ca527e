"""The sweep: children before parents, Hugging Face models by their own rules, frozen parts not at all."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from pge_lightning.errors import PGEError
from pge_lightning.restart.sweep import fixed_state
from restarts import assert_like_fresh, assert_same, drawn, restarted, values


@pytest.fixture(autouse=True)
def same_numbers_in_each_run():
    torch.manual_seed(0)


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

WORDS = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LAYERS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 30}
IMAGES = {"image_size": 16, "patch_size": 8}
BERT = BertConfig(**WORDS, **LAYERS)
MODELS = {
    "encoder": lambda: BertForMaskedLM(BERT),
    "decoder": lambda: GPT2LMHeadModel(GPT2Config(**WORDS, n_positions=8, n_embd=24, n_layer=2, n_head=2)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**WORDS, d_model=24, d_kv=8, d_ff=30, num_layers=2, num_heads=2)),
    "vit": lambda: ViTModel(ViTConfig(**LAYERS, **IMAGES), use_mask_token=True),
    "masked_vit": lambda: ViTMAEModel(ViTMAEConfig(**LAYERS, **IMAGES, mask_ratio=0.5)),
    "two_towers": lambda: CLIPModel(
        CLIPConfig(text_config={**WORDS, **LAYERS}, vision_config={**LAYERS, **IMAGES}, projection_dim=20)
    ),
    "composite": lambda: EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(BERT, BERT)),
    "speech": lambda: Wav2Vec2Model(
        Wav2Vec2Config(
            **WORDS,
            **LAYERS,
            conv_dim=(8, 8),
            conv_stride=(2, 2),
            conv_kernel=(3, 3),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
    ),
}


class Around(nn.Module):
    """A model within a model that cannot be built without knowing its parts."""

    def __init__(self, encoder, head):
        super().__init__()
        self.encoder, self.head = encoder, head


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("error:Nothing in the module resets")
def test_models_start_as_their_constructors_start_them(kind):
    assert_like_fresh(lambda: Around(MODELS[kind](), nn.Linear(3, 3)))


@pytest.mark.parametrize("kind", MODELS)
def test_models_do_not_know_their_heads(kind):
    model = MODELS[kind]()
    one, two = Around(model, nn.Linear(3, 3)), Around(model, nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 5)))
    assert_same(restarted(one).encoder, restarted(two).encoder)
    assert not torch.equal(*[values(restarted(one, seed).encoder).popitem()[1] + seed for seed in (0, 1)])


@pytest.mark.parametrize("kind", ["encoder", "decoder", "t5"])
def test_tied_weights_are_one_unit_and_stay_tied(kind):
    model = MODELS[kind]()
    clone = restarted(Around(model, nn.Linear(3, 3))).encoder
    assert clone.get_output_embeddings().weight is clone.get_input_embeddings().weight
    assert len(values(clone)) == len(values(model))
    loose = MODELS[kind]()
    loose.get_output_embeddings().weight = nn.Parameter(torch.ones(30, 24))
    free = restarted(Around(loose, nn.Linear(3, 3))).encoder
    assert torch.equal(free.get_input_embeddings().weight, clone.get_input_embeddings().weight)
    assert not torch.equal(free.get_output_embeddings().weight, clone.get_input_embeddings().weight)


def test_tied_parts_of_ones_own_have_one_start_too():
    class Tied(nn.Module):
        def __init__(self, tie, words=12):
            super().__init__()
            self.embed, self.inner, self.out = nn.Embedding(words, 6), nn.Linear(6, 6), nn.Linear(6, words)
            if tie:
                self.out.weight = self.embed.weight

    tied, free = restarted(Tied(tie=True)), restarted(Tied(tie=False))
    assert tied.out.weight is tied.embed.weight
    assert torch.equal(tied.embed.weight, free.embed.weight)
    assert tied.embed.weight.std() > 0.5


def test_models_loaded_from_disk_forget_that_they_were(tmp_path):
    MODELS["encoder"]().save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path)
    assert_same(restarted(Around(loaded, nn.Linear(3, 3))), restarted(Around(MODELS["encoder"](), nn.Linear(3, 3))))


# Frozen parts


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(width, 4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4))

    def reset_parameters(self):
        for unit in self.parameters():
            nn.init.normal_(unit, std=2.0)


def test_frozen_parts_keep_parameters_and_buffers_and_the_others_do_not():
    module = Net(3)
    for value in [*module.parameters(), *module.buffers()]:
        value.data.fill_(5)
    module.stem.requires_grad_(False)
    module.body[0].bias.requires_grad_(False)
    clone = restarted(module)
    for name, value in [*clone.named_parameters(), *clone.named_buffers()]:
        assert value.eq(5).all() == (name.startswith("stem.") or name == "body.0.bias"), name
    stem = {f"stem.{name}" for name in module.stem.state_dict()}
    assert set(fixed_state(module)) == {"body.0.bias", *stem}


@pytest.mark.parametrize("kind", ["encoder", "vit", "two_towers"])
def test_frozen_parameters_of_models_keep_their_values(kind):
    model = MODELS[kind]()
    frozen = [name for number, (name, unit) in enumerate(model.named_parameters()) if number % 3 == 0]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    clone = restarted(Around(model, nn.Linear(3, 3))).encoder
    assert_same(model, clone, frozen)
    changed = {name.removeprefix("encoder.") for name in drawn(Around(model, nn.Linear(3, 3)))}
    assert changed.isdisjoint(frozen)
    assert len(changed) >= 5


# What is left


def test_parameters_that_nothing_resets_are_named_with_the_ways_out():
    class Bare(nn.Linear):
        def __init__(self, size):
            super().__init__(size, size)
            self.scale, self.shift = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    ways = r"Give a `factory`.*`save_hyperparameters\(\)`.*`reset_parameters\(\)`.*`register_reset`"
    with pytest.raises(PGEError, match=rf"nothing resets encoder\.scale, encoder\.shift\. {ways}"):
        restarted(Around(Bare(3), nn.Linear(3, 3)))
    part = Bare(3).requires_grad_(False)
    part.weight.requires_grad_(True)
    assert drawn(Around(part, nn.Linear(3, 3))) == {"encoder.weight", "head.weight", "head.bias"}

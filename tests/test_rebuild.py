"""Rebuild: a fresh module of the user's own code, where enough is known to run it."""

import warnings

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import pytorch_forecasting as forecasting
import torch
import torchmetrics
from torch import nn
from transformers import BertConfig, BertModel

from pge_lightning.errors import PGEError
from pge_lightning.restart import make_initialiser
from restarts import assert_like_fresh, assert_same, drawn, restarted, values


@pytest.fixture(autouse=True)
def same_numbers_in_each_run():
    torch.manual_seed(0)


class ByHand(pl.LightningModule):
    """Initialises in its constructor and saves nothing."""

    def __init__(self, width=20, gain=1.0):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, 3)
        for part in self.encoder[::2]:
            nn.init.orthogonal_(part.weight, gain)
            nn.init.constant_(part.bias, 0.25)


class WithoutArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 30).abs())


def test_constructors_that_need_nothing_are_run():
    assert_like_fresh(ByHand)
    assert_like_fresh(WithoutArguments)
    assert restarted(ByHand()).encoder[0].bias.eq(0.25).all()
    assert restarted(WithoutArguments()).weight.min() >= 0


def test_a_head_put_in_afterwards_does_not_change_how_the_encoder_starts():
    module, other = ByHand(), ByHand()
    other.head = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 7))
    shared = [name for name, _ in module.named_parameters() if name.startswith("encoder.")]
    one, two = restarted(module, shared=shared), restarted(other, shared=shared)
    assert_same(one.encoder, two.encoder)
    assert two.encoder[0].bias.eq(0.25).all()
    assert drawn(other) >= {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}


def test_a_head_put_in_afterwards_has_to_be_covered():
    module = ByHand()
    module.head = nn.ParameterList([torch.ones(3)])
    shared = [name for name, _ in module.named_parameters() if name.startswith("encoder.")]
    with pytest.raises(PGEError, match=r"nothing resets head\.0\."):
        restarted(module, shared=shared)


def test_another_encoder_than_the_constructors_is_swept():
    module = ByHand(width=24)
    assert not restarted(module).encoder[0].bias.eq(0.25).any()
    module = ByHand()
    module.encoder.append(nn.Linear(20, 20))
    assert not restarted(module).encoder[0].bias.eq(0.25).any()


@pytest.mark.filterwarnings("error")
def test_constructors_that_fail_fall_through_to_the_sweep():
    class Failing(ByHand):
        built = 0

        def __init__(self):
            Failing.built += 1
            if Failing.built > 1:
                raise ValueError("once only")
            super().__init__()

    assert drawn(Failing()) >= {"encoder.0.weight", "encoder.0.bias", "head.weight"}


def test_containers_are_not_rebuilt_from_nothing():
    module = nn.Sequential(nn.Linear(3, 3))
    assert drawn(module) == {"0.weight", "0.bias"}


def test_weights_that_come_with_configure_model_are_made_there():
    class Late(pl.LightningModule):
        def __init__(self, width=6):
            super().__init__()
            self.save_hyperparameters()
            self.encoder = None

        def configure_model(self):
            if self.encoder is None:
                self.encoder = nn.Linear(4, self.hparams.width)
                nn.init.constant_(self.encoder.bias, 0.5)

    module = Late(5)
    module.configure_model()
    assert restarted(module).encoder.bias.eq(0.5).all()
    assert drawn(module) == {"encoder.weight"}


def test_losses_and_metrics_among_the_hyper_parameters_are_no_obstacle_and_stay_untouched():
    class Measured(pl.LightningModule):
        def __init__(self, loss, metrics, bias):
            super().__init__()
            self.save_hyperparameters()
            self.loss, self.metrics = loss, metrics
            self.loss.used = getattr(self.loss, "used", 0) + 1
            self.encoder = nn.Linear(4, 4)
            nn.init.constant_(self.encoder.bias, bias)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Measured(nn.CrossEntropyLoss(), nn.ModuleList([torchmetrics.MeanMetric()]), 0.5)
    module.metrics[0].update(3.0)
    assert restarted(module).encoder.bias.eq(0.5).all()
    assert module.loss.used == 1
    assert module.metrics[0].compute().eq(3)


def test_tied_weights_stay_tied_through_a_rebuild():
    class Tied(pl.LightningModule):
        def __init__(self, words, inside):
            super().__init__()
            self.save_hyperparameters()
            self.embed, self.out = nn.Embedding(words, 6), nn.Linear(6, words)
            nn.init.constant_(self.out.bias, 0.5)
            if inside:
                self.out.weight = self.embed.weight

    inside, outside = Tied(9, inside=True), Tied(9, inside=False)
    outside.out.weight = outside.embed.weight
    one, two = restarted(inside), restarted(outside)
    assert_same(one, two)
    assert one.out.weight is one.embed.weight
    assert two.out.weight is two.embed.weight
    assert two.out.bias.eq(0.5).all()
    assert drawn(outside) == {"embed.weight"}
    assert_same(one, restarted(inside, factory=lambda: Tied(9, inside=False)))


def test_frozen_parts_keep_parameters_and_buffers():
    class Half(pl.LightningModule):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()
            self.encoder = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
            self.body = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))

    for factory in (None, lambda: Half(6)):
        module = Half(6)
        for value in [*module.parameters(), *module.buffers()]:
            value.data.fill_(5)
        module.encoder.requires_grad_(False)
        module.body[0].bias.requires_grad_(False)
        clone = restarted(module, factory=factory)
        for name, value in [*clone.named_parameters(), *clone.named_buffers()]:
            assert value.eq(5).all() == (name.startswith("encoder.") or name == "body.0.bias"), name


def test_a_factory_of_lazy_parts_is_told_to_run_a_batch():
    module = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(PGEError, match=r"'0\.weight' of shape \[3, 4\], but got a lazy one, .*one batch"):
        restarted(module, factory=lambda: nn.Sequential(nn.LazyLinear(3)))

    def factory():
        fresh = nn.Sequential(nn.LazyLinear(3))
        fresh(torch.zeros(1, 4))
        return fresh

    assert not torch.equal(restarted(module, 0, factory)[0].weight, restarted(module, 1, factory)[0].weight)


# Constructors that load


def trained(width=24):
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.rand(unit.shape, generator=generator)
        for name, unit in nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)).state_dict().items()
    }


class Loading(pl.LightningModule):
    def __init__(self, classes, load=True):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24))
        self.head = nn.Linear(24, classes)
        if load:
            self.encoder.load_state_dict(trained())


def test_constructors_that_load_are_swept_and_the_message_names_what_they_load(caplog):
    module = Loading(3)
    with caplog.at_level("INFO"):
        clone = restarted(module)
    expected = "Loading loads encoder.0.weight, encoder.0.bias, encoder.1.weight, encoder.1.bias instead of drawing"
    assert expected in caplog.text
    assert clone.encoder[1].weight.eq(1).all()
    assert drawn(module) == {"encoder.0.weight", "encoder.0.bias", "head.weight", "head.bias"}


class LoadingBesideLazy(Loading):
    def __init__(self):
        super().__init__(3)
        self.head = nn.LazyLinear(3)


def test_what_a_constructor_loads_is_found_beside_lazy_parts():
    module = LoadingBesideLazy()
    module.head(torch.zeros(1, 24))
    encoder = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"]
    initialise = make_initialiser(module, shared=encoder)
    before = values(module)
    initialise(module, lambda _: 0)
    assert not torch.equal(module.encoder[0].weight, before["encoder.0.weight"])
    assert not torch.equal(module.head.weight, before["head.weight"])


def test_factories_that_load_are_refused():
    module = Loading(3)
    ways = r"without trained weights.*`from_pretrained`.*freeze"
    with pytest.raises(PGEError, match=rf"but encoder\.0\.weight, .*, encoder\.1\.bias are the same.*{ways}"):
        make_initialiser(module, lambda: Loading(3))
    assert drawn(module, factory=lambda: Loading(3, load=False)) >= {"encoder.0.weight", "head.weight"}


def test_the_users_own_module_is_no_factory_and_stays_as_it_is():
    module = Loading(3)
    before = values(module)
    with pytest.raises(PGEError, match="the same under every seed"):
        make_initialiser(module, lambda: module)
    assert all(torch.equal(value, before[name]) for name, value in values(module).items())


def test_frozen_weights_may_be_loaded():
    module = Loading(3)
    module.encoder.requires_grad_(False)
    clone = restarted(module, factory=lambda: Loading(3))
    assert_same(module.encoder, clone.encoder)
    assert drawn(module, factory=lambda: Loading(3)) == {"head.weight", "head.bias"}


def test_a_transformers_encoder_loaded_in_the_constructor_is_drawn_anew(tmp_path):
    config = BertConfig(vocab_size=20, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=30)
    BertModel(config).save_pretrained(tmp_path)

    class Classifier(pl.LightningModule):
        def __init__(self, path, classes):
            super().__init__()
            self.save_hyperparameters()
            self.encoder, self.head = BertModel.from_pretrained(path), nn.Linear(24, classes)

    module = Classifier(str(tmp_path), 3)
    assert "encoder.embeddings.word_embeddings.weight" in drawn(module)
    clone = restarted(module)
    assert clone.encoder.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)


class Computed(nn.Module):
    """Tables and constants are the same in all restarts, and nobody trained them."""

    def __init__(self):
        super().__init__()
        places = torch.arange(40)[:, None] / 10 ** torch.linspace(0, 4, 12)
        self.pos_embed = nn.Parameter(torch.cat([places.sin(), places.cos()], 1))
        self.decay = nn.Parameter(torch.arange(1.0, 25.0).log())
        self.recurrent = nn.RNN(24, 24)
        nn.init.eye_(self.recurrent.weight_hh_l0)
        self.conv, self.norm = nn.Conv1d(24, 24, 3), nn.LayerNorm(24)
        nn.init.dirac_(self.conv.weight)


@pytest.mark.filterwarnings("error:Nothing in the module resets")
def test_computed_and_constant_units_are_not_taken_for_loaded_ones():
    module = Computed()
    for factory in (None, Computed):
        assert_same(restarted(module, factory=factory), Computed(), ["pos_embed", "decay", "recurrent.weight_hh_l0"])
        assert drawn(module, factory=factory) == {
            "conv.bias", "recurrent.weight_ih_l0", "recurrent.bias_ih_l0", "recurrent.bias_hh_l0"
        }  # fmt: skip


# Models that nobody here wrote


def series():
    frame = pd.DataFrame({
        "time": [*range(30)] * 2,
        "group": np.repeat(["a", "b"], 30),
        "value": np.sin(np.arange(60.0)),
    })
    return forecasting.TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["group"],
        static_categoricals=["group"],
        max_encoder_length=8,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [forecasting.TemporalFusionTransformer, forecasting.DeepAR])
def test_forecasting_models_are_rebuilt_from_what_they_save(kind):
    data = series()

    def build():
        return kind.from_dataset(data, hidden_size=8)

    module = build()
    assert_like_fresh(build, count=3)
    for unit in module.parameters():
        unit.data.fill_(2.0)
    assert not any(unit.eq(2.0).all() for unit in restarted(module).parameters())

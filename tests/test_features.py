"""Features: what encoders of sources make of the target's samples, for modules and batches of several kinds."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from feature_sources import BREAKS, FACTS, REASONS, about, library_of, net, put, put_broken, reading, trained
from pge_lightning.encoder import HEAD, encoder_state
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators import Combination, Estimate, FeatureScore, GapEstimator, Target
from pge_lightning.estimators.features import BATCH_SIZE, Features, LabelsError
from pge_lightning.library import Library
from pge_lightning.rank import rank_sources
from trainer_helpers import (
    LADDER,
    AugmentingData,
    Data,
    Net,
    failing,
    frozen,
    generators,
    make_data,
    make_loader,
    module_state,
    randomness,
)
from zoo.graphs import GraphClassifier, graphs
from zoo.kinds import KINDS
from zoo.language import bert, classes_of_texts

NAMES = ["other", "same"]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A source that has learned the target's rule and one that has learned another one, with signatures."""
    library = Library(tmp_path_factory.mktemp("library"))
    for name, seed in (("other", 5), ("same", 0)):
        put(library, name, trained(seed), data=seed)
    return library.root


@pytest.fixture
def library(collected, tmp_path):
    return Library(shutil.copytree(collected, tmp_path / "library"))


def by_hand(weights, x, module=None):
    """The encoder as it was stored, run over all samples in one piece."""
    module = Net() if module is None else module
    module.load_state_dict(weights, strict=False)
    with torch.no_grad():
        return module.eval().encoder(x)


# --- what they are


def test_they_are_what_the_stored_encoder_makes_of_the_samples_in_their_order(library):
    x, y, _ = make_data().tensors
    target = about(library)
    for name in NAMES:
        found = target.features(name)
        assert (found.features.dtype, found.features.shape) == (torch.float32, (64, 4))
        assert torch.allclose(found.features, by_hand(library.open(name).load_weights(), x), atol=1e-6)
        assert torch.equal(found.labels, y)
        assert torch.equal(found.classes, y)


def test_all_sources_see_the_same_samples_of_a_shuffled_loader(library):
    target = about(library, make_loader(shuffle=True), samples=40)
    first, second = (target.features(name) for name in NAMES)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.features, about(library, make_loader(shuffle=True), samples=40).features("other").features)


@pytest.mark.parametrize("samples", [1, 10, 64, 1000])
def test_more_samples_than_asked_for_are_thinned_out_evenly(samples, library):
    x, y, _ = make_data().tensors
    found = about(library, samples=samples).features("same")
    chosen = torch.linspace(0, 63, min(samples, 64)).round().long()
    assert torch.equal(found.labels, y[chosen])
    assert torch.allclose(found.features, by_hand(library.open("same").load_weights(), x[chosen]), atol=1e-6)


def test_samples_of_more_than_one_batch_come_in_batches(library):
    sizes = []

    def features(module, batch):
        sizes.append(len(batch[0]))
        return module.encoder(batch[0])

    data = make_loader(samples=2 * BATCH_SIZE + 5, shuffle=False)
    found = about(library, data, features=features).features("same")
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 5]
    whole = by_hand(library.open("same").load_weights(), make_data(samples=2 * BATCH_SIZE + 5).tensors[0])
    assert torch.allclose(found.features, whole, atol=1e-6)


def test_a_function_of_the_user_gives_them_instead(library):
    def halves(module, batch):
        assert not module.training
        assert not torch.is_grad_enabled()
        return module.encoder(batch[0]).double()[:, :2]

    found = about(library, features=halves).features("same").features
    assert found.dtype == torch.float32
    assert torch.equal(found, about(library).features("same").features[:, :2])


def test_features_are_computed_once_however_many_scores_ask(library, monkeypatch):
    calls = []

    def counting(module, batch):
        calls.append(1)
        return module.encoder(batch[0])

    target = about(library, features=counting)
    with reading(monkeypatch) as read:
        for score in ("linear_probe", "log_me", "knn", "h_score", "leep"):
            assert all(isinstance(each, Estimate) for each in target.judge(FeatureScore(score), NAMES).values())
    assert len(calls) == len(NAMES)
    assert sorted(read) == NAMES


def test_what_fails_is_not_tried_again(library):
    calls = []

    def failing_always(module, batch):
        calls.append(1)
        raise RuntimeError("no")

    target = about(library, features=failing_always)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            target.features("same")
    assert len(calls) == 1


@pytest.mark.parametrize("data", [Data, AugmentingData, make_loader, lambda: list(make_loader())])
def test_scoring_changes_nothing(data, library):
    module, data = net(9), data()
    before = frozen({**module_state(module), "randomness": randomness(), "generators": generators(data)})
    target = about(library, data, module)
    target.judge(FeatureScore(), NAMES)
    target.features(None)
    assert frozen({**module_state(module), "randomness": randomness(), "generators": generators(data)}) == before


def test_every_copy_is_prepared_before_it_is_used(library):
    prepared = []
    target = about(library, prepare=prepared.append)
    target.features("same"), target.features(None)
    assert len(prepared) == 2
    assert all(isinstance(copied, Net) for copied in prepared)


# --- modules and batches of several kinds


def mappings(seed=0):
    x, y, _ = make_data(seed).tensors
    return DataLoader([{"x": row, "label": label} for row, label in zip(x, y, strict=True)], batch_size=16)


def test_a_mapping_goes_in_by_its_names(library):
    found, plain = about(library, mappings()).features("same"), about(library).features("same")
    assert torch.equal(found.features, plain.features)
    assert torch.equal(found.labels, plain.labels)


def test_a_hugging_face_model_gives_its_pooled_output(tmp_path):
    torch.manual_seed(0)
    library, model, data = Library(tmp_path), bert(3), classes_of_texts(0, 3)
    put(library, "source", model, encoder="model.bert")
    torch.manual_seed(1)
    target = about(library, data, bert(3), encoder=None)
    found = target.features("source")
    rows = data.dataset.rows
    inputs = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model.eval().model.bert(**inputs).pooler_output
    assert torch.allclose(found.features, expected, atol=1e-6)
    assert found.classes.tolist() == [int(row["labels"]) for row in rows]
    logits = model.model.classifier(expected)
    assert torch.allclose(found.probabilities, logits.softmax(1), atol=1e-6)


EASY = [
    "Image classifier, convolutions",
    "LoRA, `peft` around `transformers` BertForSequenceClassification",
    "Encoder and decoder, `transformers` T5ForConditionalGeneration",
    "Series classifier, convolutions over time",
    "Text classifier, nn.TransformerEncoder with class and position tokens",
    "Weight norm and spectral norm",
    "Lazy modules",
    "Layers built in `configure_model`",
    "Module under `torch.compile`",
    "Plain nn.Module, `loss_fn`",
]


@pytest.mark.parametrize("name", EASY)
def test_modules_of_all_kinds_give_features_of_every_sample(name, tmp_path):
    kind, library = KINDS[name], Library(tmp_path)
    for number in range(2):
        module = made(kind, number)
        if name == "Lazy modules":
            module.training_step(next(iter(kind.data(0, 3))), 0)
        library.register(f"s{number}", encoder_state(module, kind.encoder), FACTS, [])
    target = Target(made(kind, 7), kind.data(0, 3), library, encoder=kind.encoder, loss_fn=kind.loss_fn)
    shapes = {source: target.features(source).features.shape for source in ("s0", "s1", None)}
    assert set(shapes.values()) == {(24, 8)}
    assert target.features("s0").features.isfinite().all()
    fixed = name.startswith("LoRA")  # what is adapted is the same, and an adapter begins as nothing
    assert torch.equal(target.features("s0").features, target.features("s1").features) == fixed


def made(kind, seed):
    torch.manual_seed(seed)
    module = kind.build(3)
    if hasattr(module, "configure_model"):
        module.configure_model()
    return module


def test_graphs_take_a_function_of_the_user(tmp_path):
    torch.manual_seed(0)
    library = library_of(tmp_path, source=GraphClassifier(3))

    def pooled(module, batch):
        nodes = module.encoder(batch.x, batch.edge_index)
        return torch.stack([nodes[batch.batch == number].mean(0) for number in range(int(batch.batch.max()) + 1)])

    plain, own = (about(library, graphs(0, 3), GraphClassifier(3), features=function) for function in (None, pooled))
    with pytest.raises(PGEError, match=r"Give `features=`, a function of \(module, batch\)"):
        plain.features("source")
    found = own.features("source")
    assert len(found.features) == len(found.classes) > 8


# --- labels


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (None, "got none"),
        (torch.zeros(4), r"torch.float32 of shape \[4\]"),
        (torch.zeros(4, 2, dtype=torch.long), r"torch.int64 of shape \[4, 2\]"),
    ],
)
def test_what_is_no_class_number_is_told(labels, got):
    with pytest.raises(LabelsError, match=f"one class number per sample.*{got}.*such as the gap"):
        _ = Features(torch.zeros(4, 2), labels).classes


def test_class_numbers_come_in_any_type_of_whole_numbers():
    for kind in (torch.uint8, torch.int32, torch.int64, torch.bool):
        assert torch.equal(Features(torch.zeros(2, 1), torch.tensor([0, 1]).to(kind)).classes, torch.tensor([0, 1]))


def test_inputs_alone_have_features_but_no_labels(library):
    x = make_data().tensors[0]
    found = about(library, list(x.split(16))).features("same")
    assert found.labels is None
    assert torch.allclose(found.features, by_hand(library.open("same").load_weights(), x), atol=1e-6)


# --- the source's own head


def test_the_sources_head_speaks_where_the_library_holds_it(library):
    head = library.open("same").load_extra(HEAD)
    found = about(library).features("same")
    logits = found.features @ head["weight"].T + head["bias"]
    assert torch.allclose(found.probabilities, logits.softmax(1), atol=1e-6)
    put(library, "silent", trained(0), head=False)
    assert about(library).features("silent").probabilities is None


def test_a_head_without_bias_will_do(tmp_path):
    module = net(0)
    module.head = nn.Linear(4, 5, bias=False)
    library = library_of(tmp_path, source=module)
    found = about(library).features("source")
    assert torch.allclose(found.probabilities, (found.features @ module.head.weight.T).softmax(1), atol=1e-6)


def test_a_head_on_other_features_says_nothing(library):
    found = about(library, features=lambda module, batch: module.encoder[0](batch[0])).features("same")
    assert found.features.shape == (64, 8)
    assert found.probabilities is None


# --- a re-initialised encoder


def test_a_reinitialised_encoder_depends_on_its_number_alone(library):
    first = about(library).features(None)
    assert torch.equal(about(library, model=net(4)).features(None).features, first.features)
    target = about(library)
    assert torch.equal(target.features(None).features, first.features)
    assert target.features(None) is target.features(None, 0)
    assert not torch.equal(target.features(None, 1).features, first.features)
    assert all(not torch.equal(target.features(name).features, first.features) for name in NAMES)
    assert first.probabilities is None
    assert torch.equal(first.labels, make_data().tensors[1])


def test_its_batch_norms_know_the_samples(library):
    norms = []

    def features(module, batch):
        norms.append(module.encoder[1])
        return module.encoder[:2](batch[0])

    found = about(library, make_loader(samples=320), features=features).features(None).features
    assert found.mean(0).abs().max() < 1e-3
    assert (found.std(0) - 1).abs().max() < 0.02
    assert norms[0].training is False


class Scale(nn.Module):
    """Has a unit that nothing knows how to draw."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * self.factor


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(6, width), Scale()), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.encoder(x))


def test_what_cannot_be_reinitialised_is_told(tmp_path):
    library = library_of(tmp_path, source=Scaled(4))
    with pytest.raises(PGEError, match=r"nothing resets encoder\.1\.factor"):
        about(library, model=Scaled(4)).features(None)
    target = about(library, model=Scaled(4), factory=lambda: Scaled(4))
    assert target.features(None).features.shape == target.features("source").features.shape


# --- sources that fail


@pytest.mark.parametrize(
    "estimator", [FeatureScore("linear_probe"), FeatureScore("log_me")], ids=lambda each: each.name
)
@pytest.mark.parametrize("kind", BREAKS)
def test_a_source_that_breaks_ends_in_the_table_and_the_rest_is_ranked_without_it(kind, estimator, library):
    sound = rank_sources(about(library), estimator)
    name = put_broken(library, kind)
    ranking = rank_sources(about(library), estimator)
    assert ranking.sources[:-1] == sound.sources
    assert ranking.sources[-1].name == name
    assert failing(ranking.sources[-1], REASONS[kind]), ranking.sources[-1].reason


def test_in_a_combination_too_it_takes_no_part(library):
    put(library, "third", trained(8), data=8)  # so that units are weighed over the sources
    estimator = Combination({"gap": GapEstimator(LADDER), "score": FeatureScore()})
    sound = rank_sources(about(library), estimator)
    names = [put_broken(library, kind, data=3) for kind in BREAKS]
    ranking = rank_sources(about(library), estimator)
    assert ranking.sources[:3] == sound.sources
    assert sorted(line.name for line in ranking.sources[3:]) == sorted(names)
    for line in ranking.sources[3:]:
        assert line.status == "failed"
        assert line.reason


def test_a_damaged_head_is_told(library):
    (file,) = Path(library.root, "same").glob("head-*")
    file.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="SHA-256"):
        about(library).features("same")


def test_a_source_of_fewer_layers_is_no_source_of_this_encoder(library):
    put(library, "shallow", net(0), encoder="encoder.0", head=False)
    with pytest.raises(PGEError, match=r"whole encoder, but 4 of its parameters .* such as 'encoder\.1\.weight'"):
        about(library).features("shallow")


def test_a_source_that_could_not_be_opened_has_no_features(library):
    (Path(library.root) / "same" / "source.json").write_text("{")
    target = about(library)
    with pytest.raises(ArtifactError, match="damaged"):
        target.features("same")
    assert target.features("other").features.isfinite().all()


def test_targets_without_a_single_sample_are_refused(library):
    with pytest.raises(PGEError, match="at least one batch"):
        about(library, DataLoader(TensorDataset(*make_data(samples=0).tensors), batch_size=16)).features("same")

"""Advice: what is known of the best source and of scratch, from real features, records and races."""

import pytest
import torch
from torch import nn

from feature_sources import put, trained
from pge_lightning.encoder import encoder_state
from pge_lightning.errors import PGEError
from pge_lightning.estimators import Combination, FactEstimator, FeatureScore, GapEstimator
from pge_lightning.library import Library
from pge_lightning.race import RacePlan
from pge_lightning.record import SCRATCH, Record
from pge_lightning.select import SourceSelector
from trainer_helpers import LADDER, Net, frozen, make_loader, module_state, plain_loss


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path)
    for seed, name in enumerate(("own", "other")):
        put(library, name, trained(seed), data=seed)
    return library


def selector(library, estimator=None, **options):
    return SourceSelector(library, estimator or GapEstimator(LADDER), cache=False, verbose=False, **options)


def remember(library, gain, targets=8):
    for number in range(targets):
        for name in library.names():
            library.add_record(Record(name, f"t{number}", "acc", 0.5 + gain, seed=0))
        library.add_record(Record(SCRATCH, f"t{number}", "acc", 0.5, seed=0))


def test_without_evidence_the_best_source_is_advised_in_words_that_say_so(library):
    selection = selector(library).select(Net(), make_loader())
    decision = selection.ranking.decision
    assert selection.source == decision.source == selection.ranking.best.name
    assert (decision.words, decision.confidence) == ("not known", 0.5)


@pytest.mark.parametrize("gain", [0.2, -0.2])
def test_records_beside_scratch_decide(gain, library):
    remember(library, gain)
    module = Net()
    before = frozen(module_state(module))
    selection = selector(library).select(module, make_loader())
    decision = selection.ranking.decision
    assert decision.best == selection.ranking.best.name
    assert decision.confidence > 0.75
    assert "8 of 8" in decision.reasons[0] if gain > 0 else "0 of 8" in decision.reasons[0]
    if gain > 0:
        assert selection.source == decision.source == decision.best
        assert frozen(encoder_state(module)) == frozen(library.open(decision.best).load_weights())
    else:
        assert (selection.source, selection.report, decision.source) == (None, None, None)
        assert frozen(module_state(module)) == before


def test_advice_against_all_sources_can_be_declined(library):
    remember(library, -0.2)
    selection = selector(library, scratch=False).select(Net(), make_loader())
    assert selection.ranking.decision.source is None
    assert selection.source == selection.ranking.best.name


def test_records_of_the_target_itself_do_not_count(library):
    for name in (*library.names(), SCRATCH):
        library.add_record(Record(name, "this", "acc", 0.9, seed=0))
    ranking = selector(library, name="this").rank(Net(), make_loader())
    assert ranking.decision.words == "not known"
    assert "records" in selector(library, name="that").rank(Net(), make_loader()).decision.reasons[0]


def test_a_linear_probe_in_the_ranking_is_compared_with_random_features(library):
    both = Combination({"gap": GapEstimator(LADDER), "probe": FeatureScore("linear_probe")})
    decision = selector(library, both).rank(Net(), make_loader(0, 128)).decision
    assert decision.best == "own"
    assert decision.source == "own"
    assert "with its features" in decision.reasons[0]
    without = selector(library).rank(Net(), make_loader(0, 128)).decision
    assert not any("with its features" in reason for reason in without.reasons)


def test_a_race_is_part_of_the_answer(library):
    plan = RacePlan(steps=96, splits=2, batch_size=16)
    module = Net()
    before = frozen(module_state(module))
    fast = selector(library, FactEstimator("source_size"), race=plan, loss_fn=plain_loss)
    ranking = fast.rank(module, make_loader(0, 128))
    assert frozen(module_state(module)) == before
    assert {lane.source for lane in ranking.race.lanes} == {"own", "other", None}
    assert ranking.decision.best == ranking.race.best
    assert ranking.decision.reasons[0].startswith("race: ")
    assert ranking.to_dict()["race"]["steps"] == ranking.race.steps > 0
    assert ranking.to_dict()["decision"]["confidence"] == ranking.decision.confidence


def test_beside_a_race_records_and_probe_have_no_say(library):
    remember(library, -0.2)
    plan = RacePlan(steps=96, splits=2, batch_size=16)
    raced = selector(library, FeatureScore("linear_probe"), race=plan, loss_fn=plain_loss)
    decision = raced.rank(Net(), make_loader(0, 128)).decision
    assert [reason.split(":")[0] for reason in decision.reasons if not reason.startswith("tied")] == ["race"]


def test_a_race_that_cannot_be_run_is_noted(library):
    ranking = selector(library, race=RacePlan(steps=1)).rank(Net(), make_loader())
    assert ranking.race is None
    assert any(note.startswith("No race: ") for note in ranking.notes)


def test_where_every_source_failed_nothing_is_decided(library):
    ranking = selector(library, GapEstimator("fast")).rank(Net(), make_loader())
    assert ranking.decision is None
    with pytest.raises(PGEError, match="all 2 failed"):
        selector(library, GapEstimator("fast")).select(Net(), make_loader())


def test_a_best_source_that_cannot_be_loaded_takes_its_evidence_with_it(library, tmp_path):
    remember(library, 0.2)
    best = selector(library).rank(Net(), make_loader()).best.name
    (file,) = (tmp_path / best).glob("encoder-*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="cannot be loaded"):
        selection = selector(library).select(Net(), make_loader())
    assert selection.source == selection.ranking.decision.source != best
    assert selection.ranking.decision.words == "not known"


def test_the_advice_is_printed(library, capsys):
    remember(library, -0.2)
    SourceSelector(library, GapEstimator(LADDER), cache=False).select(Net(), make_loader())
    assert "Start from scratch, not from" in capsys.readouterr().out


class Unknown(nn.Module):
    """Has a unit that nothing knows how to draw."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * self.factor


class Plain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(6, width), Unknown()), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.encoder(x))


def test_without_random_features_to_compare_with_the_probe_is_no_evidence(tmp_path):
    library = Library(tmp_path)
    put(library, "only", Plain(4))
    selection = selector(library, FeatureScore("linear_probe"), loss_fn=plain_loss).select(Plain(4), make_loader())
    assert selection.source == "only"
    assert selection.ranking.decision.words == "not known"

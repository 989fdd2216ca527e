"""Races: real steps on copies of real modules."""

import math
from dataclasses import replace
from functools import partial
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pge_lightning.errors import PGEError
from pge_lightning.isolation import seed_all
from pge_lightning.race import Race, RacePlan, run_race
from pge_lightning.race.accuracy import CountedHits
from pge_lightning.race.racer import Racer, make_optimizer
from pge_lightning.race.track import Course
from trainer_helpers import Net, attributes, frozen, generators, make_loader, module_state, plain_loss, randomness

QUICK = RacePlan(steps=240, splits=2, batch_size=8)


def encoder_of(module):
    return {name: value.clone() for name, value in module.state_dict().items() if name.startswith("encoder")}


@pytest.fixture(scope="module")
def trained():
    """An encoder that was fitted to the target itself: the best of sources."""
    seed_all(0)
    model, (x, y, _) = Net(), make_loader().dataset.tensors
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        plain_loss(model, (x, y)).backward()
        optimizer.step()
    return encoder_of(model)


def dead(weights):
    return {name: torch.zeros_like(value) for name, value in weights.items()}


def race(sources, plan=QUICK, model=None, data=None, **options):
    seed_all(1)
    return run_race(model or Net(), data or make_loader(), sources, plan, **options)


@pytest.fixture(scope="module")
def finished(trained):
    broken = {name: value * math.nan if value.is_floating_point() else value for name, value in trained.items()}

    def missing():
        raise OSError("no such file")

    sources = {"good": lambda: trained, "bad": partial(dead, trained), "nan": lambda: broken, "gone": missing}
    return race(sources)


class TestHalving:
    def test_the_best_source_stays_longest_and_beats_scratch(self, finished):
        assert finished.best == "good"
        best, given, bad = finished.lane("good"), finished.lane(None), finished.lane("bad")
        assert best.steps == given.steps > bad.steps > 0
        assert best.advantages == tuple(mine - its for mine, its in zip(best.accuracies, given.accuracies, strict=True))
        assert all(0 <= value <= 1 for lane in (best, given, bad) for value in lane.accuracies)
        assert all(value > 0 for value in best.advantages)
        assert all(value < 0 for value in bad.advantages)

    def test_takes_no_more_steps_than_granted(self, finished):
        lanes = finished.lanes
        assert finished.steps == QUICK.splits * sum(lane.steps for lane in lanes) <= QUICK.steps
        assert finished.steps > QUICK.steps / 2

    def test_candidates_that_fail_drop_out_with_the_reason(self, finished):
        assert [lane.source for lane in finished.lanes[-2:]] == ["nan", "gone"]
        assert "finite loss on held-out samples, but got nan" in finished.lane("nan").reason
        assert finished.lane("gone").reason == "no such file"
        assert finished.lane("nan").losses == finished.lane("gone").advantages == ()

    def test_is_printed_with_its_numbers_and_reasons(self, finished):
        console = Console(width=140)
        with console.capture() as printed:
            console.print(finished)
        text = printed.get()
        assert "on 2 of 2 splits" in text
        assert "gone failed: no such file" in text
        assert "scratch" in text

    def test_without_halving_all_run_to_the_end(self, trained):
        plan = RacePlan(steps=48, splits=2, batch_size=8, halve=False)
        result = race({"a": lambda: trained, "b": lambda: dead(trained)}, plan)
        assert {lane.steps for lane in result.lanes} == {8}
        assert result.steps == 48

    def test_is_the_same_again(self, trained):
        one, other = (race({"a": lambda: trained}, RacePlan(steps=16, splits=2, batch_size=8)) for _ in range(2))
        assert one.lanes == other.lanes

    def test_a_source_that_equals_the_model_as_given_is_neither_better_nor_worse_than_it(self):
        seed_all(1)
        model, plan = Net(), RacePlan(steps=40, splits=2, scratch="given")
        result = run_race(model, make_loader(), {"same": partial(encoder_of, model)}, plan)
        assert result.lane("same").advantages == (0.0, 0.0)

    def test_where_all_sources_fail_the_race_ends(self):
        result = race({"gone": lambda: {}})
        assert result.best is None
        assert result.steps == 0
        assert result.lane("other") is None


class TestNoTrace:
    def test_module_loader_and_random_states_stay_as_they_were(self, trained):
        model, loader = Net(), make_loader()
        next(iter(loader))

        def state():
            return frozen({**module_state(model), **randomness(), "loader": [generators(loader), attributes(loader)]})

        before = state()
        run_race(model, loader, {"a": lambda: trained, "nan": lambda: {"encoder.0.bias": torch.ones(1)}}, QUICK)
        assert state() == before

    def test_an_optimizer_of_the_original_is_not_used(self):
        class Sharing(Net):
            def configure_optimizers(self):
                return torch.optim.SGD(original, 0.1)

        model = Sharing()
        original = list(model.parameters())
        result = run_race(model, make_loader(), {"a": partial(encoder_of, Net())}, QUICK)
        assert result.optimizer == "AdamW"


class TestOptimizer:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda one, _: one,
            lambda one, _: [one],
            lambda one, _: {"optimizer": one},
            lambda one, schedule: ([one], [schedule]),
            lambda one, schedule: [{"optimizer": one, "lr_scheduler": schedule}],
        ],
    )
    def test_is_the_modules_own_at_the_rate_that_its_schedule_starts_from(self, wrap):
        class Warm(Net):
            def configure_optimizers(self):
                one = torch.optim.SGD(self.parameters(), 0.05)
                steps = self.trainer.estimated_stepping_batches
                return wrap(one, torch.optim.lr_scheduler.LambdaLR(one, lambda step: step / steps))

        optimizer = make_optimizer(Warm(), 70, 1e-3)
        assert type(optimizer) is torch.optim.SGD
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)

    def test_takes_the_peak_of_a_cycle(self):
        class Cycle(Net):
            def configure_optimizers(self):
                one = torch.optim.SGD(self.parameters(), 1e-5)
                steps = self.trainer.estimated_stepping_batches
                return [one], [torch.optim.lr_scheduler.OneCycleLR(one, max_lr=0.5, total_steps=steps)]

        assert make_optimizer(Cycle(), 70, 1e-3).param_groups[0]["lr"] == pytest.approx(0.5)

    def test_keeps_the_trainer_that_the_module_has(self):
        model, trainer = Net(), pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        model.trainer = trainer
        make_optimizer(model, 10, 1e-3)
        assert model.trainer is trainer

    def test_is_adamw_where_the_modules_own_cannot_be_had(self):
        class Asking(Net):
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), self.trainer.datamodule.rate)

        class Silent(Net):
            configure_optimizers = pl.LightningModule.configure_optimizers

        class Two(Net):
            def configure_optimizers(self):
                return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.encoder, self.head)]

        for module in (Asking(), Silent(), Two(), nn.Linear(2, 2)):
            optimizer = make_optimizer(module, 10, 0.25)
            assert type(optimizer) is torch.optim.AdamW
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)


class TestRacer:
    def test_judges_in_evaluation_mode_by_the_mean_over_samples(self):
        model = Net()
        model.encoder[1].eval()
        racer = Racer(model, lambda batch, _: plain_loss(model, batch), 10, 1e-3)
        x, y, _ = make_loader().dataset[:10]
        found, accuracy = racer.judge([(8, (x[:8], y[:8])), (2, (x[8:], y[8:]))])
        assert [part.training for part in model.encoder] == [True, False, True, True, True]
        model.eval()
        assert accuracy == pytest.approx(model(x).argmax(dim=1).eq(y).float().mean().item())
        assert found == pytest.approx(plain_loss(model, (x, y)).item(), abs=1e-6)
        model.train()
        assert found != pytest.approx(plain_loss(model, (x, y)).item(), abs=1e-3)

    def test_batches_that_are_skipped_move_nothing_and_count_as_no_loss(self):
        model = nn.Linear(2, 2)
        racer, before = Racer(model, lambda *_: None, 10, 1.0), model.weight.clone()
        racer.train([(0, None), (1, None)])
        assert model.weight.equal(before)
        with pytest.raises(PGEError, match="finite loss on held-out samples, but got nan"):
            racer.judge([(1, None)])


class TestAccuracy:
    def test_classes_are_in_dimension_one_and_what_is_ignored_does_not_count(self):
        logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
        target = logits.argmax(dim=1)
        target[0], target[1] = -100, (target[1] + 1) % 3
        with CountedHits() as hits:
            nn.CrossEntropyLoss()(logits, target)
        assert (hits.right, hits.total) == (10, 15)
        with CountedHits() as hits:
            nn.functional.nll_loss(logits.log_softmax(dim=1), target.clamp(min=0), ignore_index=7)
            nn.functional.cross_entropy(logits, target, None, None, -100)
        assert (hits.right, hits.total) == (10 + int(logits[0].argmax(dim=0).eq(0).sum()) + 10, 20 + 15)

    def test_a_single_sample_without_a_batch(self):
        with CountedHits() as hits:
            nn.functional.cross_entropy(torch.tensor([0.0, 2.0]), torch.tensor(1))
        assert hits.accuracy == 1

    def test_other_losses_have_none(self):
        with CountedHits() as hits:
            nn.functional.mse_loss(torch.ones(2), torch.zeros(2))
            nn.functional.cross_entropy(torch.eye(2), torch.full((2, 2), 0.5))
        assert hits.accuracy is None

    def test_without_one_the_loss_compares(self, trained):
        def loss(module, batch):
            return nn.functional.mse_loss(module(batch[0]), nn.functional.one_hot(batch[1], 3).float())

        result = race({"a": lambda: trained}, loss_fn=loss)
        source, scratch = result.lane("a"), result.lane(None)
        assert source.accuracies == scratch.accuracies == ()
        assert source.advantages == tuple(its - own for own, its in zip(source.losses, scratch.losses, strict=True))
        console = Console(width=140)
        with console.capture() as printed:
            console.print(result)
        assert "loss by +" in printed.get()


class TestCourse:
    def test_splits_keep_each_sample_once_and_train_on_the_others(self):
        course = Course(samples=21, holdout=0.25, batch_size=4, seed=0)
        kept = [list(chain(*course.held(split))) for split in range(4)]
        assert sorted(chain(*kept)) == list(range(21))
        for split in range(4):
            seen = {sample for _, batch in course.trained(split, 0, 40) for sample in batch}
            assert seen == set(range(21)) - set(kept[split])

    def test_a_fifth_split_shuffles_anew(self):
        course = Course(samples=21, holdout=0.25, batch_size=4, seed=0)
        assert sorted(chain(*course.held(4))) != sorted(chain(*course.held(0)))

    def test_steps_go_on_where_the_rung_before_ended(self):
        course = Course(samples=20, holdout=0.25, batch_size=4, seed=3)
        assert list(course.trained(1, 0, 9)) == [*course.trained(1, 0, 4), *course.trained(1, 4, 5)]

    def test_batches_are_no_larger_than_what_is_trained_on(self):
        assert Course(samples=8, holdout=0.25, batch_size=64, seed=0).batch_size == 6

    def test_too_few_samples_are_refused(self):
        with pytest.raises(PGEError, match=r"at least 8 samples of the target, .* but got 7"):
            Course(samples=7, holdout=0.25, batch_size=4, seed=0)


class TestPlan:
    @pytest.mark.parametrize(
        "field", [{"steps": 0}, {"splits": 1}, {"samples": 0}, {"holdout": 0.6}, {"lr": 0.0}, {"scratch": "none"}]
    )
    def test_values_out_of_range_are_refused(self, field):
        with pytest.raises(ValueError, match=f"Expected `{next(iter(field))}` to be"):
            RacePlan(**field)

    def test_sources_are_halved_down_to_one_which_runs_once_more(self):
        assert [RacePlan().rungs(sources) for sources in (1, 2, 3, 4, 5)] == [1, 2, 3, 3, 4]

    def test_too_few_steps_are_refused_before_any_work(self):
        with pytest.raises(PGEError, match=r"at least 12 `steps` for 2 sources .* but got 11"):
            race({"a": dict, "b": dict}, RacePlan(steps=11, splits=2))

    def test_no_sources_are_refused(self):
        with pytest.raises(PGEError, match="a source to race, but got none"):
            race({})


class Lazy(Net):
    """The head gets its shape from a first batch."""

    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(3)


class TestModules:
    def test_a_plain_module_with_a_loss_and_batches(self, trained):
        model = nn.ModuleDict({"encoder": Net().encoder, "head": nn.Linear(4, 3)})

        def loss(module, batch):
            return nn.functional.cross_entropy(module["head"](module["encoder"](batch[0])), batch[1])

        result = run_race(model, list(make_loader()), {"a": lambda: trained}, QUICK, loss_fn=loss)
        assert isinstance(result, Race)
        assert result.optimizer == "AdamW"
        assert not result.lane("a").reason

    def test_a_lazy_module_starts_equal_for_all_candidates(self):
        seed_all(1)
        model = Lazy()
        plan = RacePlan(steps=40, splits=2, scratch="given")
        result = run_race(model, make_loader(), {"same": partial(encoder_of, model)}, plan)
        assert result.lane("same").advantages == (0.0, 0.0)

    def test_a_lazy_module_restarts(self, trained):
        result = run_race(Lazy(), make_loader(), {"a": lambda: trained}, QUICK)
        assert not result.lane("a").reason

    def test_scratch_is_drawn_anew_for_each_split_whatever_the_model_holds(self, trained):
        plan = RacePlan(steps=80, splits=2, batch_size=8)
        seed_all(1)
        fresh, other = Net(), Net()
        other.load_state_dict({**other.state_dict(), **dead(trained)})
        one, two = (run_race(model, make_loader(), {"a": lambda: trained}, plan) for model in (fresh, other))
        assert one.lanes == two.lanes
        given = run_race(other, make_loader(), {"a": lambda: trained}, replace(plan, scratch="given"))
        assert given.lane(None).losses != two.lane(None).losses

    def test_what_nothing_reinitialises_is_refused_unless_the_model_as_given_is_scratch(self, trained):
        class Table(nn.Module):
            def __init__(self, size):
                super().__init__()
                self.values = nn.Parameter(torch.zeros(size))

            def forward(self, x):
                return x + self.values

        model = Net()
        model.encoder.append(Table(4))
        model._set_hparams({})
        with pytest.raises(PGEError, match=r"encoder\.5\.values"):
            run_race(model, make_loader(), {"a": lambda: trained}, QUICK)
        result = run_race(model, make_loader(), {"a": lambda: trained}, replace(QUICK, scratch="given"))
        assert result.best == "a"

    def test_prepares_every_copy(self, trained):
        seen = []
        run_race(Net(), make_loader(), {"a": lambda: trained}, QUICK, prepare=seen.append, progress=True)
        assert len({id(copy) for copy in seen}) == 4

    def test_a_model_that_cannot_take_a_step_ends_the_race(self, trained):
        class Broken(Net):
            def training_step(self, batch, batch_idx):
                raise RuntimeError("out of order")

        with pytest.raises(PGEError, match=r"takes fine-tuning steps from scratch, but: out of order"):
            race({"a": lambda: trained}, model=Broken())

    def test_fewer_samples_than_parts_are_refused(self, trained):
        loader = DataLoader(TensorDataset(*make_loader().dataset[:6]), batch_size=2)
        with pytest.raises(PGEError, match="at least 8 samples"):
            race({"a": lambda: trained}, data=loader)

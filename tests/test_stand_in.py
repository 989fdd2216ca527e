"""A Trainer for steps that look at one where there is none yet."""

import logging

import lightning.pytorch as pl

from pge_lightning.collect import collect_signature
from pge_lightning.isolation.stand_in import stand_in_trainer
from trainer_helpers import TINY, Net, make_loader, randomness


class Looks(Net):
    """Reads its Trainer as steps do, and reports what it found."""

    found: list[object]

    def training_step(self, batch, batch_idx):
        trainer = self.trainer
        assert trainer.training
        assert not trainer.sanity_checking
        rate = (trainer.current_epoch + 1) / (trainer.max_epochs or 1000) + self.global_step / 10
        type(self).found.append((trainer.world_size, self.logger, self.local_rank, self.optimizers()))
        return super().training_step(batch, batch_idx) * (1 + rate)


def test_a_step_that_looks_at_its_trainer_is_collected_from_without_one(caplog, capfd, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_JOB_NAME", "real")
    Looks.found, module = [], Looks()
    before = str(randomness())
    with caplog.at_level(logging.INFO):
        signature = collect_signature(module, make_loader(), probe=TINY, encoder="encoder")
    assert all(stack.isfinite().all() for stack in signature.units.values())
    assert Looks.found == [(1, None, 0, [])] * TINY.restarts * TINY.steps
    assert module._trainer is None
    assert str(randomness()) == before
    assert (caplog.text, capfd.readouterr().err) == ("", "")


def test_the_level_of_lightnings_log_stays_what_it_was():
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    trainer = stand_in_trainer()
    assert log.level == level
    assert isinstance(trainer, pl.Trainer)

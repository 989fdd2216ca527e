"""Race: a few candidates take real fine-tuning steps on copies, and the worse half drops out again and again."""

from pge_lightning.race.race import Lane, Race, run_race
from pge_lightning.race.track import RacePlan

__all__ = ["Lane", "Race", "RacePlan", "run_race"]

"""What each choice of the default gap is worth: one setting per job, swept by Hydra.

PGE_DATA=FOLDER pge family=gray28
PGE_DATA=FOLDER python examples/benchmarks/ablation.py -m steps=15,30,60,120

Two disjoint sets of restarts rank every target: weighted tau and regret are means over both, Kendall's tau is their
agreement. Every job adds a line to `ablation.csv` in the results; signatures are collected once and kept beside it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import torch
from finished import open_study
from hydra.core.config_store import ConfigStore
from hydra.utils import to_absolute_path
from omegaconf import OmegaConf
from rich.progress import track
from signatures import Collected, Signatures, blocks, estimates, mean_kendall, some, truth_of, worth

from pge_lightning.probe import Probe, Walk
from pge_lightning.signature import Signature


@dataclass
class Setting:
    """The default, and what may differ from it.

    Args:
        library: Folder of the sources.
        results: Folder of the evaluation.
        family: Its family.
        targets: Names of the targets to rank for; by default all.
        restarts: Restarts of a ranking.
        collected: Restarts to collect, of which as many disjoint sets are made as there are.
        steps: Steps of the sources' warm-up.
        batch_size: Samples per step of the sources.
        lr: Their rate.
        optimizer: Of both sides, ``"adam"`` or ``"sgd"``; with one step of the latter there is no warm-up.
        statistic: ``"gradient"``, or ``"fisher"``: squared gradients of both sides behind a head that was fitted in as
            many steps, the target's at the sources' rung.
        head_share: What heads start with, as a share of the usual, on both sides.
        head_first: Steps of every warm-up, of both sides, in which the head alone learns.
        rung: Samples of the sources.
        target_steps: Steps of the target's warm-up.
        target_batch_size: Samples per step of the target.
        target_lr: Its rate.
        kind: Formula of the gap.
        weigh: Whether units count by the inverse of their spread.
        generality: Weight of generality.
        each_restart: Whether every restart's gaps are standardised over the sources before their mean is taken.
        without: Number of a kernel to leave out, from 0; -1 for the last.
        form: What is compared of each unit: ``"update"``, its ``"magnitude"`` or ``"square"`` whatever the sign, the
            lengths of its ``"rows"`` or ``"columns"``, or the products of its rows with each other (``"row_products"``)
            or of its columns (``"column_products"``), which a rotation of the other side does not change.
        digits: Bits of the mantissa that signatures keep; 23 is float32, 7 is bfloat16.
        sketch: Random projections that each unit is reduced to; 0 keeps it.
    """

    library: str = "outputs/${family}/sources"
    results: str = "outputs/${family}/results"
    family: str = "gray28"
    targets: list[str] | None = None
    restarts: int = 20
    collected: int = 60
    steps: int = 120
    batch_size: int = 64
    lr: float = 2e-3
    optimizer: str = "adam"
    statistic: str = "gradient"
    head_share: float = 1.0
    head_first: int = 0
    rung: int = 1000
    target_steps: int = 30
    target_batch_size: int = 32
    target_lr: float = 2e-3
    kind: str = "kernelwise"
    weigh: bool = True
    generality: float = 1.0
    each_restart: bool = False
    without: int | None = None
    form: str = "update"
    digits: int = 23
    sketch: int = 0


ConfigStore.instance().store("ablation", node=Setting)


def reduced(signature: Signature, setting: Setting) -> Signature:
    """The signature without a kernel, in another form, in fewer digits, or as a sketch."""
    units = dict(signature.units)
    if setting.without is not None:
        del units[[name for name, stack in units.items() if stack.ndim > 2][setting.without]]
    units = {name: FORMS[setting.form](stack) if stack.ndim > 2 else stack for name, stack in units.items()}
    if setting.digits < 23:
        units = {name: rounded(stack, setting.digits) for name, stack in units.items()}
    if setting.sketch:
        units = {name: sketched(stack, setting.sketch) for name, stack in units.items()}
    return replace(signature, units=units)


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "update": lambda stack: stack,
    "magnitude": torch.abs,
    "square": torch.square,
    "rows": lambda stack: stack.flatten(2).norm(dim=2, keepdim=True),
    "columns": lambda stack: stack.flatten(2).norm(dim=1, keepdim=True),
    "row_products": lambda stack: stack.flatten(2) @ stack.flatten(2).mT,
    "column_products": lambda stack: stack.flatten(2).mT @ stack.flatten(2),
}


def rounded(stack: torch.Tensor, digits: int) -> torch.Tensor:
    """Values with fewer bits of the mantissa."""
    mantissa, exponent = torch.frexp(stack)
    scale = 2.0 ** (digits + 1)
    return torch.ldexp((mantissa * scale).round() / scale, exponent)


def sketched(stack: torch.Tensor, size: int) -> torch.Tensor:
    """Random projections of a unit, the same for every data set; small units stay."""
    rows = stack.flatten(1)
    if stack.ndim < 3 or rows.shape[1] <= size:
        return stack
    generator = torch.Generator().manual_seed(rows.shape[1])
    return (rows @ torch.randn(rows.shape[1], size, generator=generator)).unsqueeze(-1)


class HeadFirst:
    """A classifier's loss, which reaches the encoder only after some steps of each warm-up.

    Args:
        first: Steps in which the head alone learns.
        steps: All steps of a warm-up.
    """

    def __init__(self, first: int, steps: int) -> None:
        self.first, self.steps, self.taken = first, steps, 0
        self.__name__ = f"head_first_{first}_of_{steps}"

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        """The loss of the next step."""
        alone, self.taken = self.taken % self.steps < self.first, self.taken + 1
        features = module.encoder(batch[0])
        return torch.nn.functional.cross_entropy(module.head(features.detach() if alone else features), batch[1])


def rank(setting: Setting) -> tuple[Signatures, Signatures, pd.DataFrame]:
    """Signatures of targets and sources, and what fine-tuning gave."""
    folder = Path(to_absolute_path(setting.results))
    study = open_study(setting.family, to_absolute_path(setting.library), str(folder))
    collected = Collected(study, folder / "signatures", setting.head_share)
    recipe: dict[str, Any] = {
        "batch_size": setting.batch_size,
        "budgets": (setting.rung,),
        "statistic": setting.statistic,
    }
    probe = Probe("ablation", setting.collected, setting.steps, setting.optimizer, setting.lr, **recipe)  # type: ignore[arg-type]
    walk = Walk(setting.target_steps, setting.target_batch_size, setting.target_lr) if probe.walks else None
    walked, names = replace(probe, target=walk), setting.targets or study.targets
    losses = [
        HeadFirst(setting.head_first, each.steps) if setting.head_first else None for each in (probe, walk or probe)
    ]
    sources = {name: collected.source(name, probe, losses[0]) for name in track(study.sources, "Sources")}
    targets = {name: collected.target(name, walked, {}, losses[1]) for name in track(names, "Targets")}
    return targets, sources, truth_of(folder)


@hydra.main(version_base="1.3", config_path=None, config_name="ablation")
def main(cfg: Setting) -> float:
    """Rank under one setting, and write it down."""
    OmegaConf.resolve(cfg)  # type: ignore[arg-type]  # a node of that type
    setting: Setting = OmegaConf.to_object(cfg)  # type: ignore[assignment,arg-type]  # what the store holds
    torch.set_num_threads(1)
    targets, sources, truth = rank(setting)
    found = []
    for block in blocks(setting.collected, setting.restarts):
        sides = (
            {name: reduced(some(each, block), setting) for name, each in side.items()} for side in (targets, sources)
        )
        found.append(estimates(*sides, setting.generality, setting.kind, setting.weigh, setting.each_restart))
    means = pd.DataFrame([worth(each, truth).mean() for each in found])
    row = {key: value for key, value in asdict(setting).items() if key not in ("library", "results", "targets")}
    seconds = {
        f"seconds per {side}": np.mean([each.seconds for each in signatures.values()]) / len(found)
        for side, signatures in (("source", sources), ("target", targets))
    }
    row |= {
        **means.mean().to_dict(),
        "spread of tau": means["weighted tau"].std(),
        "kendall": mean_kendall(found),
        **seconds,
    }
    path = Path(to_absolute_path(setting.results)) / "ablation.csv"
    pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)
    print(" ".join(f"{key}={value:.3f}" for key, value in list(row.items())[-6:]))
    return float(row["weighted tau"])


if __name__ == "__main__":
    main()

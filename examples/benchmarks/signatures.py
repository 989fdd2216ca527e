"""Signatures of a finished evaluation under any probe, kept in a folder, and what a ranking by them is worth."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from scipy import stats
from torch import nn
from typing_extensions import override

from pge_lightning.app.build import build_data
from pge_lightning.app.quality import assess
from pge_lightning.app.study import Study
from pge_lightning.app.tasks import seeded_model
from pge_lightning.artifact import decode_signature, encode_signature
from pge_lightning.collect import LossFn, collect_signature
from pge_lightning.functional.gap import gaps_by_unit, spread_weights
from pge_lightning.functional.generality import generality as general_gaps
from pge_lightning.gap import gap_of
from pge_lightning.probe import Probe
from pge_lightning.record import SCRATCH
from pge_lightning.signature import Signature

Signatures = Mapping[str, Signature]


class ShrunkHead(nn.Linear):
    """A head that starts as a fraction of what it usually starts with."""

    share = 1.0

    @override
    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            for unit in self.parameters():
                unit.mul_(self.share)


class Collected:
    """Signatures of a study's data sets: collected once, and read from a folder afterwards.

    Restarts are seeded one by one: fewer are the first of those that are kept.

    Args:
        study: The finished evaluation.
        folder: Where the signatures are kept.
        head_share: What heads start with, as a share of the usual.
    """

    def __init__(self, study: Study, folder: Path, head_share: float = 1.0) -> None:
        self.study, self.folder, self.head_share = study, folder, head_share
        folder.mkdir(parents=True, exist_ok=True)

    def source(self, name: str, probe: Probe, loss_fn: LossFn | None = None) -> Signature:
        """The signature of a source's training data, at the first rung of the probe."""
        return self._collect(f"source-{name}", self.study.source_job(name), probe, {}, loss_fn)

    def target(self, name: str, probe: Probe, data: Mapping[str, Any] = {}, loss_fn: LossFn | None = None) -> Signature:
        """The signature of a target, walked as the probe says; `data` and `loss_fn` are what differs from the study."""
        job = self.study.target_job(name, self.study.seeds[0])
        return self._collect(f"target-{name}", job, probe.of_target, data, loss_fn)

    def _collect(
        self, name: str, job: Any, probe: Probe, data: Mapping[str, Any], loss_fn: LossFn | None = None
    ) -> Signature:
        rung = probe.budgets[0] if name.startswith("source-") else None
        recipe = {key: value for key, value in probe.recipe.items() if key != "restarts"}
        loss = loss_fn and loss_fn.__name__
        heads = [] if self.head_share == 1 else [self.head_share]
        said = json.dumps([recipe, rung, dict(data), loss, *heads], sort_keys=True)
        stem = f"{name}-{hashlib.blake2b(said.encode(), digest_size=6).hexdigest()}"
        for path in self.folder.glob(f"{stem}-*.safetensors"):
            kept = int(path.stem.rpartition("-")[2])
            if probe.restarts is not None and kept >= probe.restarts:
                return some(decode_signature(path.read_bytes()), range(probe.restarts))
        path = self.folder / f"{stem}-{probe.restarts}.safetensors"
        job.data = OmegaConf.merge(job.data, dict(data))
        datamodule = build_data(job.data)
        model = seeded_model(job, datamodule)
        if self.head_share != 1:
            model.head = ShrunkHead(model.head.in_features, model.head.out_features)
            model.head.share = self.head_share
        datamodule.prepare_data()
        datamodule.setup("fit")
        loader = datamodule.train_dataloader()
        budget = rung or len(loader.dataset)
        signature = collect_signature(model, loader, probe=probe, budget=budget, encoder="encoder", loss_fn=loss_fn)
        path.with_suffix(".part").write_bytes(encode_signature(signature))
        path.with_suffix(".part").rename(path)
        return signature


def some(signature: Signature, restarts: range) -> Signature:
    """The signature that some of the restarts alone would have given."""
    rows = list(restarts)
    return replace(
        signature,
        seconds=signature.seconds * len(rows) / signature.restarts,
        units={name: stack[rows] for name, stack in signature.units.items()},
        starts={name: tuple(hashes[row] for row in rows) for name, hashes in signature.starts.items()},
        restarts=len(rows),
    )


def estimates(
    targets: Signatures,
    sources: Signatures,
    generality: float = 1.0,
    kind: Any = "kernelwise",
    weigh: bool = True,
    each_restart: bool = False,
) -> dict[str, pd.DataFrame]:
    """Target to value, low and high of every other source, by the package's formulas; in deviations `each_restart`."""
    names = sorted(sources)
    among = {
        (one, two): gaps_by_unit(sources[one].units, sources[two].units, kind)
        for place, one in enumerate(names)
        for two in names[:place]
    }
    found = {}
    for target, signature in targets.items():
        others = [name for name in names if name != target]
        tables = torch.stack([gaps_by_unit(sources[name].units, signature.units, kind) for name in others])
        weights = spread_weights(tables) if weigh else torch.full_like(tables[0, 0], 1 / tables.shape[-1])
        pairs = {pair: table for pair, table in among.items() if target not in pair}
        own = _combined(tables, others, pairs, generality, weights)
        if weigh:  # weights say how sources differ, and nothing of how far all of them are
            equal = torch.full_like(weights, 1 / len(weights))
            own += (_combined(tables, others, pairs, generality, equal) - own).mean(dim=0)
        if each_restart:
            own = (own - own.mean(dim=0)) / own.std(dim=0)
        gaps = [gap_of(row.tolist(), kind, signature.budget) for row in own]
        found[target] = pd.DataFrame(
            {"value": [g.value for g in gaps], "low": [g.low for g in gaps], "high": [g.high for g in gaps]}, others
        )
    return found


def _combined(
    tables: torch.Tensor,
    others: list[str],
    pairs: Mapping[tuple[str, str], torch.Tensor],
    generality: float,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Gaps ``[sources, restarts]`` by some weights of units, those to other sources among them."""
    own = tables @ weights
    if not generality:
        return own
    nothing = torch.full_like(own[0], torch.nan)
    both = pairs | {(two, one): table for (one, two), table in pairs.items()}
    square = torch.stack([torch.stack([both[a, b] @ weights if a != b else nothing for b in others]) for a in others])
    return (own + generality * general_gaps(square)) / (1 + generality)


def truth_of(results: Path) -> pd.DataFrame:
    """What fine-tuning gave, targets down and sources across."""
    table = pd.read_csv(results / "truth.csv", keep_default_na=False, na_values=[""])
    return table[table["source"] != SCRATCH].pivot(index="target", columns="source", values="mean")


def worth(found: Mapping[str, pd.DataFrame], truth: pd.DataFrame) -> pd.DataFrame:
    """Weighted tau and regret of rankings, one row per target."""
    rows = {}
    for target, table in found.items():
        quality = assess(-table["value"], truth.loc[target].reindex(table.index))
        rows[target] = {"weighted tau": quality.weighted_tau, "regret": quality.regret}
    return pd.DataFrame(rows).T


def agreement(one: Mapping[str, pd.DataFrame], two: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Kendall's tau between two rankings, and whether they choose the same, one row per target."""
    rows = {}
    for target, table in one.items():
        first, second = table["value"], two[target]["value"].reindex(table.index)
        rows[target] = {
            "kendall": float(stats.kendalltau(first, second).statistic),
            "same choice": float(first.idxmin() == second.idxmin()),
        }
    return pd.DataFrame(rows).T


def blocks(count: int, size: int) -> list[range]:
    """Disjoint sets of restarts."""
    return [range(start, start + size) for start in range(0, count - size + 1, size)]


def mean_kendall(found: list[dict[str, pd.DataFrame]]) -> float:
    """Mean over all pairs of rankings, and over targets; nan where there is one ranking only."""
    pairs = [(one, two) for place, one in enumerate(found) for two in found[:place]]
    return float(np.mean([agreement(*pair)["kendall"].mean() for pair in pairs])) if pairs else float("nan")

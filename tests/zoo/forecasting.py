"""Forecasts as `pytorch-forecasting` makes them."""

import numpy as np
import pandas as pd

from zoo.kind import BATCH, Kind


def _series(seed):
    from pytorch_forecasting import TimeSeriesDataSet

    steps, groups = 12, 4
    frame = pd.DataFrame({"time": np.tile(np.arange(steps), groups), "group": np.repeat([*"abcd"], steps)})
    noise = np.random.default_rng(seed).normal(size=len(frame))
    frame["value"] = np.sin(frame["time"] * (1 + seed)) + 0.1 * noise + 2
    return TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=5,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
        time_varying_known_reals=["time"],
        static_categoricals=["group"],
    )


def windows(seed, _):
    return _series(seed).to_dataloader(train=True, batch_size=BATCH, num_workers=0)


def fusion(quantiles):
    from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer

    loss = QuantileLoss([(number + 1) / (quantiles + 1) for number in range(quantiles)])
    sizes = {"hidden_size": 8, "hidden_continuous_size": 4, "attention_head_size": 1, "dropout": 0.1}
    return TemporalFusionTransformer.from_dataset(_series(0), loss=loss, learning_rate=1e-2, **sizes)


def deep_ar(_):
    from pytorch_forecasting import DeepAR

    return DeepAR.from_dataset(_series(0), hidden_size=8, rnn_layers=1, dropout=0.0, learning_rate=1e-2)


def all_but(*beginnings):
    """An encoder that is everything but some parts."""
    return lambda module: [name for name, _ in module.named_parameters() if not name.startswith(beginnings)]


KINDS = [
    Kind(
        "Forecast of quantiles, `pytorch-forecasting` TemporalFusionTransformer",
        fusion,
        windows,
        head=("output_layer.",),
        encoder=all_but("output_layer."),
    ),
    Kind(
        "Forecast of a distribution, `pytorch-forecasting` DeepAR",
        deep_ar,
        windows,
        head=("distribution_projector.",),
        encoder=all_but("distribution_projector."),
    ),
]

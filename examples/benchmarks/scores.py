"""What feature scores cost: seconds of each, and of two of them in the package `transformer-ranker`, in turn.

Both packages get the same features, float32, in one process on one thread; the ratio is taken pair by pair. Seconds
are the processor's, so that other work on the machine counts little. `transformer-ranker` has the regularised H-score
and LogME; its estimators are used alone.

    pip install transformer-ranker
    python examples/benchmarks/scores.py
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from transformer_ranker.estimators import HScore, LogME

from pge_lightning.functional import scores

PAIRS = {
    "H-score, regularised": (scores.regularized_h_score, HScore),
    "LogME": (scores.log_me, LogME),
}
ALONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "H-score": scores.h_score,
    "TransRate": scores.trans_rate,
    "GBC, spherical": scores.gaussian_bhattacharyya,
    "GBC, diagonal": lambda features, target: scores.gaussian_bhattacharyya(features, target, "diagonal"),
    "PARC": scores.parc,
    "SFDA": scores.sfda,
    "PACTran": scores.pactran,
    "kNN": scores.knn_accuracy,
    "NLEEP": scores.nleep,
    "linear probe": scores.linear_probe,
}


def drawn(samples: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Correlated features as behind a ReLU, with class means of a third of their spread."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (samples,), generator=generator)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    noise = torch.randn(samples, width, generator=generator) @ mixing
    return (noise + 0.3 * torch.randn(classes, width, generator=generator)[target]).relu(), target


def timed(score: Callable[[Tensor, Tensor], object], features: Tensor, target: Tensor) -> tuple[float, float]:
    """Processor seconds and value of one call."""
    begin = time.process_time()
    value = float(score(features, target))  # type: ignore[arg-type]  # a number or a tensor of one
    return time.process_time() - begin, value


def main() -> None:
    """Print one line per score: median seconds, and beside the other package's the ratio and how values differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("samples", 5000), ("width", 2048), ("classes", 100), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--alone", choices=["all", "none"], default="all", help="the scores that only this package has")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    samples = drawn(options.samples, options.width, options.classes)
    print(f"{options.samples} x {options.width} features, {options.classes} classes, one thread")
    print(f"{'score':<22} {'ours s':>8} {'theirs s':>9} {'ratio':>6} {'range':>12} {'values differ by':>17}")
    for name, (ours, theirs) in PAIRS.items():
        rows = [
            (timed(ours, *samples), timed(lambda x, y, kind=theirs: kind().fit(embeddings=x, labels=y), *samples))
            for _ in range(options.rounds)
        ]
        ratios = sorted(mine[0] / other[0] for mine, other in rows)
        seconds = [statistics.median(side[0] for side in column) for column in zip(*rows, strict=True)]
        (_, value), (_, reference) = rows[0]
        print(
            f"{name:<22} {seconds[0]:>8.2f} {seconds[1]:>9.2f} {statistics.median(ratios):>6.3f} "
            f"{ratios[0]:>6.3f}-{ratios[-1]:.3f} {abs(value / reference - 1):>15.0e}",
            flush=True,
        )
    for name, score in ALONE.items() if options.alone == "all" else ():
        print(f"{name:<22} {timed(score, *samples)[0]:>8.2f}", flush=True)


if __name__ == "__main__":
    main()

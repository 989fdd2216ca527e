"""Samples for tests of feature scores: public sets with the reference's source head, and drawn ones."""

import warnings

import torch
from hypothesis import strategies as st
from sklearn.datasets import load_iris, load_wine


def public_set(name):
    """Features in float64 and classes: iris raw, wine z-scored by the population's deviation."""
    x, y = (load_iris if name == "iris" else load_wine)(return_X_y=True)
    features = torch.from_numpy(x)
    if name == "wine":
        features = (features - features.mean(dim=0)) / features.std(dim=0, unbiased=False)
    return features, torch.from_numpy(y)


def head_of_seven(features):
    """Probabilities by the reference's source head: logits X W with W[i, j] = sin(1 + i + 7 j)."""
    rows, columns = torch.meshgrid(torch.arange(features.shape[1]), torch.arange(7), indexing="ij")
    return (features @ torch.sin(1.0 + rows + 7.0 * columns).double()).softmax(dim=1)


def blobs(seed=0, classes=3, per_class=12, width=5, spread=1.0):
    """Gaussian clouds, one per class, in random order."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(classes).repeat(per_class)[torch.randperm(classes * per_class, generator=generator)]
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return centres[target] + spread * torch.randn(len(target), width, generator=generator, dtype=torch.float64), target


def renamed(target, seed=0):
    """The same classes by other names, neither in order nor from 0."""
    names = torch.randperm(1000, generator=torch.Generator().manual_seed(seed)) - 500
    return names[target]


def quietly(score, *args, **kwargs):
    """The score as a float, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(score(*args, **kwargs))


@st.composite
def labels(draw, samples=12, most=4):
    """Classes of some samples, two or more of them with two samples or more."""
    rest = draw(st.lists(st.integers(0, most - 1), min_size=samples - 4, max_size=samples - 4))
    return torch.tensor([0, 0, 1, 1, *rest])[torch.tensor(draw(st.permutations(range(samples))))]


@st.composite
def distributions(draw, samples=12):
    """Predictions of a source head, ``[samples, K]``, from undecided to certain."""
    width, seed, sharpness = draw(st.integers(2, 5)), draw(st.integers(0, 1000)), draw(st.sampled_from([0.1, 3.0, 1e4]))
    logits = torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharpness * logits).softmax(dim=1)

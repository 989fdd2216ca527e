"""Two calls: train sources with a callback, then choose one before fine-tuning on the target.

    python examples/collect_and_select.py

Sources are 5,000 MNIST images, upright and in two disguises; the target is 200 of scikit-learn's digits.
"""

import tempfile

import lightning as L

from pge_lightning import PrincipalGradientCallback, SourceSelector
from pge_lightning.data import MlxtendMnist, SklearnDigits
from pge_lightning.reference import Classifier, ImageEncoder

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


def trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    """A Trainer of few words."""
    return L.Trainer(max_epochs=epochs, callbacks=list(callbacks), enable_progress_bar=False, **QUIET)


def train_sources(library: str) -> None:
    """Train a model per source as ever; the callback collects the signature and registers the encoder."""
    for name, transform in (("mnist", None), ("turned", "rotate90"), ("negative", "invert")):
        data = MlxtendMnist(size=16, transform=transform, part=[0.0, 0.25])
        collect = PrincipalGradientCallback(library, name, probe="fast", metric="val_acc")
        trainer(2, collect).fit(Classifier(ImageEncoder(), num_classes=10, lr=2e-3), datamodule=data)


def fine_tune(library: str) -> float:
    """Choose a source for the target, load its encoder, and go on as ever."""
    data = SklearnDigits(size=16, labels=200, batch_size=20)
    model = Classifier(ImageEncoder(), num_classes=10, lr=2e-3)
    selection = SourceSelector(library, probe="fast").select(model, data)
    fit = trainer(5)
    fit.fit(model, datamodule=data)
    accuracy = fit.callback_metrics["val_acc"].item()
    print(f"Fine-tuned from '{selection.source}': accuracy {accuracy:.3f}.")
    return accuracy


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        train_sources(folder)
        fine_tune(folder)

"""One call: the source is chosen when `trainer.fit` starts.

    python examples/one_call.py

Sources are two parts of scikit-learn's digits in disguise; the target is 100 upright ones from the rest.
"""

import tempfile

import lightning as L

from pge_lightning import PrincipalGradientCallback, Probe, SourceSelectionCallback
from pge_lightning.data import SklearnDigits
from pge_lightning.reference import Classifier, ImageEncoder

# All sources and targets of a library are probed in the same way. This is less than the default does.
PROBE = Probe(name="short", restarts=4, steps=20, budgets=(100,))
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


def fit(data: SklearnDigits, callback: L.Callback, epochs: int = 4) -> float:
    """Train a model as ever, with one callback more; gives its accuracy on the test images."""
    model = Classifier(ImageEncoder(), num_classes=10, lr=2e-3)
    trainer = L.Trainer(max_epochs=epochs, callbacks=[callback], enable_progress_bar=False, **QUIET)
    trainer.fit(model, datamodule=data)
    return trainer.callback_metrics["val_acc"].item()


def main(library: str) -> SourceSelectionCallback:
    """Fill a library, then fine-tune from what the callback chooses."""
    for name, part in (("turned", [0.0, 0.4]), ("edges", [0.4, 0.8])):
        data = SklearnDigits(size=16, part=part, transform="rotate90" if name == "turned" else name)
        fit(data, PrincipalGradientCallback(library, name, probe=PROBE))
    target = SklearnDigits(size=16, part=[0.8, 1.0], labels=100, batch_size=20)
    selector = SourceSelectionCallback(library, probe=PROBE)
    print(f"Fine-tuned: accuracy {fit(target, selector):.3f}.")
    return selector


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

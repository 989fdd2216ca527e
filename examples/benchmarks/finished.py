"""A finished evaluation, opened again by the benchmarks that go on from it."""

import os

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from pge_lightning.app.study import Study, start_study


def open_study(family: str, library: str, results: str) -> Study:
    """The study of a family, wherever its sources and results lie."""
    folders = [f"library.root={os.path.abspath(library)}", f"evaluate.results={os.path.abspath(results)}"]
    running = GlobalHydra.instance()
    outer, running.hydra = running.hydra, None  # a benchmark may be a Hydra application itself
    try:
        with initialize_config_module("pge_lightning.conf", version_base="1.3"):
            return start_study(compose("pge", overrides=[f"family={family}", *folders, "output_dir=."]))
    finally:
        running.hydra = outer

"""The benchmark of costs: measurements in processes of their own, of which one may fail."""

import math
import operator
import sys
from importlib import import_module
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
measured = import_module("efficiency").measured


def test_medians_of_what_processes_send():
    assert measured(2, operator.methodcaller("send", (2.0, 3.0))) == (2.0, 3.0)


def test_a_measurement_that_fails_does_not_end_the_run(capfd):
    assert all(math.isnan(value) for value in measured(2, math.sqrt))  # which takes no connection
    assert capfd.readouterr().err.count("TypeError") == 1

"""Benches show one progress bar of their own."""

from __future__ import annotations

import logging
import warnings

import datasets
import transformers


def quieten() -> None:
    """Silences the libraries' progress bars and notes, which would break up our own progress bar."""
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="trl|transformers|accelerate|torch")

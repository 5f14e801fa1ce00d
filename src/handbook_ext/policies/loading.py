"""Models from checkpoints that are whole: nothing of one is left at random weights, ignored, of another shape or not a number."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from handbook_ext.core.errors import UserError

SHOWN = 3  # Names of weights that a line has.
REPORT = "LOAD REPORT"


@contextmanager
def loading_errors(source: str) -> Iterator[None]:
    """Returns a context that raises UserError, in one line, for what the libraries raise when a checkpoint cannot be loaded."""
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{source}: its weights are damaged ({_first_line(error)}); copy or fetch the checkpoint again") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{source}: holds a pickle with more than weights in it, which was not run; give a checkpoint with safetensors"
        ) from None
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{source}: cannot be loaded ({_first_line(error)}); check the name, the network and your access, or give a folder"
        ) from None


def load_whole(kind: Any, source: str | Path, *, new_head: bool = False, shown: str | None = None, **options: Any) -> Any:
    """Returns what `kind.from_pretrained(source, **options)` does, where the checkpoint has exactly the weights of the model.

    What rightly lacks, such as the second of two tied weights or a buffer, the library knows. new_head: the model gets a head
    of its own, drawn at random, so that the checkpoint may lack one, or have another. Raises UserError, which names the weights.
    """
    place = str(shown or source)
    # Shapes that differ are told with all else that does, rather than by an error of the library that names none.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with loading_errors(place), _without_report():
        try:
            model, found = kind.from_pretrained(source, **told, **options)
        except RuntimeError as error:  # Under ZeRO-3 shapes are an error whatever was asked for.
            if "size mismatch" not in str(error):
                raise
            line = next(line for line in str(error).splitlines() if "size mismatch" in line)
            raise UserError(f"{place}: its weights do not fit its config.json ({line.strip()}); {REMEDY}") from None
    shapes = {name: f"{list(stored)} instead of {list(wanted)}" for name, stored, wanted in found["mismatched_keys"]}
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"])
    if new_head:
        missing, unexpected = ({name for name in names if not _of_head(name, model)} for names in (missing, unexpected))
        shapes = {name: text for name, text in shapes.items() if not _of_head(name, model)}
    refuse_other_weights(place, missing, unexpected, shapes, type(model).__name__)
    return model


REMEDY = "restore the file that is incomplete or edited, or fetch the checkpoint again"


def refuse_other_weights(
    source: str, missing: Collection[str], unexpected: Collection[str], shapes: Mapping[str, str], model: str
) -> None:
    """Raises UserError where a checkpoint lacks weights of the model, has others, or some of another shape, in words by name."""
    faults = []
    if missing:
        faults.append(f"lacks {_named(missing)}, which would stay random")
    if shapes:
        faults.append(f"has {_named([f'{name} ({text})' for name, text in sorted(shapes.items())])}: another shape")
    if unexpected:
        faults.append(f"has {_named(unexpected)}, which this model has no place for and would be ignored")
    if faults:
        raise UserError(f"{source}: read as {model}, this checkpoint {'; it '.join(faults)}; {REMEDY}")


def refuse_not_finite(model: torch.nn.Module, source: str) -> None:
    """Raises UserError for a model with a weight that is NaN or infinite: nothing that it says would mean anything."""
    # Under ZeRO-3 a process sees its own share of a weight.
    found = first_not_finite((name, getattr(weight, "ds_tensor", weight)) for name, weight in model.named_parameters())
    if found is not None:
        raise UserError(
            f"{source}: {found}; a policy with such weights computes nothing: fetch the checkpoint again, or give another"
        )


def first_not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns in words which weight is the first that holds NaN or infinity; None where all are finite numbers."""
    for name, weight in weights:
        if not weight.numel() or not weight.is_floating_point() or weight.is_meta:
            continue
        # Without a mask of the weight's size in memory; one nan makes both nan.
        least, most = torch.aminmax(weight.detach())
        if not bool(torch.isfinite(least) & torch.isfinite(most)):
            return f"the weight {name} holds {'NaN' if bool(torch.isnan(least)) else 'infinity'}"
    return None


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights of a folder's safetensors files by name, one at a time in memory."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name)


def refuse_diverged(folder: Path) -> None:
    """Raises UserError where training has left a weight that is NaN or infinite in the safetensors files of a folder."""
    found = first_not_finite(stored_weights(folder))
    if found is not None:
        raise UserError(
            f"{folder}: training has diverged: {found}, so nothing is published; lower learning_rate or max_grad_norm, or raise "
            "warmup_ratio, and run make: it then starts afresh"
        )


def _of_head(name: str, model: Any) -> bool:
    """Tells whether a weight belongs to what stands on the body of a model, such as a language-model head or a pooler."""
    first, inside = name.partition(".")[0], {each for each, _ in model.base_model.named_children()}
    # A checkpoint of the body alone names its weights without the name of the body.
    return ".pooler." in f".{name}" or first not in {model.base_model_prefix, *inside}


def _named(names: Collection[str]) -> str:
    """Returns the first names, and how many there are in all."""
    shown: Sequence[str] = sorted(names)[:SHOWN]
    return f"{len(names)} weight{'s' * (len(names) > 1)} ({', '.join(shown)}{', ...' * (len(names) > SHOWN)})"


def _first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def _without_report() -> Iterator[None]:
    """Returns a context in which transformers does not print its table of weights: what is wrong becomes an error."""

    def other(record: logging.LogRecord) -> bool:
        """Tells whether a record is another one."""
        return REPORT not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)

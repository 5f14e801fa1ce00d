"""Shows the steps of a training on the console, in place of the bar and the printed metrics of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainingArguments

from handbook_ext.core.bars import Bar


class ShowSteps(TrainerCallback):
    """A bar of the optimizer steps, those of a resumed checkpoint done already; transformers' own lines are in the log."""

    def __init__(self) -> None:
        """Starts without a bar."""
        self.bar: Bar | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows the bar."""
        self.bar = Bar("", state.max_steps, "steps", done=state.global_step).__enter__()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts a step."""
        if self.bar is not None:
            self.bar.update()

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None

"""What the papers say of their setup besides the recipe: settings with their sources, hardware, versions, rows of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from handbook_ext.recipes.run import Run
from handbook_ext.recipes.tree import Tree
from handbook_ext.reports.paper_tables import NONE, PaperTable, read_paper_table

# The column of the papers' settings that a model's recipes are of.
COLUMNS = {
    "zephyr": ("selm-settings", "Zephyr-7B"), "llama3": ("selm-settings", "Llama-3-8B-Instruct"),
    "phi3": ("selm-settings", "Phi-3-mini-4k-instruct"), "tinyllama": ("sera4", "TinyLlama-1.1B"),
    "pythia": ("sera4", "Pythia-2.8B"), "mistral": ("sera4", "Mistral-7B"),
}  # fmt: skip
# The row of the papers' settings for a setting of a recipe, and how its text is made a value; betas of SeRA are by loss.
ROWS = {
    "train.alpha": "alpha", "train.beta": "beta", "train.global_batch_size": "global batch",
    "train.num_train_epochs": "epochs per iteration", "generate.temperature": "sampling temperature",
    "generate.num_completions": "samples per prompt", "generate.max_new_tokens": "max_tokens", "data.portions": "portions",
}  # fmt: skip
SERA_ROWS = {
    "train.learning_rate": "learning rate", "train.per_device_train_batch_size": "per-device batch",
    "train.global_batch_size": "effective batch", "train.num_train_epochs": "epochs per iteration", "select.keep": "K / N",
    "select.gamma": "gamma", "generate.num_completions": "candidates per prompt", "generate.temperature": "sampling temperature",
    "generate.top_p": "top-p",
}  # fmt: skip
BETAS = {"sigmoid": "beta of DPO", "hinge": "beta of SLiC-HF", "ipo": "beta of IPO"}
ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Setup:
    """A paper's setup of one model: its settings' rows, hardware, versions of libraries, rows of data, each with its source."""

    table: PaperTable
    column: str
    rows_of: Mapping[str, str]
    hardware: str
    hardware_source: str
    versions: Mapping[str, str]
    versions_source: str
    rows: Mapping[str, int]
    rows_source: str

    def source_of(self, name: str, tree: Tree) -> str:
        """Returns where the paper's value of a setting stands: the paper itself, or the line of the recipe."""
        row = self.rows_of.get(name)
        if row is not None and (cell := self.table.grid.get(("", row, self.column))) is not None and cell.value != NONE:
            return cell.source
        key = tuple(name.split("."))
        mark = tree.where(key) if key[0] in tree.values else None
        return "" if mark is None else str(mark)

    def stated(self, name: str) -> float | None:
        """Returns the number that the paper states for a setting, None where it states none."""
        row = self.rows_of.get(name)
        cell = None if row is None else self.table.grid.get(("", row, self.column))
        return None if cell is None else cell.number


def setup_of(run: Run) -> Setup:
    """Returns the paper's setup for a recipe at paper scale; for any other model one that states nothing."""
    table_name, column = COLUMNS.get(run.file.parent.name, ("selm-settings", ""))
    table = read_paper_table(table_name)
    selm = table_name == "selm-settings"
    rows_of = ROWS if selm else SERA_ROWS | {"train.beta": BETAS.get(run.settings.train.loss_type, "")}
    machine = table.grid.get(("", "hardware" if selm else "GPUs", column))
    stated = machine is not None and machine.value != NONE
    pins = read_paper_table("selm-versions") if selm and column else None
    sizes = read_paper_table("prompt-sets")
    rows = {}
    if run.settings.data.dataset == ULTRAFEEDBACK:
        parts = {"train": "UltraFeedback binarized, train_prefs", "test": "UltraFeedback binarized, test_prefs"}
        rows = {part: int(sizes.number("", row, "prompts")) for part, row in parts.items()}
    return Setup(
        table, column, rows_of, machine.value if machine is not None and stated else NOT_STATED,
        machine.source if machine is not None and stated else "", {} if pins is None else {c.row: c.value for c in pins.cells},
        "SELM: code, setup.py", rows, "the data set itself",
    )  # fmt: skip

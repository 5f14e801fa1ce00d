"""A policy and its run's data to a hub on loopback, by the real client: what goes, what stays, what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from handbook_ext.core.errors import UserError
from handbook_ext.reports.shipment import data_shipment, laid_out, policy_shipment
from tests.recipe_folder import ROOT
from tests.reports.hub_server import HubServer, Repo

PUSH = ROOT / "scripts" / "push_policy.py"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


def push(url: str, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script against a hub; transfers go by LFS, since Xet's storage is another protocol."""
    own = {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_x",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("TOKEN", "KEY"))}
    command = [sys.executable, str(PUSH), *map(str, words)]
    return subprocess.run(command, env=kept | own | environment, capture_output=True, text=True, check=False)


def test_policy_and_data_arrive_whole_in_private_repositories(made: Path, hub: HubServer) -> None:
    done = push(hub.url, made / "iter1", "--repo", "me/a-policy")
    assert (done.returncode, done.stderr) == (0, "")
    policy, data = hub.repos["models/me/a-policy"], hub.repos["datasets/me/a-policy-data"]
    assert policy.private and data.private
    folder = made / "iter1" / "policy"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert policy.files[name] == (folder / name).read_bytes()
    assert set(policy.files) == {"model.safetensors", "config.json", "tokenizer.json", "manifest.json", "README.md"}
    assert 'from_pretrained("me/a-policy")' in policy.files["README.md"].decode()
    assert data.files["iter1/pairs.jsonl"] == (made / "iter1/pairs.jsonl").read_bytes()
    assert {
        "iter0/eval.json", "iter1/completions.jsonl", "iter1/rankings.jsonl", "iter1/quiz/answers.jsonl",
        "data/rows/manifest.json",
        "prompts/quiz/prompts.jsonl", "iter1/policy/trainer_state.json",
    } <= set(data.files)  # fmt: skip
    assert not [name for name in data.files if name.endswith((".safetensors", ".bin", ".html"))]
    assert hub.tokens <= {"Bearer hf_x", None}
    assert "sent: " in done.stdout and "training_args.bin: a pickle" in done.stdout


def test_the_data_load_by_the_names_of_their_card(made: Path, tmp_path: Path) -> None:
    with laid_out(data_shipment(made / "iter1", "me/a-policy-data")) as folder:
        configs = DatasetCard.load(folder / "README.md").data.configs
        names = [each["config_name"] for each in configs]
        assert {
            "iter0-pairs",
            "iter1-pairs",
            "iter1-completions",
            "iter1-rankings",
            "prompts-quiz-prompts",
            "iter1-quiz-answers",
        } <= set(names)
        for name in names:
            rows = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path))
            assert len(rows) > 0, name
        pairs = load_dataset(str(folder), "iter1-pairs", split="train", cache_dir=str(tmp_path))
        assert pairs[0]["chosen"][0]["role"] == "assistant"


def test_of_an_earlier_iteration_nothing_later_goes(made: Path) -> None:
    names = data_shipment(made / "iter0", "me/x-data").files
    assert not [name for name in names if name.startswith(("iter1", "report"))] and "iter0/pairs.jsonl" in names


def test_nor_does_what_a_later_iteration_kept_on_its_way(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    for number in (0, 1):
        shutil.copytree(run / f"iter{number}/quiz", run / f"iter{number}@50")
    for path in (*run.glob("*@50/*.manifest.json"), *run.glob("*@50/*.yaml")):
        path.write_text(path.read_text().replace("../../", "../"))
    names = {name.split("/")[0] for name in data_shipment(run / "iter0", "me/x-data").files}
    assert "iter0@50" in names and not names & {"iter1", "iter1@50"}


def test_a_dry_run_shows_files_bytes_and_card_and_asks_nobody(made: Path, hub: HubServer) -> None:
    done = push(hub.url, made / "iter1", "--repo", "me/a-policy", "--dry", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr, hub.asked) == (0, "", [])
    size = (made / "iter1/policy/model.safetensors").stat().st_size
    assert f"{size:>16,}  model.safetensors" in done.stdout
    assert "me/a-policy (model, private): 5 files" in done.stdout and "me/a-policy-data (dataset, private): " in done.stdout
    assert "# mine-selm-iter1" in done.stdout and "license: apache-2.0" in done.stdout
    assert done.stdout.endswith("nothing was sent: without DRY=1 this would go\n")
    less = push(hub.url, made / "iter1", "--repo", "me/a-policy", "--dry", "--no-data", "--public")
    assert "(model, public)" in less.stdout and "-data" not in less.stdout


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_what_the_hub_or_the_network_refuses_is_one_line(made: Path, hub: HubServer) -> None:
    words = (made / "iter1", "--repo", "me/a-policy")
    hub.repos["models/me/a-policy"] = Repo(private=False)
    assert "is public at the hub, and --private was asked for; nothing was sent" in error_of(push(hub.url, *words))
    assert hub.repos["models/me/a-policy"].files == {}
    refusing = HubServer(refuse=403)
    assert "check HF_TOKEN and your rights" in error_of(push(refusing.url, *words, "--no-data"))
    refusing.close()
    assert "check the network, or look with DRY=1" in error_of(push(refusing.url, *words, "--no-data"))


WORDS = [
    (["runs/mine-selm", "--repo", "me/x"], "is no trained policy of a run"),
    (["runs/mine-selm/iter1"], "no repository is named for runs/mine-selm/iter1; give REPO=owner/name"),
    (["runs/mine-selm/iter1", "--repo", "me"], "is no repository of the hub"),
    (["runs/mine-selm/iter1", "--repo", "me/../x"], "is no repository of the hub"),
    (["runs/mine-selm/iter1", "--repo", "me/x"], "HF_HUB_OFFLINE is set, so nothing was sent"),
]


@pytest.mark.parametrize(("words", "said"), WORDS)
def test_words_that_name_no_policy_or_no_repository_are_refused(made: Path, words: list[str], said: str) -> None:
    spec = importlib.util.spec_from_file_location("push_policy", PUSH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(UserError, match=said):
        module.main(words)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "mine-selm")
    return tmp_path / "mine-selm"


def test_an_unfinished_or_changed_policy_is_refused(copy: Path) -> None:
    policy = copy / "iter1" / "policy"
    weights = policy / "model.safetensors"
    stat = weights.stat()
    weights.write_bytes(b"\0" * stat.st_size)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # Size and time as recorded: only reading tells.
    with pytest.raises(UserError, match="is not what its manifest says"):
        policy_shipment(copy / "iter1", "me/x")
    weights.write_bytes(b"short")
    with pytest.raises(UserError, match="was changed after stage 'train' made it"):
        policy_shipment(copy / "iter1", "me/x")
    (policy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"is not finished: manifest\.json is missing"):
        policy_shipment(copy / "iter1", "me/x")
    with pytest.raises(UserError, match="is not finished"):
        policy_shipment(copy / "iter7", "me/x")


def test_what_looks_like_a_secret_or_names_this_machine_stops_everything(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipment = policy_shipment(made / "iter1", "me/x")
    for name, content, words in (
        (
            "notes.txt",
            b"token hf_" + b"a" * 34,
            r"me/x: notes.txt:1 holds what looks like a token of the Hugging Face hub; take it out",
        ),
        ("id_rsa", b"x", "is called like a file of secrets"),
        ("config.json", json.dumps({"_name_or_path": str(Path.cwd() / "base")}).encode(), "names .*, a folder of this machine"),
    ):
        files = {**shipment.files, name: content}
        with pytest.raises(UserError, match=words), laid_out(type(shipment)("me/x", "model", files)):
            pass
    monkeypatch.setenv("SOME_API_KEY", "mistral-of-the-north")
    with (
        pytest.raises(UserError, match="holds the value of SOME_API_KEY"),
        laid_out(type(shipment)("me/x", "model", {**shipment.files, "a.json": b'{"a": "mistral-of-the-north"}'})),
    ):
        pass

"""The network of PairRM (arXiv 2306.02561): a DeBERTa encoder and a head that reads a prompt and two candidates together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.judging.deberta import DebertaReader, readable
from handbook_ext.policies.fetching import fetched
from handbook_ext.policies.loading import first_not_finite, loading_errors, refuse_other_weights
from handbook_ext.policies.models import without_dropout

SOURCE, CANDIDATE1, CANDIDATE2, CANDIDATE = "<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"
MARKERS = (SOURCE, CANDIDATE1, CANDIDATE2, CANDIDATE)
"""The tokens behind which the three texts stand, in the order in which the original adds them to a vocabulary."""
WEIGHTS = "model.safetensors"


class PairNetwork(nn.Module):
    """The encoder and the head; modules are called as both layouts of the published weights call them."""

    def __init__(self, config: Any, tasks: int) -> None:
        """Builds the network with random weights; `tasks` are the scores that the head gives and that are averaged."""
        super().__init__()
        size = config.hidden_size
        self.pretrained_model = AutoModel.from_config(config)
        self.reader: DebertaReader | None = None
        self.head_layer = nn.Sequential(
            nn.Dropout(0.0), nn.Linear(2 * size, size), nn.Tanh(), nn.Dropout(0.0), nn.Linear(size, tasks)
        )

    def settle(self, device: torch.device, dtype: torch.dtype) -> PairNetwork:
        """Returns the network where and as it is to judge; from here on its weights do not change."""
        self.to(device=device, dtype=dtype).eval()
        if readable(self.pretrained_model.config):
            self.reader = DebertaReader(self.pretrained_model)
        return self

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        """Returns by how much the first candidate is better than the second, (rows,), in logits.

        ids, mask: (rows, tokens). places: (rows, 3), where the markers of prompt, first and second candidate lie.
        """
        if self.reader is not None:
            states = self.reader.read(ids, mask, places)
        else:
            hidden = self.pretrained_model(input_ids=ids, attention_mask=mask).last_hidden_state
            states = hidden[torch.arange(len(ids), device=ids.device)[:, None], places]
        source, first, second = states.unbind(1)
        scores = [self.head_layer(torch.cat([source, each], dim=-1)) for each in (first, second)]
        difference: Tensor = (scores[0] - scores[1]).mean(dim=-1)
        return difference


def load_pairrm(source: str, revision: str | None = None) -> tuple[PairNetwork, PreTrainedTokenizerBase]:
    """Returns network and tokenizer of a folder or hub id in one of two layouts, that of PairRM or that of PairRM-hf.

    The configuration of the first names the model whose configuration and tokenizer it takes, that of the second is the encoder's
    own. Raises UserError for what is neither.
    """
    folder = fetched(source, revision, None, Path()).path
    weights = folder / WEIGHTS
    if not weights.is_file():
        instead = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        raise UserError(
            f"rank.model: {source} has no {WEIGHTS}"
            + (f", but {instead}, a pickle that could run code; convert it to safetensors" if instead else "; name a PairRM")
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"rank.model: {source} has no config.json; name a PairRM")
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    original = about.get("ranker_type") is not None
    if original and about["ranker_type"] != "pairranker":
        raise UserError(
            f"rank.model: {source} is a {about['ranker_type']}, not a pairranker; name llm-blender/PairRM or one like it"
        )
    base = str(about.get("model_name") or folder) if original else str(folder)
    with loading_errors(base):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    # As special tokens, so that none of them comes out of a text.
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    without_dropout(config)
    with loading_errors(f"rank.model: {source}"):
        state = load_file(weights)
    embeddings = [name for name in state if name.endswith("word_embeddings.weight")]
    if not embeddings:
        raise UserError(f"rank.model: {source} has no word embeddings among its weights; name a PairRM")
    config.vocab_size = len(state[embeddings[0]])
    network = PairNetwork(config, int(about.get("n_tasks") or 1))
    fill(network, state, source, base)
    if config.vocab_size < len(tokenizer) or (original and config.vocab_size > len(tokenizer)):
        raise UserError(
            f"rank.model: {source} was made for another vocabulary than that of {base}; name the model of its training"
        )
    return network, tokenizer


def fill(network: PairNetwork, state: dict[str, Tensor], source: str, base: str) -> None:
    """Puts stored weights into the network; raises UserError where they are not exactly its own, or not finite numbers."""
    wanted = {name: list(weight.shape) for name, weight in network.state_dict().items()}
    shapes = {
        name: f"{list(weight.shape)} instead of {wanted[name]}"
        for name, weight in state.items()
        if name in wanted and list(weight.shape) != wanted[name]
    }
    refuse_other_weights(
        f"rank.model: {source}", wanted.keys() - state.keys(), state.keys() - wanted.keys(), shapes, f"PairRM on {base}"
    )
    broken = first_not_finite(state.items())
    if broken is not None:
        raise UserError(f"rank.model: {source}: {broken}; fetch it again, or name another")
    network.load_state_dict(state)

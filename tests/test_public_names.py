"""`import handbook_ext`: a small API that is documented, and that costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import handbook_ext


@pytest.mark.parametrize("name", handbook_ext.__all__)
def test_each_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(handbook_ext, name)
    assert name in dir(handbook_ext)
    assert name in (handbook_ext.__doc__ or ""), "the package's docstring leaves it out"
    if isinstance(value, dict):
        assert all(row.summary for row in value.values())
    else:
        assert (value.__doc__ or "").strip()
        assert not value.__doc__.startswith(f"{name}("), "a dataclass without a docstring of its own"


def test_the_trainers_constructor_from_rows_is_documented() -> None:
    assert "max_length" in (handbook_ext.PreferenceTrainer.from_rows.__doc__ or "")


def test_a_name_that_is_not_public_is_missing() -> None:
    with pytest.raises(AttributeError, match="module 'handbook_ext' has no attribute 'nonsense'"):
        handbook_ext.nonsense  # noqa: B018


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic', 'datasets', 'trl', 'peft'}"
    code = f"import sys, handbook_ext; dir(handbook_ext); assert not {heavy} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)

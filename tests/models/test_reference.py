"""The reference of profiles is held to the code."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from agent.models.families import FAMILIES
from agent.models.profile import Basis, Group, ModelProfile

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text()


def test_every_field_group_and_basis_is_explained() -> None:
    for field in fields(ModelProfile):
        assert f"`{field.name}`" in PAGE, field.name
    for group in Group:
        assert group.value in PAGE, group
    for basis in Basis:
        assert f"`{basis.value}`" in PAGE


def test_every_architecture_with_rules_is_named() -> None:
    for model_type in FAMILIES:
        assert f"`{model_type}`" in PAGE, model_type

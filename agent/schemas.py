"""Writes what is derived from the models: JSON schemas for editors, reference pages, and the commented example.

`python -m agent.schemas` writes the files anew; a test fails where one is not what the models say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import DictSchema

from agent import pages
from agent.settings import NodeConfig
from agent.spec import DeploymentSpec
from agent.strict import Strict

JsonSchema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Without a title for each field, which would repeat its name; and mappings refuse names of another form."""

    def dict_schema(self, schema: DictSchema) -> JsonSchema:
        made = super().dict_schema(schema)
        for pattern, values in made.pop("patternProperties", {}).items():
            made |= {"propertyNames": {"pattern": pattern}, "additionalProperties": values}
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False


def spec_schema() -> JsonSchema:
    """JSON Schema (2020-12) of a deployment's spec."""
    return _schema(DeploymentSpec, "Spec of a deployment")


def config_schema() -> JsonSchema:
    """JSON Schema (2020-12) of agentd.yaml and of its drop-ins, where nothing is required."""
    schema = _schema(NodeConfig, "Configuration of a node")
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    return schema


def _schema(model: type[Strict], title: str) -> JsonSchema:
    schema = model.model_json_schema(schema_generator=_Generator)
    for part in schema["$defs"].values():
        part.pop("title", None)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": title}


def derived_files() -> dict[str, str]:
    """Path in the repository -> contents."""
    return {
        "configs/schema/deployment.schema.json": _json(spec_schema()),
        "configs/schema/agentd.schema.json": _json(config_schema()),
        "configs/agentd.example.yaml": pages.example(),
        "docs/reference/spec.md": pages.spec_page(spec_schema()),
        "docs/reference/config.md": pages.config_page(config_schema()),
    }


def _json(schema: JsonSchema) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all derived files."""
    root = Path(__file__).parent.parent
    for name, text in derived_files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

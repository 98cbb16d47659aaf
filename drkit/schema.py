"""JSON Schema of the configuration files, for editors: the same field documentation that errors quote."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from drkit.documents import parse_document
from drkit.policy_fields import write_duration
from drkit.validation import Section


def schema_of(model: type[Section]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a file."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_FileSchema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_with_examples(schema)}


class _FileSchema(GenerateJsonSchema):
    """Writes defaults as the file would have them, which is not ISO 8601 for durations."""

    def encode_default(self, dft: Any) -> Any:
        return write_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def _with_examples(node: Any) -> Any:
    """Turn the examples, which fields hold as YAML text for messages, into the values that they mean."""
    if isinstance(node, list):
        return [_with_examples(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: [_value(text) for text in item] if key == "examples" and isinstance(item, list) else _with_examples(item)
        for key, item in node.items()
    }


def _value(text: Any) -> Any:
    return parse_document(f"example: {text}", "example").content["example"] if isinstance(text, str) else text

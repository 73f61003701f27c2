"""A JSON object as it is read or written: DeepSpeed's settings, a Hugging Face config, what a command prints.

What code relies on field by field has a NamedTuple, a dataclass or a TypedDict; to_json() makes a JSON object of it.
"""

from typing import Any

JsonObject = dict[str, Any]

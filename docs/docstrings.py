"""How docstrings are read for the site; an extension of griffe, which mkdocstrings reads Python by."""

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension, Object


class ProjectStyle(Extension):
    """Takes the `help` of a dataclass field as its docstring, and an `Example:` for what it is."""

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **kwargs: Any) -> None:
        """For fields like `lora_r: int = field(default=16, metadata={"help": "Rank."})`."""
        call = getattr(node, "value", None)
        if attr.docstring is None and isinstance(call, ast.Call):
            for keyword in call.keywords:
                if keyword.arg == "metadata":
                    text = ast.literal_eval(keyword.value)["help"]
                    attr.docstring = Docstring(text, parent=attr)

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """griffe shows `Examples:` as code, and `Example:` as running text."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")

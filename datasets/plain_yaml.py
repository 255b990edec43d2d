"""YAML that people write, whatever is in it: plain values, or one sentence."""

import re
import reprlib
from typing import Any

import yaml

_LARGEST_NUMBER = 1 << 53
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_NOT_YAML = (
    yaml.YAMLError,
    RecursionError,
    ValueError,
    # PyYAML stumbles over values that are not what their tag says, such as "!!bool maybe".
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Makes plain values only, and nothing that outgrows the text."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merges: a few lines of them fill any memory."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "'<<' is not read here", key.start_mark
                )


def load_yaml(text: str) -> Any:
    """The value of a text in YAML; aliases may make it run in circles.

    Raises:
        ValueError: with the reason why it is none.
    """
    try:
        # A subclass of the safe loader, which makes plain values only, whatever the text asks for.
        return yaml.load(text, _Loader)
    except _NOT_YAML as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{reason:.300}") from error


def shown(value: Any) -> str:
    """A value for a message, however large it is, and in whatever circles it runs."""
    try:
        return f"{_SHORT.repr(value):.80}"
    except ValueError:  # Python does not spell out the largest of whole numbers.
        return "a number beyond reason"


def is_text(value: Any) -> bool:
    """Whether a value is text that a file can hold, which half a surrogate pair is not."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def is_number(value: Any) -> bool:
    """Whether a value is a number that fits a float."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER
    return isinstance(value, float)

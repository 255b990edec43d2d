"""Where on a network an arm is found."""

import re


def host_and_port(address: str, *, port: int, whose: str, example: str) -> tuple[str, int]:
    """The two parts of `host` or `host:port`.

    Args:
        address: as described.
        port: where none is given.
        whose: address it is, for the complaint.
        example: of one.

    Raises:
        ValueError: when it is none.
    """
    host, _, told = address.partition(":")
    if not host or not re.fullmatch(r"\d{0,5}", told):
        raise ValueError(f"address must be the {whose}, such as {example}, got {address!r}")
    return host, int(told or port)

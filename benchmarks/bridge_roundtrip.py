"""From an observation to a chunk and back: an unmodified openpi-client on this machine.

Two 224x224 images and a state go out, a chunk of ten actions comes back; the policy does nothing.
Ours is compared with a minimal server of the same protocol that calls the policy where the frame
arrives; both take turns, block by block.
"""

import sys
import time
import warnings

import numpy as np
from bridge_servers import observation, running
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from report import Figure, at_most, mean_interval, publish, quick_from_command_line

SEED = 0
REQUESTS = 200
"""In a block."""
WARM_UP = 50


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__ or "")
    blocks = 3 if quick else 25
    sent = observation(np.random.default_rng(SEED))
    with running("ours") as ours, running("minimal") as minimal:
        clients = {"ours": _client(ours), "minimal": _client(minimal)}
        seconds: dict[str, list[list[float]]] = {name: [] for name in clients}
        for client in clients.values():
            _ask(client, sent, WARM_UP)
        for block in range(blocks):
            # Whoever is first in a block may be the luckier one.
            for name in sorted(clients, reverse=bool(block % 2)):
                seconds[name].append(_ask(clients[name], sent, REQUESTS))
    figures = []
    for share, most_ms in ((0.5, 1.0), (0.99, 3.0)):
        milliseconds = {
            name: [1e3 * float(np.quantile(block, share)) for block in measured]
            for name, measured in seconds.items()
        }
        for name, values in milliseconds.items():
            value, low, high = mean_interval(values)
            told = f"{name}: round trip, p{100 * share:g}, ms (mean over blocks)"
            parts = {"figure": told, "value": value, "low": low, "high": high}
            rest = {"n": blocks, "seeds": (SEED,)}
            figures.append(
                at_most(most_ms, **parts, **rest) if name == "ours" else Figure(**parts, **rest)
            )
        if share == 0.5:
            ratios = np.array(milliseconds["ours"]) / np.array(milliseconds["minimal"])
            value, low, high = mean_interval(ratios.tolist())
            figures.append(
                at_most(
                    1.0,
                    figure="ours ÷ minimal server, p50",
                    value=value,
                    low=low,
                    high=high,
                    n=blocks,
                    seeds=(SEED,),
                )
            )
    return 0 if publish("bridge_roundtrip", figures, quick=quick) else 1


def _client(port: int) -> WebsocketClientPolicy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return WebsocketClientPolicy("127.0.0.1", port)


def _ask(client: WebsocketClientPolicy, sent: dict[str, object], count: int) -> list[float]:
    """Seconds of each round trip."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        client.infer(sent)
        taken.append(time.perf_counter() - begin)
    return taken


if __name__ == "__main__":
    sys.exit(main())

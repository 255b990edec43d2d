"""Where the policy server listens and who may talk to it.

This machine may; others by TLS and a token, or a certificate.
"""

import hmac
import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServerConfig:
    """Where and for whom the server works.

    Attributes:
        host: address to listen on; any but this machine's own needs TLS and a token.
        port: to listen on; 0 for any that is free.
        max_clients: connections at a time.
        idle_s: after which a connection that asks for nothing is closed.
        send_s: after which a client that does not take its answer is given up.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_clients: int = 128
    idle_s: float = 600.0
    send_s: float = 5.0


@dataclass(frozen=True)
class AccessConfig:
    """What a peer has to show.

    Attributes:
        certificate: file (PEM) that the server shows; with it connections are encrypted (TLS).
        key: its private key (PEM).
        client_authority: certificates (PEM) of whoever signs clients'; with it a client must show
            one (mutual TLS).
        token_file: file with the token that clients send, of 16 characters and more.
        insecure: listen to other machines without any of this.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_authority: Path | None = None
    token_file: Path | None = None
    insecure: bool = False


class Access:
    """Checks what peers show."""

    def __init__(self, config: AccessConfig, host: str):
        """Read the files, before anything listens on `host`.

        Raises:
            ValueError: when a file cannot be used, or strangers could get in.
        """
        self._token = None if config.token_file is None else _read_token(config.token_file)
        self.tls = _tls_context(config)
        guarded = self.tls is not None and (
            self._token is not None or config.client_authority is not None
        )
        if not _is_loopback(host) and not guarded and not config.insecure:
            raise ValueError(
                f"listening on {host} needs --certificate and --key, and --token-file or "
                "--client-authority, for whoever gets in can move the robot; listen on 127.0.0.1, "
                "or type --insecure on a network that is yours alone"
            )

    def admits(self, authorization: str | None) -> bool:
        """Whether a request with this `Authorization` header may go on."""
        if self._token is None:
            return True
        shown = (authorization or "").removeprefix("Api-Key ").encode()
        return hmac.compare_digest(shown, self._token)


def client_tls(
    authority: Path | None, certificate: Path | None, key: Path | None
) -> ssl.SSLContext:
    """What a client needs to reach a server with TLS.

    Args:
        authority: certificates (PEM) to trust besides the system's.
        certificate: to show to a server that asks for one.
        key: its private key.

    Raises:
        ValueError: when a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the TLS files cannot be used: {error}") from error
    return context


def _tls_context(config: AccessConfig) -> ssl.SSLContext | None:
    if config.certificate is None:
        if config.client_authority is not None or config.key is not None:
            raise ValueError("--key and --client-authority need --certificate")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.certificate, config.key)
        if config.client_authority is not None:
            context.load_verify_locations(config.client_authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the TLS files cannot be used: {error}") from error
    return context


def _read_token(path: Path) -> bytes:
    try:
        token = path.read_text(encoding="ascii").strip()
        others = path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the token cannot be read: {error}") from error
    if len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"the token in {path} must have {_SHORTEST_TOKEN} characters or more, "
            f"got {len(token)}; make one by: openssl rand -hex 32"
        )
    if others and os.name == "posix":
        raise ValueError(f"others may read the token in {path}; chmod 600 {path}")
    return token.encode()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

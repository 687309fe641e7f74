"""Whom the producer trusts on the other side of TLS: the system's certificate authorities, and those of a file."""

from __future__ import annotations

import ssl
from pathlib import Path

from producers.errors import SourceSettingsError


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """What verifies a server's certificate chain and host name; there is no way to switch that off.

    `ca_file` holds certificate authorities in PEM, trusted beside the system's. Raises SourceSettingsError when it cannot be read.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise SourceSettingsError(
                f"the certificate authorities in {ca_file} cannot be read: {error.strerror or error}",
                "point EXPLORER_SOURCE_CA_FILE at a file of PEM certificates",
            ) from None
    return context


def failure_of(error: ssl.SSLError, host: str) -> str:
    """One clause on why the handshake with `host` failed, with what would mend it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return f"its TLS certificate is refused: {why} (EXPLORER_SOURCE_CA_FILE trusts an authority of your own)"
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return f"it does not speak TLS; if that is meant, write ws://{host}"
    return f"TLS failed: {error.reason or error}"

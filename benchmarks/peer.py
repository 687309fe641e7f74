"""The interpreter that runs the peer of `benchmarks.writer`: Quix Streams in a virtual environment of its own.

It is in no lock of ours, since nothing of ours needs it; the versions are pinned here.
"""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path
from typing import Final

PEER: Final = ("quixstreams==3.28.1", "pyarrow==26.0.1")
_SECONDS: Final = 300


def peer_interpreter(folder: Path) -> str | None:
    """The interpreter of an environment below `folder`, made on the first call.

    None if that fails, as without a package index. Raises nothing: the benchmarks go on without the peer and say so.
    """
    home = folder / "-".join(name.replace("==", "-") for name in PEER)
    python = home / "bin" / "python"
    done = home / "installed"
    if not done.exists():
        try:
            venv.create(home, with_pip=True, clear=True)
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "15", *PEER],
                check=True,
                timeout=_SECONDS,
                capture_output=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        done.touch()
    return str(python)

"""A client of the Bluesky Post Explorer: search, counts, groups, exports and label tables, for researchers.

>>> from post_explorer_client import Explorer
>>> with Explorer("http://127.0.0.1:8080") as explorer:
...     for post in explorer.search(text="climate", start="7d", max_rows=10):
...         print(post["time"], post["text"])
"""

from .client import VERSION, Explorer
from .errors import (
    ConnectionFailed,
    DownloadError,
    ExplorerError,
    ExportError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    ProblemError,
    RateLimited,
    ServiceError,
)
from .exports import Export, Progress, show_progress
from .http import Retry
from .results import Provenance, Row, Rows, Search, Total

__all__ = [
    "ConnectionFailed",
    "DownloadError",
    "Explorer",
    "ExplorerError",
    "Export",
    "ExportError",
    "InvalidRequest",
    "NotAllowed",
    "NotFound",
    "ProblemError",
    "Progress",
    "Provenance",
    "RateLimited",
    "Retry",
    "Row",
    "Rows",
    "Search",
    "ServiceError",
    "Total",
    "show_progress",
]
__version__ = VERSION

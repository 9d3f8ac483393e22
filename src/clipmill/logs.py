"""Logging to stderr: lines for people, or JSON for machines.

python-json-logger would replace the ten lines of ``format``, but lets ``extra=`` overwrite the
level and the message.
"""

import logging
import sys
from datetime import UTC, datetime
from json import dumps


def configure_logging(level: str = "INFO", *, json: bool = False) -> None:
    """Send every log record to stderr, as one line of text or of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if json else logging.Formatter(_TEXT_FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)


_TEXT_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: the standard fields, then whatever ``extra=`` brought."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD_FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return dumps(line | extra | line, default=str)  # the standard fields come first, and win

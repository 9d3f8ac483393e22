import json
import logging
from collections.abc import Iterator

import pytest

from clipmill.logs import configure_logging


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("logging_restored")
def test_each_log_line_is_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", json=True)
    logger = logging.getLogger("clipmill.test")
    logger.debug("too quiet")
    logger.info("step %d\nof many", 3, extra={"loss": 0.5, "level": "mine"})
    try:
        int("broken")
    except ValueError:
        logger.exception("it failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "step 3\nof many"
    assert (first["level"], first["logger"], first["loss"]) == ("INFO", "clipmill.test", 0.5)
    assert first["time"].endswith("+00:00")
    assert "ValueError: invalid literal" in second["exception"]


@pytest.mark.usefixtures("logging_restored")
def test_plain_lines_say_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    logging.getLogger("clipmill.test").info("too quiet")
    logging.getLogger("clipmill.test").warning("careful")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING clipmill.test: careful")

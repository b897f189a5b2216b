"""One JSON object per line, whoever writes it."""

import json
import logging
import sys
import threading
import warnings

import pytest

from sidewinder import logs
from sidewinder.cli import main as command
from sidewinder.cli.main import BAD_USAGE


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_warnings_and_other_libraries(json_log, capfd):
    warnings.warn("two\nlines", stacklevel=1)
    logging.getLogger("asyncio").error("a task failed")
    logging.getLogger("another.package").info("nobody wants to know")
    logging.getLogger("sidewinder.engine").info("%d steps", 3)
    found = [(line["level"], line["message"]) for line in lines(json_log)]
    assert found == [
        ("warning", "two\nlines"),
        ("error", "a task failed"),
        ("info", "3 steps"),
    ]
    assert capfd.readouterr() == ("", "")


def test_handlers_that_libraries_bring_are_taken_over(json_log, capfd):
    library = logging.getLogger("a_library.part")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    logs.start_logging("json", json_log)
    library.warning("text")
    assert [line["message"] for line in lines(json_log)] == ["text"]
    assert capfd.readouterr().err == ""


def test_exceptions_that_nobody_catches(json_log, capfd):
    def fail():
        raise RuntimeError("in a thread")

    thread = threading.Thread(target=fail, name="one")
    thread.start()
    thread.join()
    try:
        raise KeyError("outside")
    except KeyError as error:
        sys.excepthook(type(error), error, error.__traceback__)

    class Bad:
        def __del__(self):
            raise ValueError("while dropped")

    dropped = Bad()
    del dropped
    first, second, third = lines(json_log)
    assert (first["level"], first["message"]) == ("critical", "thread one ended")
    assert "RuntimeError: in a thread" in first["exception"]
    assert "KeyError: 'outside'" in second["exception"]
    assert "ValueError: while dropped" in third["exception"]
    assert capfd.readouterr().err == ""


def test_why_a_server_ends_is_json_too(json_log, capfd, monkeypatch):
    def serve(*_, **__):
        raise ValueError("no such model")

    monkeypatch.setattr("sidewinder.server.run.serve", serve)
    assert command(["serve", "models/none", "--log-format", "json"]) == BAD_USAGE
    assert lines(json_log)[-1]["message"] == "error: no such model"
    assert lines(json_log)[-1]["level"] == "error"
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("json_log")
def test_text_leaves_other_libraries_alone(capsys):
    library = logging.getLogger("another_library")
    mine = logging.StreamHandler()
    library.addHandler(mine)
    logs.start_logging("text")
    assert library.handlers == [mine]
    warnings.warn("said", stacklevel=1)
    assert capsys.readouterr().err.endswith(" WARNING said\n")
    library.removeHandler(mine)

"""docs/serving.md names every endpoint, field, option and metric; the help shows the options."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from sidewinder.cli import main
from sidewinder.cli.serve import _OPTIONS, EXAMPLES
from sidewinder.server.messages.schemas import MessagesRequest
from sidewinder.server.responses.schemas import ResponseRequest
from sidewinder.server.schemas import ChatRequest, CompletionRequest

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_endpoints_and_metrics(client):
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"`{path}`" in TEXT
        assert path.removesuffix("/{name}") in EXAMPLES.split()
    families = text_string_to_metric_families(client.get("/metrics").text)
    names = {sample.name for family in families for sample in family.samples}
    for name in names:
        base = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        if name.startswith("sidewinder") and not name.endswith("_created"):
            assert f"`{base}`" in TEXT


def test_fields():
    bodies = (CompletionRequest, ChatRequest, ResponseRequest, MessagesRequest)
    for field in {name for body in bodies for name in body.model_fields}:
        assert f"`{field}`" in TEXT or field in ("prompt", "messages")


def test_options_and_help(capsys):
    assert main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    for name, _, _ in _OPTIONS:
        flag = "--" + name.replace("_", "-")
        assert f"`{flag}`" in TEXT
        assert flag in shown


def test_bad_options_end_with_status_2(capsys, tmp_path):
    assert main(["serve", str(tmp_path), "--port", "70000"]) == 2
    assert "port=70000" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--launch", "torchrun"]) == 2
    assert "torchrun" in capsys.readouterr().err

"""The `zoo` command as users and scripts meet it: run in a process of its own, or in this one where that is enough."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.samples import version
from zoo.cache import blob_key
from zoo.catalog import Catalog, open_catalog
from zoo.cli.main import COMMANDS, app
from zoo.cli.output import print_fields, print_table, printable, run_cli, size_text
from zoo.manifest import Lineage
from zoo.search.index import CatalogIndex

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `zoo` in this process: exit code, stdout, stderr."""

    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            run_cli(app, args)
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """The default store with a parent, and a child of two versions."""
    catalog = open_catalog()
    catalog.publish("parent", *version(tmp_path, head=1, classes=("cat", "dog")))
    catalog.publish("child", *version(tmp_path, head=2, lineage=Lineage(parent="parent@1", job="j1")))
    catalog.publish("child", *version(tmp_path, head=3, lineage=Lineage(parent="parent@1", job="j2")))
    catalog.set_alias("child", "prod", "child@1")
    return catalog


def one_value(out: str) -> Any:
    """stdout holds exactly one JSON value, on one line."""
    assert out.endswith("\n")
    assert "\n" not in out[:-1]
    return json.loads(out)


class TestStart:
    def run_python(self, code: str, *args: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        return done.stdout

    def test_help_is_quick(self) -> None:
        command, times = [sys.executable, "-m", "zoo.cli.main", "--help"], []
        for _ in range(5):
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(time.perf_counter() - start)
            assert "Usage: " in done.stdout
        assert min(times) < 0.4  # the least, since others may keep this machine busy

    def test_help_imports_nothing_heavy(self) -> None:
        code = """
import sys
from zoo.cli.main import app
from zoo.cli.output import run_cli
try:
    run_cli(app, ["--help"])
except SystemExit as stop:
    assert not stop.code
heavy = "tensorflow keras numpy grpc google.protobuf pydantic sqlalchemy PIL yaml safetensors rich".split()
print("loaded:", [name for name in heavy if name in sys.modules])
"""
        assert self.run_python(code).splitlines()[-1] == "loaded: []"

    def test_looking_needs_no_framework(self, catalog: Catalog) -> None:
        code = """
import sys
from zoo.cli.main import app
from zoo.cli.output import run_cli
for args in (["list"], ["show", "child"], ["architectures"], ["verify"], ["lineage", "child"]):
    try:
        run_cli(app, args)
    except SystemExit as stop:
        assert not stop.code, args
print("loaded:", [name for name in ("tensorflow", "keras", "grpc", "sqlalchemy") if name in sys.modules])
"""
        assert self.run_python(code).splitlines()[-1] == "loaded: []"

    def test_every_command_has_the_common_options(self, run: Run) -> None:
        for name in COMMANDS:
            code, out, _ = run(name, "--help")
            assert code == 0
            assert {"--format", "--debug"} <= set(out.split()), name
            assert name == "architectures" or "--store" in out.split(), name
        for name in ("list", "show"):
            assert {"--server", "--token"} <= set(run(name, "--help")[1].split())

    def test_version(self, run: Run) -> None:
        code, out, _ = run("--version")
        assert code == 0
        assert out.startswith("modelzoo  ")


class TestExitCodes:
    @pytest.mark.parametrize(
        "args",
        [
            [],
            ["nonsense"],
            ["show"],
            ["show", "a", "b"],
            ["list", "--format", "xml"],
            ["list", "--nonsense"],
            ["pull", "a", "b", "--component", "tail"],
            ["list", "--server", "localhost:1", "--store", "memory://x"],
        ],
    )
    def test_wrong_usage(self, run: Run, args: list[str]) -> None:
        code, _, err = run(*args)
        assert code == 2
        assert "Traceback" not in err

    def test_a_failure(self, run: Run, catalog: Catalog) -> None:
        code, out, err = run("show", "chld")
        assert (code, out) == (1, "")
        assert err == "error: unknown model 'chld': did you mean child?\n  hint: zoo list\n"

    def test_a_failure_for_scripts(self, run: Run, catalog: Catalog) -> None:
        code, out, err = run("show", "chld", "--format", "json")
        assert (code, out) == (1, "")
        error = one_value(err)["error"]
        assert (error["code"], error["reason"], error["hint"]) == ("NOT_FOUND", "UnknownModel", "zoo list")
        assert error["details"] == {"name": "chld"}

    def test_debug_shows_where(self, run: Run, catalog: Catalog) -> None:
        code, _, err = run("show", "chld", "--debug")
        assert code == 1
        assert "Traceback" in err
        assert err.endswith("did you mean child?\n  hint: zoo list\n")

    def test_a_fault_of_ours(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: CatalogIndex, **query: object) -> None:
            raise ZeroDivisionError("division by zero")

        monkeypatch.setattr(CatalogIndex, "search", fail)
        code, out, err = run("list")
        assert (code, out) == (1, "")
        assert err.startswith("error: unexpected ZeroDivisionError: division by zero\n  hint: ")
        assert "--debug" in err

    def test_interrupted(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(self: CatalogIndex, **query: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(CatalogIndex, "search", interrupt)
        code, out, err = run("list")
        assert (code, out) == (130, "")
        assert "Traceback" not in err

    def test_a_reader_that_went_away(self, catalog: Catalog) -> None:
        command = f"{sys.executable} -m zoo.cli.main show child --format json | true"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr

    def test_a_store_that_cannot_be(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        code, _, err = run("list", "--store", f"file://{tmp_path}/file")
        assert code == 1
        assert f"{tmp_path}/file is a file, not a directory" in err
        code, _, err = run("list", "--store", "/tmp/store")
        assert code == 1
        assert "hint: --store file:///tmp/store" in err


class TestLook:
    def test_list(self, run: Run, catalog: Catalog) -> None:
        code, out, err = run("list")
        assert code == 0
        lines = [line.split() for line in out.splitlines()]
        assert lines[0][:3] == ["model", "version", "architecture"]
        assert [line[:2] for line in lines[2:]] == [["child", "2"], ["parent", "1"]]
        assert err == "next: zoo show child\n"
        _, out, err = run("list", "--format", "json")
        assert [(m["name"], m["version"]) for m in one_value(out)] == [("child", 2), ("parent", 1)]
        assert err == ""

    def test_an_empty_catalogue(self, run: Run) -> None:
        code, out, err = run("list")
        assert (code, out) == (0, "")
        assert "is empty\nnext: zoo import" in err
        assert one_value(run("list", "--format=json")[1]) == []

    def test_show(self, run: Run, catalog: Catalog) -> None:
        from zoo.describe import describe

        _, out, _ = run("show", "child@prod", "--format", "json")
        assert one_value(out) == describe(catalog.get("child@1"))
        _, out, _ = run("show", "parent")
        shown = dict(line.split(maxsplit=1) for line in out.splitlines())
        assert shown["reference"] == "parent@1"
        assert shown["classes"] == "2: cat, dog"
        assert shown["digest"] == catalog.get("parent").digest

    def test_history(self, run: Run, catalog: Catalog) -> None:
        _, out, _ = run("history", "child", "--format", "json")
        events = one_value(out)
        assert [event["type"] for event in events] == ["CREATED", "PUBLISHED", "PUBLISHED", "ALIAS_SET"]
        assert (events[3]["alias"], events[3]["version"]) == ("prod", 1)
        _, out, _ = run("history", "child")
        assert [line.split()[2] for line in out.splitlines()[2:]] == [event["type"] for event in events]

    def test_lineage(self, run: Run, catalog: Catalog) -> None:
        _, out, _ = run("lineage", "child", "--format", "json")
        value = one_value(out)
        assert value["reference"] == "child@2"
        assert value["lineage"]["parent"] == "parent@1"
        assert [a["reference"] for a in value["ancestors"]] == ["parent@1"]
        assert (value["missing_parent"], value["children"]) == (None, [])
        value = one_value(run("lineage", "parent", "--format", "json")[1])
        assert [c["reference"] for c in value["children"]] == ["child@1", "child@2"]
        _, out, _ = run("lineage", "parent")
        assert [line.split("  ")[0] for line in out.splitlines()] == ["parent@1", "├─ child@1", "└─ child@2"]
        assert out.splitlines()[0].endswith("(this)")

    def test_list_with_a_filter(self, run: Run, catalog: Catalog) -> None:
        def listed(*arguments: str) -> list[str]:
            return [model["reference"] for model in one_value(run("list", *arguments, "--format", "json")[1])]

        assert listed("--filter", "name = parent") == ["parent@1"]
        assert listed("--filter", 'parent = "parent@1" AND version = 1') == ["child@1"]
        assert listed("--filter", "name:child", "--all-versions") == ["child@1", "child@2"]
        assert listed("--order-by", "name desc")[-1] == "child@2"
        code, out, err = run("list", "--filter", "colour = 3")
        assert (code, out) == (1, "")
        assert "no field 'colour'" in err

    def test_pages_of_the_list(self, run: Run, catalog: Catalog) -> None:
        found: list[str] = []
        more: list[str] = []
        while True:
            _, out, err = run("list", "--page-size", "1", *more, "--format", "json")
            (model,) = one_value(out)
            found.append(model["reference"])
            if "--page-token" not in err:
                break
            more = ["--page-token", err.split("--page-token ")[1].split()[0]]
        assert found == [model["reference"] for model in one_value(run("list", "--format", "json")[1])]
        assert len(found) > 1

    def test_architectures(self, run: Run) -> None:
        names = [value["name"] for value in one_value(run("architectures", "--format", "json")[1])]
        assert {"inception_v3", "efficientnet_lite0"} <= set(names)
        assert [line.split()[0] for line in run("architectures")[1].splitlines()[2:]] == names

    def test_an_ignored_server_is_reported(self, run: Run, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODELZOO_SERVER", "localhost:1")
        code, _, err = run("history", "child")
        assert code == 0
        assert "not through MODELZOO_SERVER" in err
        code, _, err = run("history", "child", "--store", catalog.store.url)
        assert "MODELZOO_SERVER" not in err


class TestThroughAServer:
    @pytest.fixture
    def address(self, catalog: Catalog, tmp_path: Path) -> Iterator[str]:
        server = subprocess.Popen(
            [sys.executable, "-m", "zoo.cli.main", "serve", "--address", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["address"]
        finally:
            server.terminate()
            server.stdout.close()
            assert server.wait(timeout=30) == 0

    def test_the_same_commands_give_the_same(
        self, run: Run, address: str, monkeypatch: pytest.MonkeyPatch, catalog: Catalog
    ) -> None:
        for args in (("list", "--format", "json"), ("show", "child@prod", "--format", "json")):
            code, local, _ = run(*args)
            assert code == 0
            code, remote, err = run(*args, "--server", address)
            assert (code, err) == (0, "")
            assert one_value(remote) == one_value(local)
        for args in (("list",), ("show", "parent")):
            assert run(*args, "--server", address)[:2] == run(*args)[:2]
        monkeypatch.setenv("MODELZOO_SERVER", address)
        code, _, err = run("show", "chld")
        assert (code, err) == (1, "error: unknown model 'chld': did you mean child?\n  hint: zoo list\n")
        # A flag wins over the environment: this store has nothing.
        code, out, _ = run("list", "--store", "memory://nothing", "--format", "json")
        assert (code, one_value(out)) == (0, [])

    def test_nobody_answers(self, run: Run) -> None:
        code, out, err = run("list", "--server", "127.0.0.1:1")
        assert (code, out) == (1, "")
        assert "127.0.0.1:1" in err


class TestChange:
    def test_alias(self, run: Run, catalog: Catalog) -> None:
        code, out, _ = run("alias", "child", "best", "child@1", "--format", "json")
        assert code == 0
        assert one_value(out)["aliases"] == ["best", "prod"]
        assert run("alias", "child", "best", "child")[1] == "child@best = child@2\n"
        assert catalog.get("child@best").number == 2
        code, _, err = run("alias", "child", "latest", "child@1")
        assert code == 1
        assert "latest" in err

    def test_pull(self, run: Run, catalog: Catalog, tmp_path: Path) -> None:
        code, out, _ = run("pull", "child", str(tmp_path / "out"), "--component", "head", "--format", "json")
        assert code == 0
        value = one_value(out)
        assert value["reference"] == "child@2"
        assert [file["name"] for file in value["files"]] == ["head.safetensors", "manifest.json"]
        assert (tmp_path / "out/head.safetensors").stat().st_size == value["files"][0]["bytes"]
        assert run("pull", "child", str(tmp_path / "all"))[0] == 0
        assert (tmp_path / "all/vocabulary.json").exists()

    def test_verify(self, run: Run, catalog: Catalog) -> None:
        code, out, _ = run("verify", "--format", "json")
        assert code == 0
        report = one_value(out)
        assert (report["ok"], report["versions"], report["problems"]) == (True, 3, [])
        assert one_value(run("verify", "child@1", "--format", "json")[1])["versions"] == 1
        head = catalog.get("child").manifest.components[1]
        catalog.store.put(blob_key(head.digest), bytes(head.bytes))
        code, out, err = run("verify", "--format", "json")
        assert code == 1
        report = one_value(out)
        assert not report["ok"]
        assert [(p["reference"], p["part"]) for p in report["problems"]] == [("child@2", "head")]
        assert one_value(err)["error"]["reason"] == "CorruptBlob"
        code, out, err = run("verify")
        assert code == 1
        assert "child@2" in out
        assert "head of child@2" in err

    def test_import(self, run: Run, shared: Path) -> None:
        folder = shared / "checkpoints/efficientnet_lite0"
        args = ["import", "safetensors", str(folder / "efficientnet_lite0.safetensors"), "eff"]
        args += ["--input-spec", str(folder / "input_spec.json"), "--license", "Apache-2.0"]
        code, out, _ = run(*args, "--dry-run", "--format", "json")
        assert code == 0
        assert one_value(out)["restore_report"]["complete"]
        assert open_catalog().list() == []
        code, out, _ = run(*args, "--format", "json")
        assert code == 0
        value = one_value(out)
        assert (value["name"], value["version"], value["existing"]) == ("eff", 1, False)
        assert value["restore_report"]["complete"]
        assert value["bytes_sent"] == sum(component["bytes"] for component in value["components"])
        code, out, err = run(*args)
        assert code == 0
        assert "already is the newest version" in err
        assert "eff@1" in out
        assert one_value(run(*args, "--again", "--format", "json")[1])["version"] == 2
        code, _, err = run("import", "safetensors", str(folder / "nothing.safetensors"), "eff")
        assert code == 1
        assert "nothing.safetensors" in err


class TestPrinting:
    def test_tables_are_not_cut_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("name", "n"), [["x" * 300, 1], ["[bold]y[/bold] :smile:", None]])
        lines = capsys.readouterr().out.splitlines()
        assert lines[2].split() == ["x" * 300, "1"]
        assert lines[3].strip() == "[bold]y[/bold] :smile:"

    def test_terminals_cannot_be_steered(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert printable("a\x1b[31mb\r\x00é日\u2028") == "a\\x1b[31mb\\r\\x00é日\\u2028"
        print_fields([("class", "\x1b]0;title\x07"), ("none", None)])
        print_table(("c",), [["\x1b[2J"]])
        assert "\x1b" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("size", "text"),
        [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (13_674_760, "13.7 MB"), (3e9, "3.0 GB")],
    )
    def test_sizes(self, size: int, text: str) -> None:
        assert size_text(int(size)) == text

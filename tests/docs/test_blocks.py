"""What the documents tell people to run exists: commands, options, Python, study files, links."""

import ast
import importlib
import re
import shlex

import pages as page
import pytest
import torch
import typer

from moge_bench import methods, metrics
from moge_bench.cli import app
from moge_bench.config import schema
from moge_bench.presets import resolve
from moge_bench.study.grid import parse_grid

ROOT = page.ROOT
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted(DOCUMENTS)}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split()) - {"FORCE"}
COMMAND = typer.main.get_command(app)
PROGRAMS = ("make", "moge-bench", "python", "python3", ".venv/bin/moge-bench", ".venv/bin/python")


def blocks(text, *languages):
    """Return the fenced blocks in one of ``languages``; "" is a block that names none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [code for language, code in found if language in languages]


def commands(text):
    """Return the words of every command: of shell blocks, and of what stands in backticks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"`([^`\n]+)`", prose)
    for code in blocks(text, "", "bash"):
        # Of a quoted or here document only the first line is a command of the shell.
        code = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", code, flags=re.DOTALL | re.MULTILINE)
        lines += re.sub(r'"\n[^"]*"', "x", code).splitlines()
    found = []
    for line in lines:
        line = re.split(r"\s{2,}", line.strip())[0]  # what follows says what the command does
        line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
        if line.partition(" ")[0] in PROGRAMS and " " in line:
            found.append(shlex.split(line, comments=True))
    return found


def fault(words):
    """Return what is wrong with a command, or None."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if "&&" in rest:
        rest = rest[: rest.index("&&")]
    if program == "make":
        wrong = [word for word in rest if "=" not in word and word not in TARGETS]
        return f"no target {wrong[0]}" if wrong else None
    if program == "moge-bench":
        return fault_of_options(COMMAND, rest)
    if rest[:1] == ["-m"] and rest[1].startswith(("tools", "moge_bench")):
        path = ROOT / rest[1].replace(".", "/")
        there = (path / "__main__.py").exists() or path.with_suffix(".py").exists()
        return None if there else f"no module {rest[1]}"
    files = [word for word in rest if word.endswith(".py") or word.startswith("tests/")]
    missing = [word for word in files if not (ROOT / word.partition("::")[0]).exists()]
    return f"no file {missing[0]}" if missing else None


def fault_of_options(command, words):
    """Walk down the commands; return the first option, command or study file that is not there."""
    options = {
        name: parameter
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    places = sum(parameter.param_type_name == "argument" for parameter in command.params)
    words = list(words)
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            if name not in options:
                return f"{command.name} has no option {name}"
            if not (equals or getattr(options[name], "is_flag", False)):
                if not words:
                    return f"{name} without a value"
                words.pop(0)
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return f"no command {word}"
            return fault_of_options(command.commands[word], words)
        else:
            places -= 1
            if places < 0:
                return f"{command.name} does not take {word}"
            if word.endswith(".yaml") and word != "FILE.yaml" and not (ROOT / word).exists():
                return f"no file {word}"
    return None


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("make test", None),
        ("make kernels CUDA=1", None),
        ("make all", "no target all"),
        ("moge-bench ablate FILE.yaml --shard 2/8 --dry-run", None),
        ("moge-bench ablate ablations/none.yaml", "no file ablations/none.yaml"),
        ("moge-bench ablate --shards 2/8", "ablate has no option --shards"),
        ("moge-bench ablate --jobs", "--jobs without a value"),
        ("moge-bench perf gpu-check", "no command gpu-check"),
        ("moge-bench perf run --no-peers --set grid", None),
        ("moge-bench diff RUN_ID RUN_ID RUN_ID", "diff does not take RUN_ID"),
        ("python -m tools.ptxx", "no module tools.ptxx"),
        ("python scripts/none.py", "no file scripts/none.py"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command, wrong):
    assert [fault(words) for words in commands(f"`{command}`")] == [wrong]
    assert [fault(words) for words in commands(f"```bash\n{command}  # why\n```")] == [wrong]


@pytest.mark.parametrize("name", TEXTS)
def test_commands_exist(name):
    faults = {" ".join(words): fault(words) for words in commands(TEXTS[name])}
    assert {command: wrong for command, wrong in faults.items() if wrong} == {}


def test_commands_are_found():
    found = {name: commands(text) for name, text in TEXTS.items()}
    for name in ("README.md", "CONTRIBUTING.md", "docs/language.md", "docs/performance.md"):
        assert len(found[name]) >= 5, name


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)\)", TEXTS[name]):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("name", TEXTS)
def test_study_files_are_valid(name):
    for text in blocks(TEXTS[name], "yaml"):
        assert parse_grid(text, name).configs


def test_python_of_the_readme_runs_forward_and_backward():
    logits = torch.randn(32, 64, requires_grad=True)
    names = {
        "logits": logits,
        "scores": torch.softmax(logits, dim=-1),
        "task_loss": logits.square().mean(),
        "x": torch.randn(8, 64),
    }
    losses = []
    for code in blocks(TEXTS["README.md"], "python"):
        if "integrations" in code:  # tests/integrations/test_page.py runs it
            continue
        exec(code, names)
        losses.append(names["loss"])
    assert len(losses) == 2
    (sum(losses) + names["y"].sum() + names["aux"].loss).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


def walked(code, module):
    """Return what the block of a walk-through makes where it is put: in ``module``."""
    body = ast.parse(code).body[0]
    names = dict(vars(module))
    if isinstance(body, ast.Expr):
        return eval(ast.unparse(body), names)
    exec(code, names)
    return names[body.target.id]


def test_python_of_the_walk_throughs_is_right_where_it_is_put(monkeypatch):
    found = blocks(TEXTS["CONTRIBUTING.md"], "python")
    assert len(found) == 3
    method, metric, setting = map(walked, found, (methods, metrics, schema))
    assert method.colour not in {other.colour for other in methods.METHODS.values()}
    assert methods.METHODS["moge"].sets.keys() <= method.sets.keys()
    monkeypatch.setitem(methods.METHODS, method.name, method)
    loss = [resolve("tiny-vit", name).moe.group for name in ("moge", method.name)]
    assert loss[0] != loss[1]  # it changes something
    assert metric.name not in metrics.METRICS
    assert metric.title not in {other.title for other in metrics.METRICS.values()}
    assert setting.json_schema_extra == {"before": setting.default}


@pytest.mark.parametrize("name", TEXTS)
def test_python_imports_what_is_there(name):
    for code in blocks(TEXTS[name], "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module

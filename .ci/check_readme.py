"""python .ci/check_readme.py

Checks what README.md, CONTRIBUTING.md, CHANGELOG.md, docs/*.md and examples/README.md tell a reader
to run or to open:

- commands in shell blocks and code spans name make targets, scripts, modules and sub-commands that
  exist, with flags that `--help` knows, and no path outside the repository;
- flags in tables headed "flag of `COMMAND`" are flags of that command;
- relative links, their anchors, and images resolve.
"""

import argparse
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING", "examples/README"))]
PAGES += sorted(ROOT.glob("docs/*.md"))

# It names commands of the past, so only its links are checked.
CHANGELOG = ROOT / "CHANGELOG.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
OURS = ("mvaema", "python", ".venv/bin/python", "make", "accelerate", "torchrun")

# A word that begins so names a file of the repository.
FOLDERS = (
    ".ci/",
    "baselines/",
    "benchmarks/",
    "docs/",
    "examples/",
    "metrics/",
    "mvaema/",
    "recipes/",
    "tests/",
)


def blocks(text: str, languages: tuple[str, ...]) -> list[str]:
    """Fenced blocks of some languages."""
    return [body for language, body in FENCE.findall(text) if language in languages]


def commands(text: str) -> list[str]:
    """Lines of shell blocks, continuation lines joined, and code spans that are commands."""
    shell = "\n".join(blocks(text, ("bash", "sh", "shell"))).replace("\\\n", " ")
    lines = [re.split(r"\s#\s", line)[0].strip() for line in shell.splitlines()]
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
    # A span of one word is a name; "COMMAND" and the like stand for something else.
    spans = [
        s for s in spans if s.split()[0] in OURS and " " in s and not re.search(r" [A-Z]+\b", s)
    ]
    return [line for line in (*lines, *spans) if line and line[0] != "#"]


@functools.cache
def run_help(*target: str) -> tuple[bool, str]:
    """Whether a script or module answers --help, and what it says."""
    run = subprocess.run(
        [sys.executable, *target, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    if run.returncode == 0:
        return True, run.stdout
    said = (run.stderr.strip() or run.stdout.strip() or "no message").splitlines()
    return False, said[-1]


def unknown_flags(target: list[str], flags: list[str]) -> str | None:
    """What is wrong with the flags of a script or module, or None."""
    answers, text = run_help(*target)
    if not answers:
        return text
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text))
    unknown = sorted({flag for flag in flags if flag not in known})
    return f"unknown flags: {', '.join(unknown)}" if unknown else None


def python_words(words: list[str]) -> list[str] | None:
    """What `python` is given in a command, launchers left out; None if it runs something else."""
    if words[0] == "mvaema":
        return ["-m", *words]
    if words[0] in ("python", ".venv/bin/python"):
        return words[1:]
    if words[0] == "torchrun" or words[:2] == ["accelerate", "launch"]:
        scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
        return words[scripts[0] :] if scripts else None
    return None


def problem(command: str) -> str | None:
    """What is wrong with a command, or None."""
    words = shlex.split(command)
    while words and (re.fullmatch(r"[A-Z_]+=.*", words[0]) or words[0] in ("srun", "nice")):
        words.pop(0)
    if outside := [word for word in words if re.search(r"(^|[=/])\.\.(/|$)|^~", word)]:
        return f"outside the repository: {', '.join(outside)}"
    named_like_files = words and words[0] == "inspect"  # its tasks and models
    for word in words:
        if word.startswith(FOLDERS) and not named_like_files and not (ROOT / word).exists():
            return f"there is no {word}"
    if words and words[0] == "make":
        run = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, cwd=ROOT)
        return run.stderr.strip() or None
    words = python_words(words) if words else None
    if not words:
        return None  # git, pip, apt-get: not ours
    target = words[:2] if words[0] == "-m" else words[:1]
    rest = words[len(target) :]
    if words[0] == "-m" and words[1].split(".")[0] not in ("baselines", "benchmarks", "mvaema"):
        found = importlib.util.find_spec(words[1].split(".")[0])
        return None if found else f"there is no module {words[1]}"
    while rest and re.fullmatch(r"[a-z]+", rest[0]):
        target.append(rest.pop(0))  # a sub-command has its own help
    flags = [word.split("=")[0] for word in rest if re.match(r"--?[A-Za-z]", word)]
    return unknown_flags(target, flags)


def tables(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, flags) of each table headed "flag of `COMMAND`"."""
    for command, body in re.findall(r"^\| flag of `([^`]+)`.*\n((?:\|.*\n)+)", text, flags=re.M):
        yield command, re.findall(r"`(--?[a-z_-]+)", body.replace("|---|---|\n", ""))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def bad_links(page: Path, text: str) -> Iterator[str]:
    """Relative links and images of a page that lead nowhere."""
    for groups in LINK.findall(SPAN.sub("", FENCE.sub("", text))):
        link = next(filter(None, groups))
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            yield f"the link {link} leads nowhere"
        elif anchor and anchor not in anchors(target):
            yield f"the link {link} names a heading that {target.name} does not have"


def problems(page: Path) -> Iterator[str]:
    """All that is wrong with a page, one line each."""
    text = page.read_text(encoding="utf-8")
    yield from bad_links(page, text)
    if page == CHANGELOG:
        return
    for command in dict.fromkeys(commands(text)):
        if message := problem(command):
            yield f"{command}\n    {message}"
    for command, flags in tables(text):
        if message := problem(f"{command} {' '.join(flags)}"):
            yield f"the table of {command}\n    {message}"
    for path in re.findall(r"[\"'](docs/[^\"']+)[\"']", "".join(blocks(text, ("python",)))):
        if not (ROOT / path).exists():
            yield f"Python code names {path}, which does not exist"


def main() -> int:
    argparse.ArgumentParser(description=__doc__.partition("\n\n")[2]).parse_args()
    if not commands((ROOT / "README.md").read_text(encoding="utf-8")):
        print("README.md has no commands; did its form change?")
        return 1
    failed = False
    for page in (*PAGES, CHANGELOG):
        found = list(problems(page))
        failed |= bool(found)
        name = page.relative_to(ROOT)
        print("\n".join([f"{name}: {len(found) or 'no'} problems", *(f"  {x}" for x in found)]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

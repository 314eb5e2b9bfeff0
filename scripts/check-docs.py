"""Runs the commands of one document; scripts/check-docs.sh --help says how, and starts it in namespaces of its own."""

import argparse
import dataclasses
import difflib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

MARKS = ["save", "until", "slow", "not run:", "output of", "run"]
DEADLINE_S = 90  # of a block, on a busy machine
SLOW_DEADLINE_S = 3600


@dataclasses.dataclass
class Block:
    line: int
    language: str  # "comment" for commands that readers do not see
    text: str
    marks: dict[str, str]
    follows: bool  # right below the block before


def marks_of(comment: str) -> dict[str, str]:
    """`slow; until ready` → {"slow": "", "until": "ready"}"""
    marks, comment = {}, comment.strip()
    for mark in [comment] if comment.startswith("not run:") else filter(None, comment.split("; ")):
        name = next((name for name in MARKS if mark.startswith(name)), None)
        if name is None:
            raise SystemExit(f"FAIL  there is no mark `{mark}`; see scripts/check-docs.sh --help")
        marks[name] = mark.removeprefix(name).strip()
    return marks


def parse(document: str) -> list[Block]:
    blocks, marks, end = [], {}, 0
    element = r"<!-- check:?(?P<comment>.*?)-->|^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)\n *```$"
    for found in re.finditer(element, document, re.DOTALL | re.MULTILINE):
        line, follows = document.count("\n", 0, found.start()) + 1, not document[end : found.start()].strip()
        end = found.end()
        if found["language"] is None:
            first, _, text = found["comment"].partition("\n")
            given = marks_of(first)
            if text or "run" in given:
                blocks.append(Block(line, "comment", text or given["run"], given, False))
            else:
                marks = given
        else:
            text = re.sub("^" + found["indent"], "", found["text"], flags=re.MULTILINE)
            blocks.append(Block(line, found["language"], text, marks, follows))
            marks = {}
    return blocks


# What differs between two runs, by its shape.
SHAPES = [
    r"\d{4}-\d\d-\d\dT[\d:]+(?:\.\d+)?Z",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"\b[A-Z0-9]{10}\b",
    r"\d[\d,.]*\d|\d",
]


def pattern(shown: str) -> str:
    shapes = "|".join(f"(?P<s{n}>{shape})" for n, shape in enumerate(SHAPES))
    words, at = "", 0
    text = " ".join(shown.split())
    for found in re.finditer(shapes + "|(?P<any>…)", text):
        words += re.escape(text[at : found.start()])
        words += ".*?" if found.lastgroup == "any" else f"(?:{SHAPES[int(found.lastgroup[1:])]})"
        at = found.end()
    return words + re.escape(text[at:])


def is_as_shown(shown: str, printed: str) -> bool:
    return re.fullmatch(pattern(shown), " ".join(printed.split())) is not None


def difference(shown: str, printed: str) -> str:
    return "\n".join(difflib.unified_diff(shown.splitlines(), printed.splitlines(), "the document", "printed", lineterm=""))


class Failure(Exception):
    pass


def run(commands: str, deadline_s: float, until: str | None = None) -> tuple[int | None, str]:
    """The exit code and the output; no exit code where it goes on running, having printed `until`."""
    with tempfile.NamedTemporaryFile("w+", errors="replace", delete=False) as output:
        process = subprocess.Popen(["bash", "-c", commands], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    ends = time.monotonic() + deadline_s
    while True:
        code = process.poll()
        printed = pathlib.Path(output.name).read_text(errors="replace")
        if until is not None and until in printed:
            return None, printed
        if code is not None:
            if until is not None:
                raise Failure(f"it ended with exit code {code}, and has not printed `{until}`:\n{printed}")
            return code, printed
        if time.monotonic() > ends:
            os.killpg(process.pid, signal.SIGKILL)
            raise Failure(f"it still runs after {deadline_s} s:\n{printed}")
        time.sleep(0.05)


def commands_of(console: str) -> list[tuple[str, str]]:
    """Each command after `$ `, with the lines that go on with it, and what it prints."""
    found, going_on = [], False
    for line in console.split("\n"):
        if line.startswith("$ "):
            found.append([line[2:], ""])
        elif going_on:
            found[-1][0] += "\n" + line
        elif found:
            found[-1][1] += line + "\n"
        else:
            raise Failure(f"it begins with no command: {line}")
        going_on = (line.startswith("$ ") or going_on) and line.rstrip().endswith(("\\", "|"))
    return [(command, shown) for command, shown in found]


def compare(command: str, shown: str, printed: str) -> None:
    if not is_as_shown(shown, printed):
        raise Failure(f"{command}\n{difference(shown, printed)}")


def check(block: Block, output: str | None, deadline_s: float) -> None:
    """Runs a block; `output` is what it is to print."""
    if block.language == "console":
        end = "-- the end of a command --"
        commands = commands_of(block.text)
        code, printed = run("\n".join(f"{command}\necho; echo '{end}' $?" for command, _ in commands), deadline_s)
        results = re.findall(rf"(.*?)\n{end} (\d+)\n", printed, re.DOTALL)
        if len(results) < len(commands):
            raise Failure(f"exit code {code} at: {commands[len(results)][0]}\n{printed}")
        for (command, shown), (piece, exit_code) in zip(commands, results, strict=True):
            if exit_code != "0" and not shown.strip():
                raise Failure(f"exit code {exit_code} of: {command}\n{piece}")
            compare(command, shown, piece)
    elif command := block.marks.get("output of"):
        _, printed = run(command, deadline_s)
        compare(command, block.text, printed)
    else:
        code, printed = run("set -eo pipefail\n" + block.text, deadline_s, block.marks.get("until"))
        if code and output is None:
            raise Failure(f"exit code {code}:\n{printed}")
        if output is not None:
            # Of what goes on running, the part that is shown.
            compare(block.text, output if code is not None else f"…{output}…", printed)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--all", action="store_true")
    arguments.add_argument("document", type=pathlib.Path)
    given = arguments.parse_args()
    failed = False
    blocks = parse(given.document.read_text())
    if given.document.parts[0] == "examples":
        os.chdir(given.document.parent)

    def say(block: Block, verdict: str, detail: str) -> None:
        print(f"{verdict:4}  {given.document}:{block.line}  {detail}", flush=True)

    for block, below in zip(blocks, [*blocks[1:], None]):
        hidden, slow = block.language == "comment", "slow" in block.marks
        commands = block.language in ("sh", "console") or "output of" in block.marks
        if name := block.marks.get("save"):
            pathlib.Path(name).write_text(block.text + "\n")
        if reason := block.marks.get("not run:"):
            say(block, "skip", f"not run: {reason}")
        elif slow and not given.all:
            if not hidden:
                say(block, "skip", "slow: run by --all")
        elif commands or hidden:
            output = below.text if below and below.follows and below.language == "text" and "output of" not in below.marks else None
            first = block.marks.get("output of", block.text.lstrip().split("\n")[0])
            try:
                check(block, output, SLOW_DEADLINE_S if slow else DEADLINE_S)
            except Failure as failure:
                failed = True
                say(block, "FAIL", first)
                print("\n".join("      " + line for line in str(failure).splitlines()[:60]), flush=True)
                if hidden:
                    break  # what follows needs it
            else:
                if not hidden:
                    say(block, "ok", first)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

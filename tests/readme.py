#!/usr/bin/env python3
"""Compiles the README's C++ snippets; with --command N, prints its N-th shell command instead."""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--command", type=int)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--include", nargs="*", default=[])
    arguments = parser.parse_args()
    if arguments.command is not None:
        print(blocks("sh")[arguments.command - 1].strip())
        return
    snippets = blocks("cpp")
    if len(snippets) < 4 or len(blocks("sh")) != 3:
        sys.exit("README.md: snippets or commands are missing")
    if snippets[0] != (ROOT / "examples" / "embed_minimal.cpp").read_text():
        sys.exit("README.md: the first program is not examples/embed_minimal.cpp")
    headers = "#include <mixtral/mixtral.hpp>\n#include <string>\n#include <string_view>\n\n"
    with tempfile.TemporaryDirectory() as folder:
        for number, snippet in enumerate(snippets[1:], 2):
            path = pathlib.Path(folder) / f"snippet_{number}.cpp"
            path.write_text(headers + snippet)
            command = [arguments.compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra",
                       "-Werror", f"-I{ROOT / 'include'}"]
            command += [f"-isystem{folder}" for folder in arguments.include if folder != "/usr/include"]
            if subprocess.run([*command, path]).returncode != 0:
                sys.exit(f"README.md: snippet {number} does not compile")
    print(f"{len(snippets)} snippets are right")


main()

#!/usr/bin/env python3
"""Shows a header to Doxygen with its plain comments as documentation; .ci/Doxyfile names it."""
import re
import sys

FULL = re.compile(r"^(\s*)//(?: (.*))?$")
TRAILING = re.compile(r"^(.*[;,{})(\w]\s*)// (.*)$")


def escaped(text):
    return re.sub(r"([\\<>@#%&])", r"\\\1", text)


def main():
    in_sample = False  # lines that are indented further are shown as they stand
    for number, line in enumerate(open(sys.argv[1]).read().splitlines()):
        full = FULL.match(line)
        if not full:
            if in_sample:
                line, in_sample = "/// \\endverbatim\n" + line, False
            trailing = TRAILING.match(line)
            print(f"{trailing[1]}///< {escaped(trailing[2])}" if trailing and '"' not in line else line)
            continue
        indent, text = full[1], full[2] or ""
        if number == 0:
            print("/// \\file")
        sample = text.startswith("  ") or (in_sample and not text)
        if sample and not in_sample:
            print(f"{indent}/// \\verbatim")
        if in_sample and not sample:
            print(f"{indent}/// \\endverbatim")
        in_sample = sample
        print(f"{indent}/// {text if sample else escaped(text)}")


main()

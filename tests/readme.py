#!/usr/bin/env python3
"""Compiles the README's C++ snippets, runs the one about slices of time, and compares lists with what
programs say; with --command N, prints its N-th shell command instead."""
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
    parser.add_argument("--library", help="the implementation: then a snippet is run")
    parser.add_argument("--link", nargs="*", default=[], help="what the library needs")
    parser.add_argument("--bin", type=pathlib.Path, help="the programs: then lists are compared")
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
        # In one file, each in a namespace of its own: the headers take most of the time.
        unit = headers
        for number, snippet in enumerate(snippets[1:], 2):
            lines = snippet.splitlines()
            unit += "".join(line + "\n" for line in lines if line.startswith("#include"))
            code = ["" if line.startswith("#include") else line for line in lines]
            unit += f'namespace snippet_{number} {{\n#line 1 "snippet {number}"\n' + "\n".join(code) + "\n}\n"
        path = pathlib.Path(folder) / "snippets.cpp"
        path.write_text(unit)
        command = [arguments.compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
                   f"-I{ROOT / 'include'}"]
        command += [f"-isystem{folder}" for folder in arguments.include if folder != "/usr/include"]
        if subprocess.run([*command, path], timeout=300).returncode != 0:
            sys.exit("README.md: a snippet does not compile")
        if arguments.library:
            snippet, = (s for s in snippets if "void think(" in s)
            run_think(arguments, headers + snippet, pathlib.Path(folder))
    if arguments.bin:
        compare_lists(arguments.bin)
    print(f"{len(snippets)} snippets are right")


def run_think(arguments, snippet, folder):
    """A slice long enough for a whole answer gives all of it at once; one that is over gives nothing."""
    source, program = folder / "think.cpp", folder / "think"
    source.write_text("#include <chrono>\n" + snippet + """
int main(int, char** argv) {
  auto model = mixtral::Model::open(argv[1]);
  if (!model) return 2;
  auto session = mixtral::Session::open(*model);
  if (!session || !session->append("Once upon a time")) return 2;
  mixtral::GenerateOptions options;
  options.max_tokens = 20;
  auto answer = session->generate(options);
  std::string said;
  think(answer, std::chrono::nanoseconds(0), said);
  if (!said.empty() || answer.stop_reason() != mixtral::StopReason::none) return 3;
  think(answer, std::chrono::minutes(10), said);
  return !said.empty() && answer.stop_reason() == mixtral::StopReason::max_tokens ? 0 : 4;
}
""")
    subprocess.run([arguments.compiler, "-std=c++17", f"-I{ROOT / 'include'}", source,
                    arguments.library, *arguments.link, "-pthread", "-o", program], check=True,
                   timeout=300)
    model = ROOT / "examples" / "models" / "tiny-mixtral-Q8_0.gguf"
    if (code := subprocess.run([program, model], timeout=300).returncode) != 0:
        sys.exit(f"README.md: think() does not use its slice ({code})")


def compare_lists(programs):
    """The types that the README says are read and written, with those of the library and of quantize."""
    def names(text):
        return set(re.findall(r"\b(?:BF16|F16|F32|I?Q[0-9]_[0-9A-Z_]+)\b", text))
    read = re.search(r"with tensors of type ([^|]*), experts merged", README)[1]
    table = (ROOT / "include" / "mixtral" / "block_format.hpp").read_text()
    known = set(re.findall(r'\{"(\w+)", [0-9]+, [0-9]+, (?:true|false)\}', table))
    if not known or names(read) != known:
        sys.exit("README.md: the types that are read are not those of block_format.hpp")
    written = re.search(r"any layout above and writes ([^.]*)\.", README)[1]
    shown = subprocess.run([programs / "quantize", "--help"], capture_output=True, text=True, check=True,
                           timeout=300)
    if names(written) != set(re.search(r"--type \{([^}]*)\}", shown.stdout)[1].split(",")):
        sys.exit("README.md: the types that are written are not those of quantize --help")
    # Options that it says programs have.
    said = [(match[1], match[0]) for match in re.finditer(r"^\| `(\w+)[ `].*", README, re.M)
            if (programs / match[1]).exists()]
    both = re.search(r"^`complete` and `chat` take .*", README, re.M)[0]
    if len(said) < 10:
        sys.exit("README.md: the table of programs is missing, or the programs are")
    for program, line in [*said, ("complete", both), ("chat", both)]:
        if program == "embed_minimal":  # takes no options
            continue
        text = subprocess.run([programs / program, "--help"], capture_output=True, text=True, check=True,
                              timeout=300)
        missing = set(re.findall(r"--[a-z0-9-]+", line)) - set(re.findall(r"--[a-z0-9-]+", text.stdout))
        if missing:
            sys.exit(f"README.md: {program} has no {', '.join(missing)}")


main()

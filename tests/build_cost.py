#!/usr/bin/env python3
"""What mixtral.hpp costs a program to build: the time to include it, the time to compile the kernels and
all else, in two files or in one, and the size of examples/embed_minimal.cpp. Prints the best of --repeat
runs."""
import argparse
import pathlib
import resource
import shlex
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def seconds(command):
    """Processor time of a command, which other programs lengthen less than time by the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, timeout=3600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="g++", help="and its options")
    parser.add_argument("--include", nargs="*", default=["/usr/include/eigen3"])
    parser.add_argument("--repeat", type=int, default=5, help="for the time to include; a third as often for all else")
    arguments = parser.parse_args()
    compiler = shlex.split(arguments.compiler) + ["-std=c++17", "-O2", "-DNDEBUG",
                                                  f"-I{ROOT / 'single_include'}"]
    for path in arguments.include:
        compiler += ["-isystem", path]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        empty, api = folder / "empty.cpp", folder / "api.cpp"
        empty.write_text("")
        api.write_text("#include <mixtral.hpp>\n")
        parts = []
        for part in ["KERNELS", "REST"]:
            parts.append(folder / f"{part}.cpp")
            parts[-1].write_text(f"#define MIXTRAL_IMPLEMENTATION_{part}\n#include <mixtral.hpp>\n")

        def compile_time(source):
            return seconds([*compiler, "-c", source, "-o", folder / (source.stem + ".o")])

        including = min(compile_time(api) - compile_time(empty) for _ in range(arguments.repeat))
        parts = [*parts, ROOT / "examples" / "embed_minimal.cpp"]
        kernels, rest, both = (
            min(compile_time(part) for _ in range((arguments.repeat + 2) // 3)) for part in parts)
        program = folder / "embed_minimal"
        subprocess.run([*compiler, folder / "embed_minimal.o", "-o", program, "-lhwy", "-pthread"],
                       check=True, timeout=3600)
        subprocess.run(["strip", program], check=True, timeout=3600)
        print(f"including mixtral.hpp            {including:6.2f} s over an empty file")
        print(f"compiling the kernels            {kernels:6.2f} s")
        print(f"compiling all else               {rest:6.2f} s")
        print(f"compiling both in one file       {both:6.2f} s")
        print(f"embed_minimal, stripped          {program.stat().st_size / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()

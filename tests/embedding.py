#!/usr/bin/env python3
"""The embedding rules that only a look from outside can tell."""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "models" / "tiny-mixtral-Q8_0.gguf"

# What a library must not call: it would end the host, print, or read its environment.
FORBIDDEN = {
    "exit", "_exit", "quick_exit", "abort", "__assert_fail", "getenv", "secure_getenv", "setenv",
    "printf", "fprintf", "puts", "fputs", "putchar", "fwrite", "write", "stdout", "stderr",
    "__printf_chk", "__fprintf_chk", "std::cout", "std::cerr", "std::clog", "hwy::Abort",
    "signal", "sigaction", "system", "fork",
}


class Embedding(unittest.TestCase):
    bin = library = compiler = None

    def host(self, *arguments, **options):
        command = [self.bin / "embedding_host", *arguments]
        return subprocess.run(command, capture_output=True, timeout=300, **options)

    def test_host_without_exceptions_runs_and_nothing_is_printed(self):
        result = self.host(MODEL, ROOT / "LICENSE")
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, b"", b""))

    def test_environment_is_not_read(self):
        result = self.host(MODEL, ROOT / "LICENSE", env={})
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, b"", b""))

    def test_no_thread_is_started(self):
        if not shutil.which("strace"):
            self.skipTest("needs strace")
        log = subprocess.run(
            ["strace", "-f", "-qq", "-e", "trace=clone,clone3,fork,vfork,write",
             self.bin / "embedding_host", MODEL, ROOT / "LICENSE"],
            capture_output=True, text=True, timeout=300,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})  # leaks are not looked for here
        if "Operation not permitted" in log.stderr:
            self.skipTest("strace is not allowed here")
        # The undefined-behaviour sanitizer writes to pipes of its own.
        calls = [call for call in log.stderr.splitlines() if not re.match(r"write\((?![12],)", call)]
        self.assertEqual((log.returncode, calls), (0, []))

    def tool(self, name, *options):
        """What a binary utility says of the library's object file."""
        if not shutil.which(name):
            self.skipTest("needs " + name)
        output = subprocess.run([name, *options, self.library], capture_output=True, text=True,
                                check=True).stdout
        if "__asan" in output or "__ubsan" in output:
            self.skipTest("a sanitizer adds symbols of its own")
        return output

    def test_no_forbidden_symbol_is_used(self):
        used = {line.split(" U ")[-1].strip() for line in self.tool("nm", "-uC").splitlines()}
        self.assertIn("memcpy", used)
        self.assertEqual({name for name in used if name.split("(")[0] in FORBIDDEN}, set())

    def test_api_includes_only_the_standard_library(self):
        # Eigen and Highway are what takes long to compile; only the implementation needs them.
        output = subprocess.run(
            [self.compiler, "-std=c++17", "-M", "-x", "c++", f"-I{ROOT / 'include'}", "-"],
            input="#include <mixtral/mixtral.hpp>", capture_output=True, text=True, check=True).stdout
        self.assertIn("mixtral/session.hpp", output)
        self.assertEqual(re.findall(r"\S*(?:Eigen|hwy)/\S*", output), [])

    def test_no_mutable_state(self):
        # Nothing in a section that is writable once the program runs, thread-local ones included.
        # Eigen keeps one thread-local variable for the threads of its pool.
        section = re.compile(r"\s\.(data|bss|tdata|tbss)(?!\.rel\.ro)\S*\s+[0-9a-f]+\s+(.+)")
        mutable = []
        for line in self.tool("objdump", "-tC").splitlines():
            match = section.search(line)
            if match and match[2][0] != "." and "DW.ref" not in line and "Eigen::" not in line:
                mutable.append(match[2])
        self.assertEqual(mutable, [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--library", type=pathlib.Path, required=True)
    parser.add_argument("--compiler", default="c++")
    arguments, rest = parser.parse_known_args()
    Embedding.bin, Embedding.library = arguments.bin, arguments.library
    Embedding.compiler = arguments.compiler
    unittest.main(argv=[__file__, *rest])

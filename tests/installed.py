#!/usr/bin/env python3
"""Looks at what an installation holds, from a folder that it was moved to: programs, the bundled model, what
bash completes, and what pkg-config says."""
import argparse
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

from programs import PROGRAMS, ROOT

NAMES = {name: f"mixtral-{name.replace('_', '-')}" for name in PROGRAMS}


class Installed(unittest.TestCase):
    prefix = compiler = None
    library = None  # the implementation, compiled; without it a consumer compiles it, which takes long

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.bin = self.prefix / "bin"
        self.environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def run_in(self, *command, code=0, **options):
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                                env=self.environment, timeout=300, **options)
        self.assertEqual(result.returncode, code, result.stderr)
        return result

    def test_programs_have_names_of_their_own(self):
        self.assertEqual({p.name for p in self.bin.iterdir()}, set(NAMES.values()))
        for name in NAMES.values():
            self.assertTrue(self.run_in(name, "--version").stdout.startswith(name + " "))
            self.assertRegex(self.run_in(name, "--help").stdout, rf"(?m)^(Usage: )?{name} \[OPTIONS\]")
        self.assertRegex(self.run_in("mixtral-complete", code=2).stderr, "^mixtral-complete: ")

    def test_the_bundled_model_is_the_installed_one(self):
        arguments = ["mixtral-complete", "--prompt", "Once upon a time", "--max-tokens", 5]
        self.assertTrue(self.run_in(*arguments, cwd="/").stdout)
        link = self.folder / "link"
        link.symlink_to(self.bin / "mixtral-complete")
        self.assertTrue(self.run_in(link, *arguments[1:], cwd="/").stdout)
        model, = (self.prefix / "share" / "mixtral").iterdir()
        # Were the sources' model used instead, a bad one here would do no harm.
        kept = model.read_bytes()
        try:
            model.write_bytes(b"no model")
            error = self.run_in(*arguments, code=1).stderr
            self.assertIn(f"'{model.resolve()}'", error)
        finally:
            model.write_bytes(kept)

    # Completion by bash, as the function says ------------------------------------------------------

    def completed(self, *words):
        script = """
            source "$1"
            shift
            complete -p "$1" >&2
            COMP_WORDS=("$@")
            COMP_CWORD=$(($# - 1))
            _mixtral_completions "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            [ ${#COMPREPLY[@]} = 0 ] || printf '%s\\n' "${COMPREPLY[@]}"
        """
        file = self.prefix / "share" / "bash-completion" / "completions" / words[0]
        result = self.run_in("bash", "--norc", "--noprofile", "-c", script, "bash", file, *words,
                             cwd=self.folder)
        self.assertEqual(result.stderr.strip(), f"complete -F _mixtral_completions {words[0]}")
        return result.stdout.splitlines()

    def test_bash_completes_every_option_of_every_program(self):
        for name in NAMES.values():
            with self.subTest(name):
                text = self.run_in(name, "--help").stdout
                options = set(re.findall(r"^ +(?:-h, *)?(--[a-z0-9-]+)", text, re.M))
                self.assertIn("--version", options)
                self.assertEqual(sorted(self.completed(name, "")), sorted(options))

    def test_bash_completes_values_and_files(self):
        complete = "mixtral-complete"
        self.assertEqual(self.completed(complete, "--ver"), ["--version"])
        self.assertEqual(self.completed(complete, "--kv-format", ""), ["f32", "f16", "bf16", "q8_0"])
        self.assertEqual(self.completed(complete, "--kv-format", "q"), ["q8_0"])
        self.assertEqual(self.completed(complete, "--kv-format", "="), ["f32", "f16", "bf16", "q8_0"])
        self.assertEqual(self.completed(complete, "--kv-format", "=", "B"), ["bf16"])
        self.assertEqual(self.completed("mixtral-quantize", "--type", "Q4_K"), ["Q4_K_M", "Q4_K_S"])
        self.assertEqual(self.completed("mixtral-bench", "--synthetic", "8x"), ["8x22b", "8x7b"])
        self.assertEqual(self.completed(complete, "--seed", "1"), [])  # any number
        self.assertEqual(self.completed(complete, "--no-such"), [])
        # What was given is not offered again, unless it may be repeated.
        rest = self.completed(complete, "--json", "--stop", "--seed", "--s")
        self.assertEqual(sorted(rest), ["--seed", "--stop"])
        self.assertEqual(self.completed(complete, "--seed", "1", "--s"), ["--stop"])
        for name in ("a prompt.txt", "another.txt", "b"):
            (self.folder / name).write_text("x")
        for option in ("--prompt-file", "--model", "--grammar"):
            self.assertEqual(sorted(self.completed(complete, option, "a")),
                             ["a prompt.txt", "another.txt"])

    def test_bash_completes_at_a_terminal(self):
        (self.folder / "a prompt.txt").write_text("x")
        leader, follower = pty.openpty()
        completions = self.prefix / "share" / "bash-completion" / "completions" / "mixtral-complete"
        bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"], stdin=follower, stdout=follower,
            stderr=follower, cwd=self.folder, start_new_session=True,
            env={**self.environment, "PS1": "$ ", "TERM": "dumb", "INPUTRC": "/dev/null"})
        os.close(follower)
        try:
            shown = b""

            def type_and_see(typed, expected):
                nonlocal shown
                os.write(leader, typed)
                end = time.monotonic() + 60
                while expected not in shown:
                    self.assertGreater(end, time.monotonic(), (typed, shown))
                    if select.select([leader], [], [], 1)[0]:
                        shown += os.read(leader, 4096)
                shown = shown.partition(expected)[2]

            type_and_see(f"source '{completions}'; echo rea'dy'\n".encode(), b"\nready")
            type_and_see(b"mixtral-complete --kv-fo\t", b"--kv-format ")
            type_and_see(b"q\t", b"q8_0 ")
            type_and_see(b"--prompt-f\t", b"--prompt-file ")
            type_and_see(b"a\\ p\t", b"rompt.txt ")
        finally:
            bash.kill()
            bash.communicate()
            os.close(leader)

    # pkg-config --------------------------------------------------------------------------------------

    @unittest.skipUnless(shutil.which("pkg-config"), "needs pkg-config")
    def test_pkg_config_builds_a_consumer(self):
        pc, = self.prefix.rglob("mixtral.pc")
        self.environment["PKG_CONFIG_PATH"] = str(pc.parent)
        version = self.run_in("mixtral-complete", "--version").stdout.split()[1]
        self.assertEqual(self.run_in("pkg-config", "--modversion", "mixtral").stdout.strip(), version)
        flags = self.run_in("pkg-config", "--cflags", "--libs", "mixtral").stdout.split()
        self.assertTrue(any(f.startswith("-I") and pathlib.Path(f[2:]).resolve() ==
                            (self.prefix / "include").resolve() for f in flags), flags)
        consumer = ROOT / "tests" / "consumer"
        self.run_in(self.compiler, "-std=c++17", "-O0",
                    "-DHWY_DISABLED_TARGETS=(HWY_AVX3_DL|HWY_AVX3|HWY_AVX2|HWY_SSE4)",
                    consumer / "main.cpp", self.library or consumer / "implementation.cpp", *flags,
                    "-o", self.folder / "consumer")
        model, = (self.prefix / "share" / "mixtral").iterdir()
        self.assertIn("8 experts", self.run_in(self.folder / "consumer", model).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--library", type=pathlib.Path, help="the implementation, compiled")
    parser.add_argument("--only", action="append", default=[], help="names of tests")
    parser.add_argument("command", nargs=argparse.REMAINDER,
                        help="after --: a command that installs into the folder that is put after it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, Installed.prefix = pathlib.Path(folder, "first"), pathlib.Path(folder, "moved", "here")
        command = [*arguments.command[1:], str(first)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, timeout=300).returncode != 0:
            sys.exit(f"does not install: {' '.join(command)}")
        Installed.prefix.parent.mkdir()
        first.rename(Installed.prefix)
        Installed.compiler, Installed.library = arguments.compiler, arguments.library
        unittest.main(argv=[__file__, *(f"Installed.{name}" for name in arguments.only)])

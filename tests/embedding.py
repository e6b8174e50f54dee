#!/usr/bin/env python3
"""The embedding rules that only a look from outside can tell."""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
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
    include = []
    sanitized = False

    def host(self, *arguments, **options):
        command = [self.bin / "embedding_host", *arguments]
        return subprocess.run(command, capture_output=True, timeout=300, **options)

    def test_host_without_exceptions_runs_and_nothing_is_printed(self):
        result = self.host(MODEL, ROOT / "LICENSE")
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, b"", b""))

    def test_no_environment_is_needed(self):  # that none is read, test_no_forbidden_symbol_is_used tells
        result = self.host(MODEL, ROOT / "LICENSE", env={})
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, b"", b""))

    def traced(self, *command):
        """The exit code of a command, and its calls that start a thread or a process or that print."""
        log = subprocess.run(
            ["strace", "-f", "-qq", "-e", "trace=clone,clone3,fork,vfork,write", *command],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=300,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})  # leaks are not looked for here
        if "Operation not permitted" in log.stderr:
            self.skipTest("strace is not allowed here")
        # The undefined-behaviour sanitizer writes to pipes of its own.
        return log.returncode, [call for call in log.stderr.splitlines()
                                if not re.match(r"write\((?![12],)", call)]

    def test_no_thread_is_started(self):
        if not shutil.which("strace"):
            self.skipTest("needs strace")
        # A shell that starts a process and prints shows that both would be seen.
        code, calls = self.traced("sh", "-c", "(true) & wait; echo x")
        self.assertEqual(code, 0)
        self.assertRegex("\n".join(calls), r"clone|fork")
        self.assertRegex("\n".join(calls), r"write\(1,")
        self.assertEqual(self.traced(self.bin / "embedding_host", MODEL, ROOT / "LICENSE"), (0, []))

    def tool(self, name, *options, file=None):
        """What a binary utility says of a file: of the library's object file if of no other."""
        if not shutil.which(name):
            self.skipTest("needs " + name)
        output = subprocess.run([name, *options, file or self.library], capture_output=True, text=True,
                                check=True, timeout=300).stdout
        if "__asan" in output or "__ubsan" in output:
            self.skipTest("a sanitizer adds symbols of its own")
        return output

    def symbols_used(self, file=None):
        """All, and those that are forbidden."""
        used = {line.split(" U ")[-1].strip() for line in self.tool("nm", "-uC", file=file).splitlines()}
        return used, {name for name in used if name.split("(")[0] in FORBIDDEN}

    def mutable_state(self, file=None):
        """What is in a section that is writable once the program runs, thread-local ones included."""
        section = re.compile(r"\s\.(data|bss|tdata|tbss)(?!\.rel\.ro)\S*\s+[0-9a-f]+\s+(.+)")
        found = []
        for line in self.tool("objdump", "-tC", file=file).splitlines():
            match = section.search(line)
            if match and match[2][0] != "." and "DW.ref" not in line:
                found.append(match[2])
        return found

    def test_what_is_forbidden_would_be_found(self):
        with tempfile.TemporaryDirectory() as folder:
            sample = pathlib.Path(folder) / "sample.o"
            subprocess.run([self.compiler, "-std=c++17", "-x", "c++", "-c", "-", "-o", sample], input="""
                #include <cstdio>
                #include <cstdlib>
                #include <iostream>
                static int first, second = 2;
                static thread_local int third;
                int sample(const char* text) {
                  static int fourth;
                  if (text == nullptr) std::abort();
                  std::cout << std::getenv(text);
                  std::fputs(text, stderr);
                  return first++ + second++ + third++ + fourth++;
                }""", check=True, text=True, capture_output=True, timeout=300)
            self.assertLessEqual({"abort", "getenv", "std::cout", "fputs", "stderr"},
                                 self.symbols_used(sample)[1])
            state = self.mutable_state(sample)
            for name in ("first", "second", "third", "fourth"):
                self.assertTrue([found for found in state if name in found], (name, state))

    def test_no_forbidden_symbol_is_used(self):
        used, forbidden = self.symbols_used()
        self.assertIn("memcpy", used)
        self.assertEqual(forbidden, set())

    def test_api_includes_only_the_standard_library(self):
        # Eigen and Highway are what takes long to compile; only the implementation needs them.
        output = subprocess.run(
            [self.compiler, "-std=c++17", "-M", "-x", "c++", f"-I{ROOT / 'include'}", "-"],
            input="#include <mixtral/mixtral.hpp>", capture_output=True, text=True, check=True,
            timeout=300).stdout
        self.assertIn("mixtral/session.hpp", output)
        self.assertEqual(re.findall(r"\S*(?:Eigen|hwy)/\S*", output), [])

    def test_no_mutable_state(self):
        # Eigen keeps one thread-local variable for the threads of its pool.
        self.assertEqual([name for name in self.mutable_state() if "Eigen::" not in name], [])

    def test_one_translation_unit(self):
        # A unity build of the host, and one of the single headers.
        if self.sanitized:
            self.skipTest("they are not built with sanitizers")
        for name, arguments in (("embedding_unity", [MODEL, ROOT / "LICENSE"]), ("embedding_single", [MODEL])):
            program = self.bin / name
            with self.subTest(name):
                result = subprocess.run([program, *arguments], capture_output=True, timeout=300)
                self.assertEqual((result.returncode, result.stdout, result.stderr), (0, b"", b""))


# What tells that the definitions of a header are there: a function of its own.
DEFINED = {
    "kernels": r"\bvoid for_each_kernels\([^;{]*\)\s*{",
    "mixtral": r"\bBytes::map_file\([^;{]*\)\s*{",
    "checkpoints": r"\bopen_checkpoint\([^;{]*\)\s*{",
    "json_schema": r"\bjson_schema_grammar\([^;{]*JsonSchemaOptions[^;{]*\)\s*{",
    "quantize": r"\bwrite_gguf\([^;{]*\)\s*{",
}
HEADERS = ["mixtral", "checkpoints", "json_schema", "quantize", "tools"]
TREE = {name: f"#include <mixtral/{name}.hpp>" for name in HEADERS}
SINGLE = {name: f'#include "mixtral_{name}.hpp"' for name in HEADERS} | {"mixtral": '#include "mixtral.hpp"'}


class Headers(unittest.TestCase):
    """What compilers make of the headers, without the time that optimising takes."""

    def compile(self, text, *options, standard="c++17"):
        includes = [f"-I{path}" for path in (ROOT / "include", ROOT / "single_include")]
        for path in Embedding.include:
            includes += ["-idirafter", path]  # not before the compiler's own
        return subprocess.run([Embedding.compiler, f"-std={standard}", "-x", "c++", *includes,
                               "-DMIXTRAL_HEADERS_ONLY", *options, "-"],
                              input=text, capture_output=True, text=True, timeout=300)

    def definitions(self, lines, others):
        """How often each of DEFINED is there; the headers of others are in a folder, empty."""
        result = self.compile("\n".join(lines), "-E", "-P", "-nostdinc", f"-I{others}",
                              "-DHWY_STATIC_TARGET=1", "-DHWY_SCALAR=2", "-DHWY_EMU128=4")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return {name: len(re.findall(pattern, result.stdout)) for name, pattern in DEFINED.items()}

    def test_implementation_comes_once_wherever_the_define_is(self):
        units = []
        for headers in (TREE, SINGLE):
            for last in HEADERS:
                before = [headers[name] for name in HEADERS if name != last]
                for define in ([], ["#define MIXTRAL_IMPLEMENTATION"]):
                    # Before all headers, and after all but one.
                    units.append((define + before + ["#define MIXTRAL_IMPLEMENTATION", headers[last]],
                                  set(DEFINED)))
                # In the last file, of headers that others have included.
                units.append(([*headers.values(), "#define MIXTRAL_IMPLEMENTATION", headers[last],
                               *headers.values()], set(DEFINED)))
            every = list(headers.values())
            rest = set(DEFINED) - {"kernels"}
            kernels_define = "#define MIXTRAL_IMPLEMENTATION_KERNELS"
            rest_define = "#define MIXTRAL_IMPLEMENTATION_REST"
            units += [
                (every, set()),
                ([headers["mixtral"], kernels_define, headers["mixtral"]], {"kernels"}),
                ([headers["mixtral"], rest_define, headers["mixtral"]], {"mixtral"}),
                ([rest_define, headers["quantize"]], {"mixtral", "quantize"}),
                (every + [rest_define, headers["mixtral"]], rest),
                (every + [rest_define, headers["tools"], kernels_define, headers["mixtral"]], set(DEFINED)),
                (every + [kernels_define, headers["tools"], rest_define, headers["mixtral"]], set(DEFINED)),
            ]
        with tempfile.TemporaryDirectory() as folder:
            for path in (ROOT / "include").rglob("*.hpp"):
                for name in re.findall(r"^#include <(.*)>", path.read_text(), re.M):
                    other = pathlib.Path(folder) / name
                    other.parent.mkdir(parents=True, exist_ok=True)
                    other.touch()
            for lines, expected in units:
                with self.subTest("; ".join(lines)):
                    self.assertEqual(self.definitions(lines, folder),
                                     {name: int(name in expected) for name in DEFINED})

    def test_older_standards_are_refused_in_one_line(self):
        public = [f"#include <{path.relative_to(ROOT / 'include')}>"
                  for path in sorted((ROOT / "include" / "mixtral").glob("*.hpp"))
                  if path.name != "implementation.hpp"]
        self.assertGreater(len(public), 20)
        for include in public + list(SINGLE.values()):
            with self.subTest(include):
                result = self.compile("\n".join([include, "mixtral::Status f();"]), "-fsyntax-only",
                                      standard="c++14")
                errors = [line for line in result.stderr.splitlines() if "error:" in line]
                self.assertNotEqual(result.returncode, 0)
                self.assertIn("mixtral.hpp needs C++17: compile with -std=c++17", errors[0])
                # After it, that a file of that name is not there, which ends the compilation.
                self.assertEqual(len(errors), 2, result.stderr)
                self.assertIn("fatal", errors[1])

    def test_min_and_max_may_be_macros(self):
        # As after <windows.h>. The standard library's headers come before, as they are not ours.
        sources = "".join(path.read_text() for path in sorted((ROOT / "include").rglob("*.hpp")))
        standard = sorted(set(re.findall(r"#include <([a-z_]+)>", sources)))
        lines = [f"#include <{name}>" for name in standard] + ["#include <nlohmann/json.hpp>"]
        lines += ["#define min(a, b) min_of_a_macro", "#define max(a, b) max_of_a_macro"]
        after = ["int after[] = {min(1, 2), max(1, 2)};"]
        # The single headers, which are made of the tree's lines, those that put the macros aside included.
        for define in ([], ["#define MIXTRAL_IMPLEMENTATION_REST"]):
            with self.subTest(define=define):
                result = self.compile("\n".join(lines + define + list(SINGLE.values()) + after), "-E", "-P")
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertIn("BlockFormat", result.stdout)
                # The host has its macros after the headers, and nothing of ours was taken for one of them.
                self.assertEqual(re.findall(".*_of_a_macro.*", result.stdout),
                                 ["int after[] = {min_of_a_macro, max_of_a_macro};"])


# What not all compilers know, each with the text of a line that has it.
EXTENSIONS = {
    r"__attribute__|__declspec|__forceinline": "__attribute__((packed))",
    r"\b_Pragma\b|__pragma|#\s*pragma(?! (push|pop)_macro\()": "#pragma GCC unroll 8",
    r"__builtin_\w+|__sync_\w+|__atomic_\w+": "__builtin_expect(x, 0)",
    r"\b(?:asm|__asm__|__asm)\b": 'asm("")',
    r"__u?int128\w*|__float128|\bssize_t\b|\btypeof\b|__typeof__": "unsigned __int128 x;",
    r"\b__restrict(__)?\b|__extension__|__label__|\balloca\b": "float* __restrict x",
    r"(?<![\w>\"])\(\{(?!\})[^{}]*;": "x = ({ int y = 1; y; });",
    r"[{,]\s*\.\w+\s*=(?!=)": "Point{.x = 1}",
    r"\bcase\s+[^:]+\.\.\.": "case 1 ... 5:",
    r"\b(?:__GNUC__|__clang(?:_\w+)?__|_MSC_VER|_MSVC_LANG|__MINGW\w+|__x86_64__|__has_feature)\b":
        "#ifdef __GNUC__",
}
COMPILERS = ROOT / "include" / "mixtral" / "impl" / "compiler.hpp"


def code_of(path):
    """A file's lines without comments and literals of text."""
    text = re.sub(r'R"(\w*)\(.*?\)\1"', lambda raw: '""' + "\n" * raw[0].count("\n"),
                  path.read_text(), flags=re.S)
    return [re.sub(r"//.*", "", re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)) if not line.startswith("#")
            else re.sub(r"//.*", "", line) for line in text.splitlines()]


class Portability(unittest.TestCase):
    def test_patterns_find_what_they_are_for(self):
        for pattern, example in EXTENSIONS.items():
            self.assertRegex(example, pattern)

    def test_extensions_of_compilers_stand_in_one_header(self):
        found = []
        for path in sorted((ROOT / "include").rglob("*.hpp")):
            if path == COMPILERS:
                continue
            for number, line in enumerate(code_of(path), 1):
                found += [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for pattern in EXTENSIONS
                          if re.search(pattern, line)]
        self.assertEqual(found, [])

    def test_headers_of_one_system_are_included_for_it_alone(self):
        systems = re.compile(r"#include <(?:sys/.*|unistd\.h|fcntl\.h|dirent\.h|pthread\.h|signal\.h|"
                             r"windows\.h|io\.h|intrin\.h|poll\.h)>")
        found, n_guarded = [], 0
        for path in sorted((ROOT / "include").rglob("*.hpp")):
            depth = 0  # of conditions, the include guard not counted
            for line in code_of(path):
                if re.match(r"#\s*if", line) and not re.match(r"#ifndef MIXTRAL_\w+_HPP_", line):
                    depth += 1
                elif re.match(r"#\s*endif", line):
                    depth -= 1
                elif systems.match(line) and depth < 1:
                    found.append(f"{path.relative_to(ROOT)}: {line}")
                elif systems.match(line):
                    n_guarded += 1
        self.assertEqual(found, [])
        self.assertGreater(n_guarded, 3)

    def test_public_headers_survive_min_and_max_as_macros(self):
        # Definitions are compiled with the macros put aside, see implementation.hpp; declarations are not.
        found = []
        for path in sorted((ROOT / "include" / "mixtral").glob("*.hpp")):
            found += [f"{path.name}: {line.strip()}" for line in code_of(path)
                      if re.search(r"\b(?:min|max)\s*\(", line)]
        self.assertEqual(found, [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--library", type=pathlib.Path, required=True)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--include", nargs="*", default=[], help="folders of Eigen, Highway and nlohmann-json")
    parser.add_argument("--sanitized", action="store_true", help="some programs are not there")
    arguments, rest = parser.parse_known_args()
    Embedding.sanitized = arguments.sanitized
    Embedding.bin, Embedding.library = arguments.bin, arguments.library
    Embedding.compiler, Embedding.include = arguments.compiler, arguments.include
    unittest.main(argv=[__file__, *rest])

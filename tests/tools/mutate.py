#!/usr/bin/env python3
"""Puts small faults into headers of the library, one at a time, and lists those that no unit test notices.

    tests/tools/mutate.py include/mixtral/impl/gguf.hpp            every mutant of one header
    tests/tools/mutate.py --diff main                              every mutant of the lines changed since main
    tests/tools/mutate.py include/mixtral/simd:50 include/mixtral:250   a sample of a folder, then of the rest

A mutant is one of these changes: a comparison that includes its limit where it excluded it or the other way
round, or that is inverted; a constant one greater, or a truth value inverted; a statement that is left out; a
check (an if, or one side of && or ||) that is left out; two arguments of one type swapped. Default arguments
and default members are constants, too.

All chosen mutants are compiled at once into a copy of the tree, each behind a switch, for one SIMD level. A
first run of the unit tests notes which test case reaches which mutant; then, for each mutant, the program runs
those cases, the quickest first, until one fails. What the compiler evaluates itself (array bounds, constexpr
values) cannot be switched: such a mutant, and one that no test case reaches, is built on its own and judged by
all cases. Of the others, those that do not compile are replaced by the next of the sample.

The choice depends on the seed and on the text of the mutated lines, so that an unrelated edit changes nothing; but
which lines of the kernels there are depends on the CPU. The tests that need ../shared are not run, so that
everybody gets the same score. equivalent_mutants.txt lists mutants that nothing can tell from the original, each with the reason;
they count neither as killed nor as survivors.

Needs libclang for Python of the installed clang's version (`pip install libclang==14.0.6`), clang for its
headers, and what the library's tests need.
"""
import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
INCLUDE = pathlib.Path("include") / "mixtral"
SOURCES = ["examples/implementation.cpp", "examples/kernels.cpp"]
EQUIVALENT = pathlib.Path(__file__).resolve().parent / "equivalent_mutants.txt"
# For one SIMD level, that of this CPU, with the optimisation that compiles soonest.
FLAGS = ["-O1", "-march=native", "-DMIXTRAL_HEADERS_ONLY"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]
MEMORY_BYTES = 8 << 30
MOST_MUTANTS = 1 << 14
WITHOUT_SHARED = "--test-suite-exclude=shared"
# A mutant may make a loop endless. Other processes may take the machine's time meanwhile.
SECONDS_AT_LEAST, TIMES_SLOWER = 20, 8
# A longer table of numbers is one fact, which is right or wrong as a whole.
MOST_OF_A_TABLE = 32
# Cases are run in groups, the quickest first; a group takes about this time without a fault.
SECONDS_OF_A_GROUP = [0.5, 4, 1000]

SWITCH = """#ifndef MIXTRAL_MUTANT_SWITCH_HPP_
#define MIXTRAL_MUTANT_SWITCH_HPP_
namespace mixtral_mutant {
inline int active = -1;
inline unsigned char reached[%(count)d + 1];
inline bool at(int n) { reached[n] = 1; return active == n; }
constexpr bool on(int n) { return __builtin_is_constant_evaluated() ? false : at(n); }
template <class A, class B> constexpr bool less(int n, const A& a, const B& b) { return on(n) ? a <= b : a < b; }
template <class A, class B> constexpr bool less_equal(int n, const A& a, const B& b) { return on(n) ? a < b : a <= b; }
template <class A, class B> constexpr bool greater(int n, const A& a, const B& b) { return on(n) ? a >= b : a > b; }
template <class A, class B> constexpr bool greater_equal(int n, const A& a, const B& b) { return on(n) ? a > b : a >= b; }
template <class A, class B> constexpr bool equal(int n, const A& a, const B& b) { return on(n) ? !(a == b) : a == b; }
template <class A, class B> constexpr bool not_equal(int n, const A& a, const B& b) { return on(n) ? !(a != b) : a != b; }
}
#endif
"""

LISTENER = r"""#include "../mutant_switch.hpp"
#include <doctest/doctest.h>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ostream>
namespace {
const int first = [] {
  if (const char* n = std::getenv("MIXTRAL_MUTANT")) mixtral_mutant::active = std::atoi(n);
  return 0;
}();
struct Listener : doctest::IReporter {
  explicit Listener(const doctest::ContextOptions&) {}
  std::FILE* file = nullptr;
  std::chrono::steady_clock::time_point start;
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {
    if (const char* path = std::getenv("MIXTRAL_MUTANT_REACHED")) file = std::fopen(path, "w");
  }
  void test_run_end(const doctest::TestRunStats&) override { if (file != nullptr) std::fclose(file); }
  void test_case_start(const doctest::TestCaseData& data) override {
    if (file == nullptr) return;
    std::fprintf(file, "case\t%s\t%s\n", data.m_name, data.m_file.c_str());
    // What is reached before the first case, or between cases, may act on all of them.
    for (unsigned n = 0; n < sizeof(mixtral_mutant::reached); ++n) {
      if (mixtral_mutant::reached[n]) std::fprintf(file, "all\t%u\n", n);
    }
    std::memset(mixtral_mutant::reached, 0, sizeof(mixtral_mutant::reached));
    start = std::chrono::steady_clock::now();
  }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {
    if (file == nullptr) return;
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    std::fprintf(file, "end\t%f\t", time.count());
    for (unsigned n = 0; n < sizeof(mixtral_mutant::reached); ++n) {
      if (mixtral_mutant::reached[n]) std::fprintf(file, "%u ", n);
    }
    std::memset(mixtral_mutant::reached, 0, sizeof(mixtral_mutant::reached));
    std::fprintf(file, "\n");
    std::fflush(file);
  }
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};
}
DOCTEST_REGISTER_LISTENER("mutants", 1, Listener);
"""

COMPARISONS = {"<": ("less", "<="), "<=": ("less_equal", "<"), ">": ("greater", ">="), ">=": ("greater_equal", ">"),
               "==": ("equal", "!="), "!=": ("not_equal", "==")}
# Whose arguments may stand in any order, and whose first two may.
SYMMETRIC = {"min", "max", "swap", "equal", "abs", "Add", "Mul", "Min", "Max", "Or", "And", "Xor"}
FIRST_TWO_SYMMETRIC = {"fma", "mul_add", "MulAdd", "NegMulAdd"}


class Failed(Exception):
    pass


class Mutant:
    """One change of a file: text put around [begin, end), and perhaps one token inside replaced.

    `switched` are (prefix, suffix) with %d for the mutant's number; `alone` is the text that takes the place
    of [begin, end) when the mutant is built on its own.
    """

    def __init__(self, path, text, begin, end, what, prefix, suffix, alone, token=None, constant=False):
        self.path, self.begin, self.end, self.what = path, begin, end, what
        self.prefix, self.suffix, self.alone, self.token = prefix, suffix, alone, token
        self.constant = constant  # evaluated by the compiler
        self.second = None  # (offset, name) of the second of two swapped arguments, and what takes its place
        self.line = text.count(b"\n", 0, begin) + 1
        line_begin = text.rfind(b"\n", 0, begin) + 1
        line_end = text.find(b"\n", begin)
        self.source = text[line_begin:line_end].decode().strip()
        self.number = None
        self.written_begin = self.written_end = 0
        self.status = None
        self.by = ""

    def key(self):
        return (str(self.path), self.source, self.what)

    def rank(self, seed):
        return hashlib.sha256(repr((seed, *self.key())).encode()).digest()

    def __str__(self):
        return f"{self.path}:{self.line}: {self.what}\n    {self.source}"


def room_of(path):
    """The folder of a header is its room; one that lies in no folder of its own is a room itself."""
    inside = path.relative_to(INCLUDE)
    return inside.stem if len(inside.parts) == 1 or str(inside.parent) == "impl" else str(inside.parent)


# --- Finding the mutants ---------------------------------------------------------------------------------------


class Finder:
    """Walks the syntax tree of a translation unit and collects the mutants of the headers in `paths`."""

    def __init__(self, cindex, paths):
        self.cindex = cindex
        self.kind = cindex.CursorKind
        self.paths = paths
        self.texts = {path: (ROOT / path).read_bytes() for path in paths}
        self.found = {}

    def add(self, path, begin, end, what, prefix, suffix, alone, token=None, constant=False):
        mutant = Mutant(path, self.texts[path], begin, end, what, prefix, suffix, alone, token, constant)
        return self.found.setdefault((str(path), begin, end, what), mutant)

    def parse(self, source, arguments):
        unit = self.cindex.Index.create().parse(str(ROOT / source), args=arguments)
        problems = [d for d in unit.diagnostics if d.severity >= self.cindex.Diagnostic.Error]
        if problems:
            raise Failed(f"{source} does not parse: {problems[0]}")
        files = {}
        for child in unit.cursor.get_children():
            name = child.location.file.name if child.location.file else None
            if name is None:
                continue
            if name not in files:
                resolved = pathlib.Path(name).resolve()
                files[name] = resolved.relative_to(ROOT) if ROOT in resolved.parents else None
            if files[name] is not None:
                self.walk(child, False, None, files)

    def path_of(self, cursor, files):
        if cursor.location.file is None:
            return None
        name = cursor.location.file.name
        if name not in files:
            resolved = pathlib.Path(name).resolve()
            files[name] = resolved.relative_to(ROOT) if ROOT in resolved.parents else None
        return files[name] if files[name] in self.texts else None

    def walk(self, cursor, constant, parent, files):
        kind, K = cursor.kind, self.kind
        path = self.path_of(cursor, files)
        if path is not None:
            self.visit(cursor, path, constant, parent)
        if kind in (K.STATIC_ASSERT, K.ENUM_CONSTANT_DECL):
            if kind == K.STATIC_ASSERT:
                return
            constant = True
        if path is not None and kind == K.VAR_DECL:
            begin = cursor.extent.start.offset
            text = self.texts[path][begin:cursor.extent.end.offset]
            head = text.split(b"=")[0].split(b"{")[0]
            at_namespace = cursor.semantic_parent is not None and cursor.semantic_parent.kind in (
                K.NAMESPACE, K.TRANSLATION_UNIT, K.STRUCT_DECL, K.CLASS_DECL, K.CLASS_TEMPLATE)
            if b"constexpr" in head or b"static" in head or at_namespace:
                constant = True
        children = list(cursor.get_children())
        if kind == K.INIT_LIST_EXPR and len(children) > MOST_OF_A_TABLE:
            return
        for index, child in enumerate(children):
            is_label = kind == K.CASE_STMT and index == 0
            self.walk(child, constant or is_label, cursor, files)

    def visit(self, cursor, path, constant, parent):
        K, text = self.kind, self.texts[path]
        begin, end = cursor.extent.start.offset, cursor.extent.end.offset
        if end <= begin or cursor.extent.end.file is None or \
                cursor.extent.end.file.name != cursor.extent.start.file.name:
            return
        kind = cursor.kind
        if kind == K.INTEGER_LITERAL or kind == K.FLOATING_LITERAL or kind == K.CHARACTER_LITERAL:
            self.literal(path, text, begin, end, kind, constant)
        elif kind == K.CXX_BOOL_LITERAL_EXPR and text[begin:end] in (b"true", b"false"):
            other = "false" if text[begin:end] == b"true" else "true"
            self.add(path, begin, end, f"{text[begin:end].decode()} -> {other}",
                     f"(mixtral_mutant::on(%d) ? {other} : ", ")", other, constant=constant)
        elif kind in (K.BINARY_OPERATOR, K.CALL_EXPR):
            self.operator(cursor, path, text, begin, end, constant)
            if kind == K.CALL_EXPR:
                self.call(cursor, path, text)
        elif kind == K.IF_STMT:
            self.check(cursor, path, text, begin)
        if parent is not None and parent.kind in (K.COMPOUND_STMT, K.CASE_STMT, K.DEFAULT_STMT) or (
                parent is not None and parent.kind in (K.FOR_STMT, K.WHILE_STMT, K.CXX_FOR_RANGE_STMT) and
                cursor == list(parent.get_children())[-1]):
            self.statement(cursor, path, text, begin, end)

    def literal(self, path, text, begin, end, kind, constant):
        spelling = text[begin:end].decode(errors="replace")
        if kind == self.kind.CHARACTER_LITERAL:
            if not re.fullmatch(r"'(\\.|\\x[0-9a-fA-F]+|[^\\'])'", spelling):
                return
            more = f"static_cast<char>({spelling} + 1)"
        else:
            if not re.fullmatch(r"[0-9.][0-9a-zA-Z.'+\-]*", spelling):
                return
            more = f"({spelling} + 1)"
        self.add(path, begin, end, f"{spelling} -> {spelling} + 1", f"(mixtral_mutant::on(%d) ? {more} : ", ")",
                 more, constant=constant)

    def operator(self, cursor, path, text, begin, end, constant):
        children = list(cursor.get_children())
        if cursor.kind == self.kind.CALL_EXPR:
            if not re.fullmatch(r"operator(<|<=|>|>=|==|!=)", cursor.spelling) or len(children) != 3:
                return
            left, right = children[0], children[2]
        elif len(children) == 2:
            left, right = children
        else:
            return
        middle_begin, middle_end = left.extent.end.offset, right.extent.start.offset
        if not begin <= middle_begin < middle_end <= end or left.extent.start.offset != begin or \
                right.extent.end.offset != end:
            return
        between = text[middle_begin:middle_end].decode()
        operator = between.strip()
        at = middle_begin + between.index(operator) if operator else middle_begin
        if operator in COMPARISONS:
            name, other = COMPARISONS[operator]
            alone = (text[begin:at] + other.encode() + text[at + len(operator):end]).decode()
            self.add(path, begin, end, f"{operator} -> {other}", f"mixtral_mutant::{name}(%d, ", ")", alone,
                     (at, at + len(operator)), constant)
        elif operator in ("&&", "||"):
            for side in (left, right):
                b, e = side.extent.start.offset, side.extent.end.offset
                if operator.encode() in (text[middle_begin:middle_end],) or self.is_same_operator(side, operator):
                    continue
                if operator == "&&":
                    prefix, alone = "(mixtral_mutant::on(%d) || (", "true"
                else:
                    prefix, alone = "(!mixtral_mutant::on(%d) && (", "false"
                word = "first" if side is left else "second"
                self.add(path, b, e, f"{word} side of {operator} left out", prefix, "))", alone, constant=constant)

    def is_same_operator(self, cursor, operator):
        while cursor.kind == self.kind.UNEXPOSED_EXPR:
            children = list(cursor.get_children())
            if len(children) != 1:
                return False
            cursor = children[0]
        if cursor.kind != self.kind.BINARY_OPERATOR:
            return False
        left, right = cursor.get_children()
        path = pathlib.Path(cursor.location.file.name).resolve().relative_to(ROOT)
        return self.texts[path][left.extent.end.offset:right.extent.start.offset].decode().strip() == operator

    def call(self, cursor, path, text):
        """Swaps neighbouring arguments of one type that are names."""
        if cursor.spelling.startswith("operator") or cursor.spelling in SYMMETRIC:
            return
        arguments = [a for a in cursor.get_arguments() if a is not None]
        first_pair = 1 if cursor.spelling in FIRST_TWO_SYMMETRIC else 0
        for first, second in list(zip(arguments, arguments[1:]))[first_pair:]:
            parts = []
            for argument in (first, second):
                b, e = argument.extent.start.offset, argument.extent.end.offset
                parts.append((b, e, text[b:e].decode(errors="replace"), argument.type.spelling.replace("const ", "")))
            (b0, e0, name0, type0), (b1, e1, name1, type1) = parts
            names = all(re.fullmatch(r"[A-Za-z_][A-Za-z_0-9.]*", name) for name in (name0, name1))
            if not names or name0 == name1 or type0 != type1 or not type0 or e0 >= b1:
                continue
            if name0 in ("true", "false", "nullptr") or name1 in ("true", "false", "nullptr"):
                continue
            between = text[e0:b1].decode()
            if between.strip() != ",":
                continue
            mutant = self.add(path, b0, e1, f"{name0}, {name1} swapped", f"mixtral_mutant::on(%d) ? {name1} : ", "",
                              f"{name1}, {name0}")
            mutant.second = (b1, name0)

    def check(self, cursor, path, text, begin):
        if not text.startswith(b"if", begin):
            return
        open_ = text.find(b"(", begin)
        if text[begin + 2:open_].strip():
            return  # if constexpr
        close = closing(text, open_)
        if close is None:
            return
        inside = [c for c in cursor.get_children() if open_ < c.extent.start.offset and c.extent.end.offset <= close]
        if not inside or inside[-1].kind in (self.kind.VAR_DECL, self.kind.DECL_STMT):
            return
        b, e = inside[-1].extent.start.offset, inside[-1].extent.end.offset
        if text[e:close].strip():
            return
        self.add(path, b, e, "if left out", "(!mixtral_mutant::on(%d) && (", "))", "false")

    def statement(self, cursor, path, text, begin, end):
        K = self.kind
        source = text[begin:end]
        if source.startswith(b"MIXTRAL_RETURN_IF_ERROR"):
            end = closing(text, text.find(b"(", begin))
            if end is None:
                return
            end += 1
        elif cursor.kind == K.UNEXPOSED_EXPR or cursor.kind in (
                K.CALL_EXPR, K.BREAK_STMT, K.CONTINUE_STMT, K.COMPOUND_ASSIGNMENT_OPERATOR, K.UNARY_OPERATOR):
            pass
        elif cursor.kind == K.BINARY_OPERATOR:
            pass
        else:
            return
        if re.match(rb"[A-Z_0-9]+\(", source) and not source.startswith(b"MIXTRAL_RETURN_IF_ERROR"):
            return  # another macro, whose extent is not known
        if source.startswith(b"static_cast<void>"):
            return
        semicolon = end
        while text[semicolon:semicolon + 1].isspace():
            semicolon += 1
        if text[semicolon:semicolon + 1] != b";":
            return
        short = " ".join(source.decode(errors="replace").split())
        self.add(path, begin, semicolon + 1, f"left out: {short[:50]}", "{ if (!mixtral_mutant::on(%d)) ", " }", ";")


def closing(text, position):
    """The offset of the parenthesis that closes the one at `position`."""
    depth, i = 0, position
    while i < len(text):
        c = text[i:i + 1]
        if c in (b'"', b"'"):
            if c == b"'" and text[i - 1:i].isdigit() and text[i + 1:i + 2].isalnum():  # 1'000
                i += 1
                continue
            i += 1
            while i < len(text) and text[i:i + 1] != c:
                i += 2 if text[i:i + 1] == b"\\" else 1
        elif c == b"(":
            depth += 1
        elif c == b")":
            depth -= 1
            if depth == 0:
                return i
        elif text.startswith(b"//", i):
            i = text.find(b"\n", i)
        i += 1
    return None


# --- Putting them into a copy of the tree ----------------------------------------------------------------------


def switched_text(text, mutants):
    """`text` with all mutants of it behind their switches, and sets where each lies there. No line moves."""
    edits = []  # (position, class, order, text): what closes comes before what opens, the inner before the outer
    removed = []
    for index, mutant in enumerate(mutants):
        size = mutant.end - mutant.begin
        prefix = mutant.prefix % mutant.number
        edits.append((mutant.begin, 1, -size, index, prefix, mutant))
        edits.append((mutant.end, 0, size, -index, mutant.suffix, mutant))
        if mutant.token:
            removed.append((*mutant.token, ","))
        if mutant.second:
            at, name = mutant.second
            edits.append((at, 1, 0, index, f"mixtral_mutant::on({mutant.number}) ? {name} : ", None))
    for begin, end, replacement in removed:
        edits.append((begin, 2, 0, 0, replacement, None))
    edits.sort(key=lambda edit: edit[:4])
    skip = {begin: end for begin, end, _ in removed}
    out, position = bytearray(), 0
    for at, kind, _, _, piece, mutant in edits:
        out += text[position:at]
        position = max(position, at)
        if mutant is not None and kind == 1:
            mutant.written_begin = len(out)
        out += piece.encode()
        if mutant is not None and kind == 0:
            mutant.written_end = len(out)
        if at in skip and piece == ",":
            position = skip[at]
    return bytes(out + text[position:])


def culprits(output, written, by_path):
    """The mutants that compiler errors point at: of those around the place the smallest, else all of the line."""
    found = set()
    for level in ("error:", "required from", ""):
        for match in re.finditer(r"(include/mixtral/[^\s:]+):(\d+):(\d+):[^\n]*" + level, output):
            path = pathlib.Path(match[1])
            if path not in written:
                continue
            lines = written[path].split(b"\n")
            line, column = int(match[2]) - 1, int(match[3]) - 1
            if line >= len(lines):
                continue
            at = sum(len(part) + 1 for part in lines[:line]) + column
            around = [m for m in by_path[path] if m.written_begin <= at < m.written_end]
            if around:
                found.add(min(around, key=lambda m: m.written_end - m.written_begin))
            else:
                found.update(m for m in by_path[path] if m.line == line + 1)
        if found:
            break
    return found


def run(command, seconds=None, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="replace",
                          timeout=seconds, **options)


class Build:
    def __init__(self, folder, sanitized):
        self.folder = folder
        self.tree = folder / "tree"
        self.build = folder / "build"
        self.sanitized = sanitized
        self.program = self.build / "bin" / "mixtral_tests"

    def copy(self):
        listed = run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "include",
                      "examples", "tests", "CMakeLists.txt", "README.md"], check=True).stdout.split("\0")
        keep = set()
        for name in filter(None, listed):
            source, target = ROOT / name, self.tree / name
            keep.add(target)
            if source.is_file():
                self.write(target, source.read_bytes())
        for path in list(self.tree.rglob("*")):
            if path.is_file() and path not in keep and "mutant" not in path.name:
                path.unlink()
        shared = ROOT.parent / "shared"
        link = self.folder / "shared"
        if shared.exists() and not link.exists():
            link.symlink_to(shared)

    @staticmethod
    def write(path, data):
        """Files that stay as they were keep their time, and are not compiled anew."""
        if path.exists() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def configure(self, tests):
        self.write(self.tree / "mutant_switch.hpp", (SWITCH % {"count": MOST_MUTANTS}).encode())
        self.write(self.tree / "tests" / "mutant_listener_test.cpp", LISTENER.encode())
        flags = " ".join([*FLAGS, "-w", "-Wno-narrowing", *(SANITIZERS if self.sanitized else [])])
        command = ["cmake", "-S", self.tree, "-B", self.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                   "-DCMAKE_CXX_FLAGS_RELEASE=-DNDEBUG", f"-DCMAKE_CXX_FLAGS={flags}", "-DMIXTRAL_BUILD_EXAMPLES=OFF",
                   "-DMIXTRAL_INSTALL=OFF", f"-DMIXTRAL_TESTS={tests}"]
        done = run(command)
        if done.returncode != 0:
            raise Failed(f"cmake fails:\n{done.stdout}{done.stderr}")

    def make(self):
        return run(["ninja", "-C", self.build, "-k", "0", "mixtral_tests"])


def limit_memory(sanitized):
    if not sanitized:  # whose shadow takes all addresses
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Cases:
    """The test cases: for each, its time and the mutants that it reaches."""

    def __init__(self, text):
        self.seconds, self.reached, self.by_all = {}, {}, set()
        self.pass_alone = set()  # groups of cases that were seen to pass by themselves
        name = None
        for line in text.splitlines():
            parts = line.split("\t")
            if parts[0] == "case":
                name = parts[1]
                if name in self.seconds:
                    raise Failed(f"two test cases are called {name!r}")
            elif parts[0] == "all":
                self.by_all.add(int(parts[1]))
            elif parts[0] == "end":
                self.seconds[name] = float(parts[1])
                self.reached[name] = {int(n) for n in parts[2].split()}

    def that_reach(self, numbers):
        names = [name for name, reached in self.reached.items() if reached & numbers or self.by_all & numbers]
        return sorted(names, key=self.seconds.get)

    def all(self):
        return sorted(self.seconds, key=self.seconds.get)

    def groups(self, names):
        limit, groups, group, time_ = 0, [], [], 0.0
        for name in names:
            if group and time_ + self.seconds[name] > SECONDS_OF_A_GROUP[limit]:
                groups.append(group)
                group, time_, limit = [], 0.0, min(limit + 1, len(SECONDS_OF_A_GROUP) - 1)
            group.append(name)
            time_ += self.seconds[name]
        return groups + [group] if group else groups


def filter_of(names):
    """doctest separates the names of a filter by commas, and takes ? for any character."""
    return "-tc=" + ",".join(re.sub(r"[,\\\[\]]", "?", name) for name in names)


def run_cases(build, cases, group, number):
    """None if the cases pass, else by what they fail."""
    environment = dict(os.environ)
    if number is not None:
        environment["MIXTRAL_MUTANT"] = str(number)
    seconds = SECONDS_AT_LEAST + TIMES_SLOWER * sum(cases.seconds[name] for name in group)
    try:
        done = run([build.program, "--abort-after=1", filter_of(group), WITHOUT_SHARED], seconds, env=environment,
                   cwd=build.folder, preexec_fn=lambda: limit_memory(build.sanitized))
    except subprocess.TimeoutExpired:
        return f"no end after {seconds:.0f} s"
    if done.returncode == 0:
        return None
    named = re.findall(r"^TEST CASE:\s+(.*)$", done.stdout, re.M)
    return named[0] if named else f"exit status {done.returncode}"


def verdict(build, cases, names, number):
    """("killed", by what) or ("survived", "")."""
    for group in cases.groups(names):
        by = run_cases(build, cases, group, number)
        if by is None:
            continue
        # A switched mutant is believed to be the reason once the same cases pass without it.
        if number is not None and tuple(group) not in cases.pass_alone:
            without = run_cases(build, cases, group, None)
            if without is not None:
                raise Failed(f"without a mutant, too, these cases fail by {without}: {', '.join(group)}")
            cases.pass_alone.add(tuple(group))
        return "killed", by
    return "survived", ""


# --- The whole run ---------------------------------------------------------------------------------------------


def headers_of(path):
    path = (ROOT / path).resolve()
    found = sorted(path.rglob("*.hpp")) if path.is_dir() else [path]
    return [p.relative_to(ROOT) for p in found]


def changed_lines(revision):
    """{path: lines} of what the working tree changes since it left `revision`."""
    done = run(["git", "-C", ROOT, "diff", "-U0", "--merge-base", "--no-ext-diff", "--no-color", "--src-prefix=a/",
                "--dst-prefix=b/", revision, "--", str(INCLUDE)])
    if done.returncode != 0:
        raise Failed(done.stderr.strip())
    lines, path = collections.defaultdict(set), None
    new = run(["git", "-C", ROOT, "ls-files", "-z", "--others", "--exclude-standard", "--", str(INCLUDE)], check=True)
    for name in filter(None, new.stdout.split("\0")):
        lines[pathlib.Path(name)].update(range(1, (ROOT / name).read_bytes().count(b"\n") + 2))
    for line in done.stdout.splitlines():
        if line.startswith("+++ b/"):
            path = pathlib.Path(line[6:])
        match = re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line)
        if match and path:
            first, count = int(match[1]), int(match[2] or 1)
            lines[path].update(range(first, first + count))
    return lines


def find_mutants(paths):
    try:
        from clang import cindex
    except ImportError:
        raise Failed("libclang for Python is missing: pip install libclang==<the version of clang>") from None
    clang = shutil.which("clang")
    if clang is None:
        raise Failed("clang is missing, whose headers libclang needs")
    resources = run([clang, "-print-resource-dir"], check=True).stdout.strip()
    eigen = [f"-isystem{p}" for p in ("/usr/include/eigen3", "/usr/local/include/eigen3") if os.path.isdir(p)]
    finder = Finder(cindex, paths)
    for source in SOURCES:
        finder.parse(source, ["-std=c++17", f"-I{ROOT / 'include'}", f"-resource-dir={resources}", *eigen, *FLAGS,
                              f"-I{ROOT / 'tests'}"])
    # Changes that read alike, of one line or of equal lines, are numbered.
    mutants = sorted(finder.found.values(), key=lambda mutant: (str(mutant.path), mutant.begin, -mutant.end))
    count = collections.Counter()
    for mutant in mutants:
        key = mutant.key()
        count[key] += 1
        if count[key] > 1:
            mutant.what += f" ({count[key]})"
    return mutants


def known_equivalents():
    """{(file, source line, change): reason} from lines of four columns, separated by tabs."""
    known = {}
    if EQUIVALENT.exists():
        for line in EQUIVALENT.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                parts = [part.strip() for part in line.split("\t")]
                if len(parts) != 4:
                    raise Failed(f"{EQUIVALENT.name}: not four columns: {line}")
                known[tuple(parts[:3])] = parts[3]
    return known


def choose(mutants, requests, seed):
    """The mutants of each request (paths, most), in the order of their ranks; what is left over replaces those
    that do not compile."""
    taken, chosen, spare = set(), [], []
    ordered = sorted(mutants, key=lambda mutant: mutant.rank(seed))
    for paths, most in requests:
        paths = set(paths)
        of_these = [m for m in ordered if m.path in paths and id(m) not in taken]
        taken.update(id(m) for m in of_these)
        chosen.append(of_these[:most] if most else of_these)
        spare.append(of_these[most:] if most else [])
    return chosen, spare


def compile_all(build, chosen, spare):
    """Builds with all chosen mutants; replaces what does not compile. Returns the mutants that are in."""
    texts, written = {}, {}
    for _ in range(25):
        active = [m for group in chosen for m in group if not m.constant]
        for number, mutant in enumerate(active):
            mutant.number = number
        if len(active) > MOST_MUTANTS:
            raise Failed(f"{len(active)} mutants; at most {MOST_MUTANTS} are compiled at once: give a smaller sample")
        by_path = collections.defaultdict(list)
        for mutant in active:
            by_path[mutant.path].append(mutant)
        for path in {m.path for m in active} | set(texts):
            text = (ROOT / path).read_bytes()
            texts[path] = written[path] = switched_text(text, by_path[path])
            if by_path[path]:
                switch = build.tree / "mutant_switch.hpp"
                texts[path] = f'#include "{switch}"\n#line 1\n'.encode() + texts[path]
            Build.write(build.tree / path, texts[path])
        done = build.make()
        if done.returncode == 0:
            return active
        bad = culprits(done.stdout + done.stderr, written, by_path)
        if not bad:
            raise Failed(f"the tests do not build:\n{(done.stdout + done.stderr)[-6000:]}")
        print(f"  {len(bad)} do not compile and are replaced", flush=True)
        for mutant in bad:
            mutant.status = "does not compile"
        for group, rest in zip(chosen, spare):
            before = len(group)
            group[:] = [m for m in group if m not in bad]
            while len(group) < before and rest:
                group.append(rest.pop(0))
    raise Failed("the mutants do not compile after many tries")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH[:N]",
                        help="a header or a folder of headers, and how many mutants of it at most")
    parser.add_argument("--diff", metavar="REVISION", help="only the lines changed since this revision")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="how long mutants are run (default 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--tests", default="*", help="names of files of tests, up to _test.cpp, separated by ;")
    parser.add_argument("--sanitize", action="store_true",
                        help="with the address and undefined-behaviour sanitizers, which see reading past an end")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build" / "mutate", help="where to build")
    parser.add_argument("--json", type=pathlib.Path, help="writes every mutant and what became of it")
    parser.add_argument("--retry", type=pathlib.Path, metavar="JSON",
                        help="only what survived, or was not run, in the run that wrote this file")
    parser.add_argument("--minimum", type=float, default=0, help="exit with 1 if fewer per cent are killed")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args()

    if not options.paths and not options.diff:
        parser.error("name a header, a folder or --diff")
    requests = []
    for request in options.paths or [str(INCLUDE)]:
        name, colon, most = request.rpartition(":")
        path = pathlib.Path(name if colon and most.isdigit() else request)
        if not (ROOT / path).exists():
            parser.error(f"there is no {path}")
        requests.append((headers_of(path), int(most) if colon and most.isdigit() else None))
    paths = sorted({path for group, _ in requests for path in group})
    mutants = find_mutants(paths)
    if options.diff:
        lines = changed_lines(options.diff)
        mutants = [m for m in mutants if m.line in lines.get(m.path, ())]
    if options.retry:
        again = {(m["path"], m["source"], m["what"]) for m in json.loads(options.retry.read_text())
                 if m["status"] in ("survived", "not run")}
        mutants = [m for m in mutants if m.key() in again]
    chosen, spare = choose(mutants, requests, options.seed)
    print(f"{len(mutants)} mutants, {sum(map(len, chosen))} of them chosen with seed {options.seed}", flush=True)
    if options.list:
        for group in chosen:
            for mutant in group:
                print(mutant)
        return 0
    if not any(chosen):
        return 0

    build = Build(options.folder.resolve(), options.sanitize)
    build.copy()
    build.configure(options.tests + (";mutant_listener" if options.tests != "*" else ""))
    start = time.monotonic()
    switched = compile_all(build, chosen, spare)
    alone = [m for group in chosen for m in group if m.constant]
    print(f"built in {time.monotonic() - start:.0f} s; {len(switched)} behind switches, {len(alone)} to be built alone",
          flush=True)

    reached = build.folder / "reached.txt"
    done = run([build.program, WITHOUT_SHARED], env=dict(os.environ, MIXTRAL_MUTANT_REACHED=str(reached)), cwd=build.folder)
    if done.returncode != 0:
        raise Failed(f"the tests fail without a mutant:\n{done.stdout[-3000:]}")
    cases = Cases(reached.read_text())
    print(f"{len(cases.seconds)} test cases in {sum(cases.seconds.values()):.0f} s", flush=True)

    deadline = time.monotonic() + 60 * options.minutes
    equivalents = known_equivalents()
    for mutant in switched + alone:
        reason = equivalents.get((str(mutant.path), mutant.source, mutant.what))
        if reason:
            mutant.status, mutant.by = "equivalent", reason

    def tell(mutant):
        if mutant.status == "survived":
            print(f"survived: {mutant}" + (f"    ({mutant.by})" if mutant.by else ""), flush=True)

    def judge(mutant):
        if mutant.status or time.monotonic() > deadline:
            return
        names = cases.that_reach({mutant.number})
        if not names:  # what the compiler evaluates is not seen to be reached, either
            mutant.by = "no test reaches it"
            alone.append(mutant)
            return
        mutant.status, mutant.by = verdict(build, cases, names, mutant.number)
        tell(mutant)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(judge, switched))
    for mutant in sorted(alone, key=lambda m: m.rank(options.seed)):
        if mutant.status or time.monotonic() > deadline:
            continue
        target = build.tree / mutant.path
        with_switches = target.read_bytes()
        text = (ROOT / mutant.path).read_bytes()
        Build.write(target, text[:mutant.begin] + mutant.alone.encode() + text[mutant.end:])
        if build.make().returncode != 0:
            mutant.status = "does not compile"
        else:
            mutant.status, by = verdict(build, cases, cases.all(), None)
            mutant.by = by or mutant.by
        tell(mutant)
        Build.write(target, with_switches)
    return report([m for group in chosen for m in group], options)


def report(mutants, options):
    rooms = collections.defaultdict(collections.Counter)
    for mutant in mutants:
        rooms[room_of(mutant.path)][mutant.status or "not run"] += 1
        rooms["all"][mutant.status or "not run"] += 1
    print(f"\n{'room':24} mutants killed survived equivalent  left  score")
    for room in sorted(rooms, key=lambda name: (name == "all", name)):
        counts = rooms[room]
        killed, survived, equivalent = (counts[name] for name in ("killed", "survived", "equivalent"))
        total = sum(counts.values())
        score = f"{100 * killed / (killed + survived):5.1f} %" if killed + survived else "     -"
        print(f"{room:24} {total:7} {killed:6} {survived:8} {equivalent:10} "
              f"{total - killed - survived - equivalent:5} {score}")
    for name, why in (("not run", f"{options.minutes:g} minutes were over"), ("does not compile", "the compiler")):
        if rooms["all"][name]:
            print(f"left: {rooms['all'][name]} {name} ({why})")
    not_run = rooms["all"]["not run"]
    if options.json:
        options.json.write_text(json.dumps([{
            "path": str(m.path), "line": m.line, "source": m.source, "what": m.what, "status": m.status or "not run",
            "by": m.by} for m in mutants], indent=1))
    counts = rooms["all"]
    judged = counts["killed"] + counts["survived"]
    if options.minimum and (not judged or not_run):
        print("mutate: too few were judged to tell whether the minimum is reached")
        return 1
    return 1 if judged and 100 * counts["killed"] / judged < options.minimum else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        print(f"mutate: {failure}", file=sys.stderr)
        sys.exit(2)

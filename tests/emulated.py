#!/usr/bin/env python3
"""Compiles the kernels and their tests for other CPUs and runs them, under emulation where need be.

Leaves out, and says so, what there is no compiler or emulator for, unless --require.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPUINFO = pathlib.Path("/proc/cpuinfo")
CPU_FLAGS = CPUINFO.read_text().split() if CPUINFO.exists() else []
KERNELS = ["kernels_test.cpp", "bf16_test.cpp", "attention_test.cpp"]
# The kernels in use, too: the network against the reference's greedy text and formulas in double.
NETWORK = KERNELS + ["network_test.cpp", "determinism_test.cpp"]
NETWORK_CASES = ("kernels*,bf16*,attention*,network: the bundled model*,network: any number of threads*,"
                 "network: every shape*,network: in one piece*,determinism*")


class Target(typing.NamedTuple):
    name: str
    compiler: str
    flags: list
    runs: list  # commands that run the program: none before it where this machine's CPU does
    tests: list = KERNELS
    filters: list = ["--test-case=*"]
    headers: dict = {}  # by name, found before the compiler's own
    suffix: str = ""  # of the program
    cpu_flag: str = ""  # what this machine's CPU must have to run it


def highway_dialect_of_rvv():
    """Highway 1.0.3 wants the intrinsics of a compiler between clang 15, the last whose names have no
    prefix, and 16: masks of merge and compress behind the values, not before them."""
    lines = ["#pragma once", "#include_next <riscv_vector.h>"]
    sizes = ["mf8", "mf4", "mf2", "m1", "m2", "m4", "m8"]
    types = [f"{kind}{bits}{size}" for kind in "uif" for bits in (8, 16, 32, 64) for size in sizes]
    for name in types:
        merges = ["vmerge_vvm"] + (["vfmerge_vfm"] if name[0] == "f" else ["vmerge_vxm"])
        lines += [f"#define {merge}_{name}(no, yes, mask, n) {merge}_{name}(mask, no, yes, n)"
                  for merge in merges]
        compress = f"vcompress_vm_{name}"
        lines.append(f"#define {compress}(rest, v, mask, n) {compress}(mask, rest, v, n)")
    return "\n".join(lines) + "\n"


# What C++17 has and libc++ before its version 16, which Emscripten 3.1.6 has, not; of the experimental
# header only the functions are missing there.
MEMORY_RESOURCE = """
#pragma once
#include <experimental/list>
#include <experimental/map>
#include <experimental/memory_resource>
#include <experimental/string>
#include <experimental/unordered_map>
#include <experimental/vector>
#include <new>
namespace std {
namespace experimental::pmr {
struct NewDelete final : memory_resource {
  void* do_allocate(size_t n, size_t alignment) override {
    return ::operator new(n, align_val_t(alignment));
  }
  void do_deallocate(void* p, size_t, size_t alignment) override {
    ::operator delete(p, align_val_t(alignment));
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};
inline NewDelete new_delete;
inline memory_resource* new_delete_resource() noexcept { return &new_delete; }
inline memory_resource* get_default_resource() noexcept { return &new_delete; }
}
namespace pmr = experimental::pmr;
}
"""


def qemu(program, cpus):
    return [[program, "-cpu", cpu] for cpu in cpus]


ARM = "aarch64-linux-gnu-g++"
BITS = (128, 256, 512, 1024)  # of a vector, where that differs between CPUs
RVV_BITS = (256, 1024)  # takes its emulator longest
TARGETS = [
    Target("NEON", ARM, ["-static", "-march=armv8-a"], qemu("qemu-aarch64", ["cortex-a53"])),
    Target("NEON with dotprod", ARM, ["-static", "-march=armv8.2-a+dotprod"],
           qemu("qemu-aarch64", ["cortex-a76"]), NETWORK, ["--test-case=" + NETWORK_CASES]),
    Target("SVE", ARM, ["-static", "-march=armv8.2-a+sve"],
           qemu("qemu-aarch64", [f"max,sve-default-vector-length={bits // 8}" for bits in BITS])),
    Target("RVV", "clang++-15", ["-static", "--target=riscv64-linux-gnu", "-march=rv64gcv"],
           qemu("qemu-riscv64", [f"rv64,v=true,vlen={bits}" for bits in RVV_BITS]),
           headers={"riscv_vector.h": highway_dialect_of_rvv()}),
    Target("WASM", "em++", ["-msimd128", "-sENVIRONMENT=node", "-sNODERAWFS=1", "-sEXIT_RUNTIME=1",
                            "-sWASM_ASYNC_COMPILATION=0", "-sALLOW_MEMORY_GROWTH=1"],
           [["node"]], headers={"memory_resource": MEMORY_RESOURCE}, suffix=".js"),
    Target("SSSE3, strict", "g++", ["-static", "-mssse3", "-DMIXTRAL_STRICT_EVERYWHERE"], [[]],
           NETWORK, ["--test-case=" + NETWORK_CASES], cpu_flag="ssse3"),
    Target("AVX-VNNI", "g++", ["-static", "-march=haswell", "-maes", "-mavxvnni"], [[]],
           cpu_flag="avx_vnni"),
]


def run(command):
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=3600,
                              env={**os.environ, "MIXTRAL_TESTS_SECONDS": "3000"})  # a case, where it is slow
    except subprocess.TimeoutExpired as expired:
        return -1, str(expired)
    return done.returncode, done.stdout + done.stderr


def runs_here(target):
    return not target.cpu_flag or target.cpu_flag in CPU_FLAGS


def build(target, folder, include):
    """Returns the program and what went wrong, or None."""
    headers = pathlib.Path(folder) / target.name.replace(" ", "_")
    headers.mkdir()
    for name, text in target.headers.items():
        (headers / name).write_text(text)
    program = headers / f"tests{target.suffix}"
    command = [target.compiler, "-std=c++17", *target.flags, "-DMIXTRAL_HEADERS_ONLY",
               f'-DMIXTRAL_SOURCE_DIR="{ROOT}"', f"-I{headers}", f"-I{ROOT / 'include'}",
               f"-I{ROOT / 'tests'}"]
    for path in include:  # after the cross-compiler's own headers
        command += ["-idirafter", path]
    kernels = ROOT / "examples" / "kernels.cpp"
    if not runs_here(target):
        status, output = run([*command, "-O1", "-c", kernels, "-o", program])
        return program, None if status == 0 else output[-4000:]
    # What is not tested need not be fast.
    library = headers / "implementation.o"
    level = "-O1" if target.tests == NETWORK else "-O0"
    status, output = run([*command, level, "-c", ROOT / "examples" / "implementation.cpp", "-o", library])
    if status == 0:
        sources = [ROOT / "tests" / test for test in ["main.cpp", *target.tests]]
        status, output = run([*command, "-O1", *sources, kernels, library, "-o", program])
    return program, None if status == 0 else output[-4000:]


def check(target, emulator, program):
    """Returns what went wrong, or None."""
    option, _, patterns = target.filters[0].partition("=")
    for pattern in patterns.split(","):  # each has to choose something
        status, output = run([*emulator, program, f"{option}={pattern}", "--count"])
        if status != 0 or not re.search(r"passing the current filters: [1-9]", output):
            return f"no test case is called {pattern}:\n{output[-4000:]}"
    status, output = run([*emulator, program, *target.filters])
    return None if status == 0 else f"{' '.join(emulator)}:\n{output[-4000:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--require", action="store_true", help="fail if a target is left out")
    parser.add_argument("--include", nargs="*", default=["/usr/include/eigen3", "/usr/include"])
    arguments = parser.parse_args()
    able, failed = [], 0
    for target in TARGETS:
        tools = [target.compiler, *target.runs[0][:1]]
        missing = [tool for tool in tools if shutil.which(tool) is None]
        if missing:
            print(f"emulated: {target.name} left out, there is no {' or '.join(missing)}")
            failed += arguments.require
        else:
            able.append(target)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        builds = [(target, pool.submit(build, target, folder, arguments.include)) for target in able]
        runs = []
        for target, future in builds:
            program, problem = future.result()
            emulators = target.runs if problem is None and runs_here(target) else []
            runs.append((target, problem,
                         [pool.submit(check, target, emulator, program) for emulator in emulators]))
        for target, problem, checks in runs:
            for future in checks:
                problem = problem or future.result()
            state = "passed" if runs_here(target) else "kernels compiled, not run: this CPU does not have it"
            print(f"emulated: {target.name}: {problem or state}", flush=True)
            failed += problem is not None
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Cross-compiles the kernels and their tests for other CPUs and runs them under emulation.

Leaves out, and says so, what there is no compiler or emulator for, unless --require.
"""
import argparse
import concurrent.futures
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64")
KERNELS = ["kernels_test.cpp"]
# The kernels in use, too: the network against the reference's greedy text and formulas in double.
NETWORK = KERNELS + ["network_test.cpp"]
NETWORK_CASES = ("kernels*,network: the bundled model*,network: any number of threads*,"
                 "network: every shape*,network: in one piece*")
# Name, (compiler, emulator), target flags, tests, which cases, emulator's CPUs.
TARGETS = [
    ("NEON", ARM, ["-march=armv8-a"], KERNELS, "*", ["cortex-a53"]),
    ("NEON with dotprod", ARM, ["-march=armv8.2-a+dotprod"], NETWORK, NETWORK_CASES, ["cortex-a76"]),
    ("SVE", ARM, ["-march=armv8.2-a+sve"], KERNELS, "*",
     [f"max,sve-default-vector-length={bits // 8}" for bits in (128, 256, 512, 1024)]),
]


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def check(target, folder, include):
    """Returns what went wrong, or None."""
    name, (compiler, emulator), flags, tests, cases, cpus = target
    program = pathlib.Path(folder) / name.replace(" ", "_")
    sources = [ROOT / "tests" / test for test in ["main.cpp", *tests]]
    command = [compiler, "-std=c++17", "-O1", "-static", *flags, "-DMIXTRAL_HEADERS_ONLY",
               f'-DMIXTRAL_SOURCE_DIR="{ROOT}"', f"-I{ROOT / 'include'}", f"-I{ROOT / 'tests'}"]
    for path in include:  # after the cross-compiler's own headers
        command += ["-idirafter", path]
    status, output = run([*command, *sources, ROOT / "examples" / "implementation.cpp", "-o", program])
    if status != 0:
        return output[-4000:]
    for cpu in cpus:
        status, output = run([emulator, "-cpu", cpu, program, f"--test-case={cases}"])
        if status != 0:
            return f"on {cpu}:\n{output[-4000:]}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--require", action="store_true", help="fail if a target is left out")
    parser.add_argument("--include", nargs="*", default=["/usr/include/eigen3", "/usr/include"])
    arguments = parser.parse_args()
    able, failed = [], 0
    for target in TARGETS:
        missing = [tool for tool in target[1] if shutil.which(tool) is None]
        if missing:
            print(f"emulated: {target[0]} left out, there is no {' or '.join(missing)}")
            failed += arguments.require
        else:
            able.append(target)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda target: check(target, folder, arguments.include), able)
        for target, problem in zip(able, results):
            print(f"emulated: {target[0]}: {problem or 'passed'}", flush=True)
            failed += problem is not None
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

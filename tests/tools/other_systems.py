#!/usr/bin/env python3
"""Compiles programs for other systems, runs them here and compares their text with that of the same program of
this system: Windows (MinGW-w64 and Wine) and WebAssembly (Emscripten and Node).

embed_minimal, with the single header, goes to both. With --complete, so does examples/complete.cpp, with the
headers of the tree, to Windows. With --programs, all programs' sources are checked for Windows by its compiler,
and not built. Leaves out, and says so, what there is no compiler or emulator for, unless --require.
"""
import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import emulated  # noqa: E402

MODEL = ROOT / "examples" / "models" / "tiny-mixtral-Q8_0.gguf"
# As the builds set them.
DEFINITIONS = ["-DMIXTRAL_HEADERS_ONLY", f'-DMIXTRAL_SOURCE_MODEL="{MODEL}"',
               f'-DMIXTRAL_INSTALLED_MODEL="../share/mixtral/{MODEL.name}"']
PROMPTS = ["Once upon a time", "One day, a little dog", "Tom and Zoe said"]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
MINGW = "x86_64-w64-mingw32-g++-posix"
# The oldest CPUs: GCC does not always align the stack for longer vectors on Windows (GCC bug 54412).
MINGW_FLAGS = ["-O2", "-mssse3", "-static", *WARNINGS]
EMSCRIPTEN_FLAGS = ["-O1", "-msimd128", "-sENVIRONMENT=node", "-sNODERAWFS=1", "-sEXIT_RUNTIME=1",
                    "-sWASM_ASYNC_COMPILATION=0", "-sALLOW_MEMORY_GROWTH=1"]


class Failed(Exception):
    pass


def run(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=900, **options)
    if done.returncode != 0:
        text = (done.stdout + done.stderr).decode(errors="replace")
        raise Failed(f"{command[0]} exits with {done.returncode}:\n{text[-4000:]}")
    return done.stdout.replace(b"\r\n", b"\n")


def compile_program(compiler, flags, include, sources, own, output):
    """`own` is the folder of the headers, `include` those of what they need: after the compiler's own."""
    others = [part for path in include for part in ("-idirafter", path)]
    run([compiler, "-std=c++17", *flags, *DEFINITIONS, f"-I{ROOT / own}", *others,
         *[ROOT / "examples" / source for source in sources], "-o", output])


def compare(program, emulator, native, arguments, env):
    for prompt in PROMPTS:
        expected = run([*native, *arguments(prompt)])
        found = run([*emulator, program, *arguments(prompt)], env=env)
        if found != expected:
            raise Failed(f"{prompt!r} goes on with\n{found!r}, here with\n{expected!r}")
        if len(expected) < 20:
            raise Failed(f"{native[0]} wrote next to nothing: {expected!r}")


def wine():
    for name in ("wine64", "wine", "/usr/lib/wine/wine64"):
        if path := shutil.which(name):
            return path
    return None


def windows(arguments, folder, name, sources, own, command):
    program = folder / f"{name}.exe"
    env = {**os.environ, "WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all"}
    compile_program(MINGW, MINGW_FLAGS, arguments.include, sources, own, program)
    # A host may have included <windows.h> before, with all the macros it defines.
    compile_program(MINGW, [*MINGW_FLAGS, "-include", "windows.h", "-fsyntax-only"], arguments.include, sources,
                    own, os.devnull)
    try:
        compare(program, [wine()], [arguments.bin / name], command, env)
    finally:  # Wine's own server, of this folder, would stay a while
        for server in ("wineserver", "/usr/lib/wine/wineserver64"):
            if path := shutil.which(server):
                subprocess.run([path, "-k"], env=env, check=False, timeout=900)
                break


def windows_programs(arguments):
    """Two at a time. The kernels are left to embed_minimal, which has them, too."""
    def check(source):
        flags = [*MINGW_FLAGS, f"-I{ROOT / 'examples'}", "-fsyntax-only"]  # limits.cpp includes itself
        compile_program(MINGW, flags, arguments.include, [source], "include", os.devnull)
    sources = [path.name for path in sorted((ROOT / "examples").glob("*.cpp"))
               if path.name not in ("embed_minimal.cpp", "kernels.cpp")]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in pool.map(check, sources):
            pass


def web_assembly(arguments, folder):
    (folder / "memory_resource").write_text(emulated.MEMORY_RESOURCE)
    program = folder / "embed_minimal.js"
    compile_program("em++", [*EMSCRIPTEN_FLAGS, f"-I{folder}"], arguments.include, ["embed_minimal.cpp"],
                    "single_include", program)
    compare(program, ["node"], [arguments.bin / "embed_minimal"], lambda prompt: [MODEL, prompt], None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build" / "release" / "bin",
                        help="where this system's programs are")
    parser.add_argument("--include", nargs="*", default=["/usr/include/eigen3", "/usr/include"])
    parser.add_argument("--complete", action="store_true", help="complete.cpp, too")
    parser.add_argument("--programs", action="store_true", help="check that all programs compile for Windows")
    parser.add_argument("--require", action="store_true", help="fail if a system is left out")
    arguments = parser.parse_args()
    same_text = "the same text as here"
    checks = [
        ("embed_minimal for Windows", same_text, [MINGW, wine() or "wine64"],
         lambda folder: windows(arguments, folder, "embed_minimal", ["embed_minimal.cpp"], "single_include",
                                lambda prompt: [MODEL, prompt])),
        ("embed_minimal for WebAssembly", same_text, ["em++", "node"],
         lambda folder: web_assembly(arguments, folder)),
    ]
    if arguments.complete:
        sources = ["complete.cpp", "implementation.cpp", "kernels.cpp"]
        checks.append(("complete for Windows", same_text, [MINGW, wine() or "wine64"],
                       lambda folder: windows(arguments, folder, "complete", sources, "include",
                                              lambda prompt: ["--model", MODEL, "--temperature", "0",
                                                              "--threads", "2", "--prompt", prompt])))
    if arguments.programs:
        checks.append(("all programs for Windows", "they compile", [MINGW],
                       lambda folder: windows_programs(arguments)))
    failed = 0
    for name, good, tools, check in checks:
        missing = [tool for tool in tools if shutil.which(tool) is None]
        if missing:
            print(f"other systems: {name} left out, there is no {' or '.join(missing)}", flush=True)
            failed += arguments.require
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(pathlib.Path(folder))
                print(f"other systems: {name}: {good}", flush=True)
            except (Failed, subprocess.TimeoutExpired) as problem:
                print(f"other systems: {name}: {problem}", flush=True)
                failed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

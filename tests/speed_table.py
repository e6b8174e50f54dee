#!/usr/bin/env python3
"""The README's table of speeds: bench and other programs on the same files, in turns.

A peer is a name and the command of a llama-bench:

  tests/speed_table.py --peer 'llama.cpp=llama.cpp/build/bin/llama-bench -mmp 0'

Weights are random, of true dimensions, and each program copies them to memory (bench --copy-weights),
since a mapped file's speed is the system's. The file of a type is written to --folder, and removed.

Prints a table in Markdown: tokens a second, the medians of --rounds runs; how many times the fastest
peer that is, the median of the rounds; and the fraction of what the machine can do, as bench tells."""
import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("prompt", "decode")


def read_json(command):
    return json.loads(subprocess.run([str(part) for part in command], check=True, text=True,
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def run_bench(arguments, file, threads):
    """Tokens a second and fractions of the limit, by part."""
    report = read_json([arguments.bench, "--model", file, "--threads", threads, "--copy-weights",
                        "--prompt", arguments.prompt, "--generate", arguments.generate,
                        "--repeat", 1, "--json", *arguments.option])
    return ({part: report[part]["tokens_per_second"] for part in PARTS},
            {part: report[part]["fraction_of_limit"] for part in PARTS})


def run_peer(command, arguments, file, threads):
    """Tokens a second by part; like bench, llama-bench runs once before it measures."""
    tests = read_json([*command, "-m", file, "-t", threads, "-p", arguments.prompt,
                       "-n", arguments.generate, "-r", 1, "-o", "json"])
    return {"prompt" if test["n_prompt"] else "decode": test["avg_ts"] for test in tests}


def measure(arguments, peers, file, threads):
    """The cells of a row, for each part."""
    ours, limits, theirs = [], [], []
    for _ in range(arguments.rounds):
        speeds, fractions = run_bench(arguments, file, threads)
        ours.append(speeds)
        limits.append(fractions)
        theirs.append([run_peer(command, arguments, file, threads) for command in peers.values()])
    for part in PARTS:
        columns = [[run[part] for run in ours]]
        columns += [[runs[i][part] for runs in theirs] for i in range(len(peers))]
        cells = [f"{statistics.median(column):.1f}" for column in columns]
        if peers:
            fastest = max(columns[1:], key=statistics.median)
            ratios = [a / b for a, b in zip(columns[0], fastest)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        cells.append(f"{statistics.median(run[part] for run in limits) * 100:.0f} %")
        yield part, cells


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default=ROOT / "build/release/bin/bench")
    parser.add_argument("--option", action="append", default=[], help="passed on to bench")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--types", nargs="+", default=[
        "Q4_K_M", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0", "Q3_K_M", "Q2_K", "IQ4_XS", "BF16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--shape", default="8x7b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    arguments = parser.parse_args()
    peers = {name: shlex.split(command) for name, _, command in
             (peer.partition("=") for peer in arguments.peer)}
    columns = ["type", "threads", "part", "mixtral.hpp", *peers]
    columns += ["times the fastest peer"] if peers else []
    columns += ["of the limit"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns), flush=True)
    for name in arguments.types:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            file = pathlib.Path(folder) / f"{name}.gguf"
            subprocess.run([str(arguments.bench), "--synthetic", arguments.shape, "--layers",
                            str(arguments.layers), "--type", name, "--write", str(file)], check=True)
            for threads in arguments.threads:
                for part, cells in measure(arguments, peers, file, threads):
                    print(f"| {name} | {threads} | {part} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

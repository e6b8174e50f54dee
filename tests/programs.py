#!/usr/bin/env python3
"""Runs the example programs as a user or a script does."""
import argparse
import array
import contextlib
import json
import math
import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "models" / "tiny-mixtral-Q8_0.gguf"
SHARED = ROOT.parent / "shared"
GOLDEN = {entry["name"]: entry
          for entry in json.loads((ROOT / "tests" / "data" / "golden.json").read_text())}
PROGRAMS = ["complete", "chat", "tokenize", "inspect", "score", "quantize", "bench", "batch_serve",
            "editor_complete", "npc", "job_system"]


SECONDS = 300  # that one run of a program may take


class Case(unittest.TestCase):
    bin = None
    without = None  # a program that is not built

    def setUp(self):
        # Reads have no limits of their own.
        def end(*_):
            raise TimeoutError(f"not at its end after {4 * SECONDS} s")
        signal.signal(signal.SIGALRM, end)
        signal.alarm(4 * SECONDS)
        self.addCleanup(signal.alarm, 0)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def path_of(self, name):
        """A program's file: as it is in a build by CMake, or else as it is installed."""
        path = self.bin / name
        return path if path.exists() else self.bin / f"mixtral-{name.replace('_', '-')}"

    def run_program(self, name, *arguments, text=b"", code=0):
        result = subprocess.run([self.path_of(name), *map(str, arguments)], input=text,
                                capture_output=True, timeout=SECONDS)
        self.assertEqual(result.returncode, code, result.stderr.decode())
        return result

    def json_of(self, name, *arguments, **options):
        result = self.run_program(name, *arguments, "--json", **options)
        self.assertEqual(result.stderr, b"")
        return json.loads(result.stdout)

    def error_of(self, name, *arguments, **options):
        """The one line on stderr of a run that must fail with exit code 1."""
        result = self.run_program(name, *arguments, code=1, **options)
        message = result.stderr.decode()
        start = self.path_of(name).name + ": "
        self.assertTrue(message.startswith(start) and message.endswith("\n"), message)
        self.assertEqual(message.count("\n"), 1, message)
        return message

    def on_terminal(self, name, *arguments, text=b""):
        """What a program shows on stderr if that is a terminal, and its output."""
        leader, follower = pty.openpty()
        result = subprocess.run([self.path_of(name), *map(str, arguments)], input=text,
                                stdout=subprocess.PIPE, stderr=follower, timeout=SECONDS)
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # Linux tells the end so
            while chunk := os.read(leader, 4096):
                shown += chunk
        os.close(leader)
        self.assertEqual(result.returncode, 0, shown)
        return shown, result.stdout

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def device_in(self, folder):
        """A device, never the system's own for a user who could replace it; None where none may be made."""
        if not os.access("/dev", os.W_OK):
            return pathlib.Path("/dev/null")
        try:
            os.mknod(folder / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:  # in a container
            return None
        return folder / "device"


class ProgressOnTerminals(Case):
    """What takes longer than a moment shows how far it is, and takes that away at the end."""

    # Far more than a tenth of a second's work for one thread, which nobody waits for.
    LONG = " ".join(["Once upon a time, a little dog and a cat met a big bear."] * 120).encode()

    def check(self, label, name, *arguments, **options):
        if name != "inspect":  # which takes no number of them
            arguments = [*arguments, "--threads", 1]
        shown, _ = self.on_terminal(name, *arguments, **options)
        bars = re.findall(rb"\r" + label + rb" \[#* *\] (\d+)%, (?:\d+:\d\d left)?\x1b\[K", shown)
        percents = [int(percent) for percent in bars]
        self.assertGreater(len(percents), 5, shown[:200])
        self.assertEqual(percents, sorted(percents))
        self.assertIn(b"\r\x1b[K", shown)
        plain = self.run_program(name, *arguments, **options)
        self.assertNotIn(b"%", plain.stderr)

    def test_long_prompts(self):
        path = self.file("long.txt", self.LONG)
        self.check(b"reading the prompt", "complete", "--prompt-file", path, "--context", 32000,
                   "--max-tokens", 1, "--seed", 1)
        self.check(b"reading the prompt", "chat", "--context", 32000, "--max-tokens", 1, "--seed", 1,
                   text=self.LONG + b"\n")

    def test_long_texts(self):
        path = self.file("long.txt", self.LONG)
        self.check(b"scoring", "score", "--model", MODEL, "--file", path)
        self.check(b"reading the text", "inspect", "--model", MODEL, "--text-file", path,
                   "--router-stats", self.folder / "stats.svg", "--force")

    def test_short_ones_show_nothing(self):
        shown, _ = self.on_terminal("complete", "--prompt", "Once", "--max-tokens", 1)
        self.assertNotIn(b"%", shown)


class EveryProgram(Case):
    def test_help(self):
        for name in PROGRAMS:
            with self.subTest(name):
                text = self.run_program(name, "--help").stdout.decode()
                self.assertIn("--input" if name == "quantize" else "--model", text)
                self.assertIn("--help", text)

    def test_version(self):
        header = (ROOT / "include" / "mixtral" / "mixtral.hpp").read_text()
        version = ".".join(re.search(rf"MIXTRAL_VERSION_{part} (\d+)", header)[1]
                           for part in ("MAJOR", "MINOR", "PATCH"))
        for name in PROGRAMS:
            with self.subTest(name):
                text = self.run_program(name, "--version").stdout.decode()
                self.assertEqual(text, f"{self.path_of(name).name} {version}\n")

    def test_help_and_errors_are_readable(self):
        for name in PROGRAMS:
            with self.subTest(name):
                text = self.run_program(name, "--help").stdout.decode()
                self.assertEqual([c for c in text if not c.isprintable() and c != "\n"], [])
                self.assertNotRegex(text, r"[0-9]{8}|ENUM|->")
        bad = [["complete", "--prompt", "a", "--temperature", x]
               for x in ("-1", "1e39", "1e400", "nan", "inf", "-inf", "x", "", " 1", "0x1", "1,5")]
        bad += [["complete", "--prompt", "a", *option] for option in (
            ["--chat-format", "alpaca"], ["--kv-format", "q4_0"], ["--kv-format", "\x01"],
            ["--kv-format", "8"], ["--top-p", "nan"], ["--min-p", "2"], ["--seed", "-1"],
            ["--seed", str(2**64)], ["--max-tokens", str(2**32)], ["--max-tokens", "1e3"],
            ["--context", "0"], ["--threads", "1025"], ["--seed", "1", "--seed", "2"],
            ["--stop"], ["--no\nsuch"], ["--json=maybe"])]
        bad += [["inspect", "--model", MODEL, "--tokens", "1,-2"],
                ["inspect", "--model", MODEL, "--tokens", "nan"],
                ["bench", "--model", MODEL, "--slice-ms", "nan"],
                ["bench", "--model", MODEL, "--prompt", "-1"],
                ["bench", "--synthetic", "\x02"], ["npc", "--seconds", "nan"],
                ["npc", "--think-ms", "1e400"], ["job_system", "--workers", "-1"],
                ["editor_complete", "--typing-ms", "99999999999"],
                ["quantize", "--input", MODEL, "--output", "x", "--type", "Q4_K_M",
                 "--expert-type", "IQ2_S"]]
        for arguments in bad:
            with self.subTest(arguments):
                message = self.run_program(*arguments, code=2).stderr.decode()
                self.assertTrue(message.startswith(self.path_of(arguments[0]).name + ": "), message)
                self.assertEqual(message.count("\n"), 1, message)
                self.assertTrue(message[:-1].isprintable(), message)
                self.assertNotRegex(message, r"[0-9]{25}")
                option = [a for a in arguments if str(a).startswith("--")][-1]
                self.assertIn(option.split("=")[0].replace("\n", "?"), message)
                self.assertIn("--help", message)

    def test_names_are_listed_and_may_be_written_as_in_the_api(self):
        for program, option, names in (
                (["complete", "--prompt", "a"], "--chat-format",
                 ["mistral-v1", "mistral-v2", "mistral-v3", "llama2"]),
                (["complete", "--prompt", "a"], "--kv-format", ["f32", "f16", "bf16", "q8_0"]),
                (["bench"], "--synthetic", ["8x7b", "llama-2-7b"]),
                (["quantize", "--input", MODEL, "--output", "x", "--type", "F16"], "--expert-type",
                 ["Q4_K", "IQ4_XS"]),
                (["quantize", "--input", MODEL, "--output", "x"], "--type", ["Q3_K_M", "BF16"])):
            with self.subTest(option):
                text = self.run_program(program[0], "--help").stdout.decode()
                error = self.run_program(*program, option, "none-such", code=2).stderr.decode()
                for name in names:
                    self.assertIn(name, text)
                    self.assertIn(name, error)
        fixed = ["complete", "--prompt", "Once", "--max-tokens", 3, "--temperature", 0]
        for name in ("mistral-v1", "mistral_v1", "Mistral_V1"):
            self.json_of(*fixed, "--chat-format", name)
        texts = {self.json_of(*fixed, "--kv-format", name)["text"]
                 for name in ("q8_0", "Q8_0", "q8-0")}
        self.assertEqual(len(texts), 1)

    def test_bad_arguments_give_2(self):
        needed = {"complete": ["--prompt", "a"], "chat": [], "tokenize": ["--model", MODEL],
                  "inspect": ["--model", MODEL], "score": ["--model", MODEL, "--file", MODEL],
                  "quantize": ["--input", MODEL, "--output", "x", "--type", "Q4_0"],
                  "bench": ["--model", MODEL], "batch_serve": [], "editor_complete": [], "npc": [],
                  "job_system": []}
        for name in PROGRAMS:
            with self.subTest(name):
                result = self.run_program(name, *needed[name], "--no-such-option", code=2)
                self.assertIn(b"--no-such-option", result.stderr)
                self.assertEqual(result.stdout, b"")
        for arguments in (["complete"], ["complete", "--prompt", "a", "--prompt-file", "b"],
                          ["complete", "--prompt", "a", "--max-tokens", "-1"],
                          ["complete", "--prompt", "a", "--max-tokens", "many"],
                          ["complete", "--prompt", "a", "--temperature", "-1"],
                          ["complete", "--prompt", "a", "--top-p", "1.5"],
                          ["complete", "--prompt", "a", "--min-p", "-0.5"],
                          ["complete", "--prompt", "a", "--threads", "0"],
                          ["complete", "--prompt", "a", "--stop", ""],
                          ["chat", "--threads", "100000"], ["tokenize"], ["inspect"],
                          ["inspect", "--model", MODEL, "--logits", "x"],
                          ["inspect", "--model", MODEL, "--tokens", "a,b"],
                          ["score", "--model", MODEL], ["score", "--file", MODEL],
                          ["quantize", "--input", MODEL, "--output", "x"],
                          ["quantize", "--input", MODEL, "--output", "x", "--type", "Q9_K"],
                          ["quantize", "--input", MODEL, "--output", "x", "--type", "Q4_0",
                           "--expert-type", "Q4_K_M"],
                          ["bench"], ["bench", "--model", MODEL, "--synthetic", "8x7b"],
                          ["bench", "--synthetic", "9x9b"], ["bench", "--model", MODEL, "--type", "Q2_K"],
                          ["bench", "--synthetic", "8x7b", "--type", "Q9"],
                          ["bench", "--model", MODEL, "--slice-ms", "0"],
                          ["batch_serve", "--parallel", "0"], ["npc", "--think-ms", "17"],
                          ["npc", "--seconds", "-1"], ["editor_complete", "--context", "0"],
                          ["inspect", "--model", MODEL, "--router-stats", "x"],
                          ["inspect", "--model", MODEL, "--text", "a"],
                          ["inspect", "--model", MODEL, "--text", "a", "--text-file", "b",
                           "--router-stats", "x"],
                          ["tokenize", "--model", MODEL, "--bos", "--decode"]):
            with self.subTest(arguments):
                result = self.run_program(*arguments, code=2)
                self.assertEqual(result.stderr.count(b"\n"), 1, result.stderr)

    def test_one_of_several_options(self):
        for arguments, words in (
                (["complete"], "give one of --prompt, --prompt-file;"),
                (["complete", "--prompt", "a", "--prompt-file", "b"],
                 "only one of --prompt, --prompt-file may be given;"),
                (["chat", "--regex", "a", "--choice", "b"],
                 "only one of --choice, --regex, --grammar, --json-schema may be given;")):
            error = self.run_program(*arguments, code=2).stderr.decode()
            self.assertTrue(error.startswith(f"{self.path_of(arguments[0]).name}: {words}"), error)

    def test_an_empty_value_is_a_value(self):
        empty = [["complete", "--prompt", "a", option, ""] for option in ("--grammar", "--json-schema")]
        empty += [["chat", "--grammar", ""], ["complete", "--prompt-file", ""],
                  ["quantize", "--input", MODEL, "--output", self.folder / "x", "--type", "Q8_0",
                   "--importance", ""]]
        for command in empty:
            with self.subTest(command):
                self.assertIn("''", self.error_of(*command))
        answer = self.json_of("complete", "--prompt", "Once", "--regex", "")
        self.assertEqual((answer["text"], answer["stop_reason"]), ("", "grammar_end"))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_errors_give_1_and_one_line(self):
        not_a_model = self.file("not-a-model.gguf", b"this is no model")
        prompt = self.file("prompt.txt", b"Once")
        rest = {"complete": ["--prompt", "a"], "score": ["--file", prompt],
                "quantize": ["--output", self.folder / "x.gguf", "--type", "Q4_0"]}
        for name in PROGRAMS:
            model = "--input" if name == "quantize" else "--model"
            with self.subTest(name):
                missing = self.error_of(name, model, "no/such.gguf", *rest.get(name, []))
                self.assertIn("no/such.gguf", missing)
                wrong = self.error_of(name, model, not_a_model, *rest.get(name, []))
                self.assertRegex(wrong, "GGUF|tokenizer|protobuf")
        self.assertIn("no/such.txt", self.error_of("complete", "--prompt-file", "no/such.txt"))
        self.assertIn(str(self.folder), self.error_of("complete", "--prompt-file", self.folder))
        self.assertIn("context", self.error_of("complete", "--prompt", "a", "--context", 10**9))
        self.assertIn("fit", self.error_of("complete", "--prompt", "a " * 50, "--context", 10))

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_full_disk_is_an_error(self):
        with open("/dev/full", "wb") as full:
            result = subprocess.run([self.path_of("complete"), "--prompt", "a", "--max-tokens", "3"],
                                    stdout=full, stderr=subprocess.PIPE, timeout=SECONDS)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"cannot write", result.stderr)


class Complete(Case):
    def test_greedy_text_is_the_reference_s(self):
        golden = GOLDEN["once"]
        output = self.json_of("complete", "--prompt", golden["text"], "--temperature", 0,
                              "--max-tokens", 20)
        self.assertEqual(output["tokens"], golden["greedy"][:20])
        self.assertTrue(golden["greedy_text"].startswith(output["text"]))
        self.assertEqual(output["stop_reason"], "max_tokens")
        self.assertEqual(len(output["log_probabilities"]), 20)
        self.assertTrue(all(p <= 0 for p in output["log_probabilities"]))
        timings = output["timings"]
        self.assertEqual(timings["prompt_tokens"], len(golden["ids"]))
        self.assertEqual(timings["generated_tokens"], 20)
        self.assertGreater(timings["prompt_tokens_per_second"], 0)
        self.assertGreater(timings["generation_tokens_per_second"], 0)
        self.assertGreater(timings["load_seconds"], 0)

    def test_streams_text_and_gives_figures_apart(self):
        arguments = ["--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 20]
        text = self.json_of("complete", *arguments)["text"]
        result = self.run_program("complete", *arguments)
        self.assertEqual(result.stdout.decode(), text + "\n")
        for word in ("prompt", "generated", "/s", "memory"):
            self.assertIn(word, result.stderr.decode())

    def test_prompt_file_model_and_threads_change_nothing(self):
        prompt = "Once upon a time\nthere was"
        path = self.file("prompt.txt", prompt.encode())
        fixed = ["--temperature", 1, "--seed", 7, "--max-tokens", 30]
        expected = self.json_of("complete", "--prompt", prompt, *fixed)
        for other in (["--prompt-file", path], ["--prompt", prompt, "--model", MODEL],
                      ["--prompt", prompt, "--threads", 1], ["--prompt", prompt, "--threads", 3],
                      ["--prompt", prompt, "--context", 200]):
            output = self.json_of("complete", *other, *fixed)
            self.assertEqual(output["tokens"], expected["tokens"])
        another = self.json_of("complete", "--prompt", prompt, *fixed[:2], "--seed", 8,
                               "--max-tokens", 30)
        self.assertNotEqual(another["tokens"], expected["tokens"])

    def test_rules_for_what_is_generated(self):
        def text_of(*rules, code=0, seed=1):
            return self.json_of("complete", "--prompt", "Once upon a time", "--seed", seed, *rules,
                                code=code)["text"]
        for seed in range(5):
            self.assertIn(text_of("--choice", " yes", "--choice", " no", seed=seed),
                          (" yes", " no"))
            self.assertRegex(text_of("--regex", " [a-z]{3}-[0-9]{2}", seed=seed),
                             r"^ [a-z]{3}-[0-9]{2}$")
            grammar = self.file("list.gbnf", b'root ::= item ("," item){2}\nitem ::= " cat" | " dog"\n')
            self.assertRegex(text_of("--grammar", grammar, seed=seed),
                             "^( cat| dog)(,( cat| dog)){2}$")
            schema = self.file("schema.json", json.dumps({
                "type": "object", "required": ["name", "age"], "additionalProperties": False,
                "properties": {"name": {"type": "string", "maxLength": 12},
                               "age": {"type": "integer", "minimum": 3, "maximum": 12}}}).encode())
            compact = text_of("--json-schema", schema, seed=seed)
            with_blanks = text_of("--json-schema", schema, "--json-blanks", seed=seed)
            self.assertNotRegex(re.sub(r'"(\\.|[^"\\])*"', "", compact), r"\s")
            for made in (json.loads(compact), json.loads(with_blanks)):
                self.assertEqual(set(made), {"name", "age"})
                self.assertTrue(3 <= made["age"] <= 12 and len(made["name"]) <= 12, made)
        fixed = ["complete", "--prompt", "a"]
        self.assertIn("line 1", self.error_of(*fixed, "--grammar", self.file("bad", b"root ::= (")))
        self.assertIn("uniqueItems", self.error_of(
            *fixed, "--json-schema", self.file("u", b'{"uniqueItems": true}')))
        self.assertIn("references", self.error_of(*fixed, "--regex", r"(a)\1"))
        self.assertIn("no/such", self.error_of(*fixed, "--grammar", "no/such"))
        self.run_program(*fixed, "--regex", "a", "--choice", "b", code=2)
        self.run_program(*fixed, "--json-blanks", code=2)
        answers = self.run_program("chat", "--choice", "Yes.", "--choice", "No.", "--json",
                                   text=b"Is it?\nReally?\n").stdout.splitlines()
        for answer in answers:
            self.assertIn(json.loads(answer)["text"], ("Yes.", "No."))
        self.assertEqual(len(answers), 2)

    def test_an_error_on_the_way_begins_a_line(self):
        grammar = self.file("g.gbnf", b'root ::= "a" root "b" | "a" root "c" | "a" root "d" | "e"\n')
        result = self.run_program("complete", "--prompt", "Once", "--grammar", grammar,
                                  "--max-tokens", 2000, "--temperature", 0, code=1)
        self.assertRegex(result.stdout, rb"^a+\n$")
        self.assertRegex(result.stderr, rb"^[^\n]+\n$")

    def test_random_seed_is_told_and_repeats(self):
        first = self.json_of("complete", "--prompt", "Once", "--max-tokens", 20)
        again = self.json_of("complete", "--prompt", "Once", "--max-tokens", 20, "--seed",
                             first["seed"])
        self.assertEqual(first["text"], again["text"])

    def test_filters_that_leave_one_token_are_greedy(self):
        fixed = ["--prompt", "Once upon", "--max-tokens", 15]
        greedy = self.json_of("complete", *fixed, "--temperature", 0)["tokens"]
        for one in (["--top-k", 1], ["--top-p", 0], ["--min-p", 1]):
            self.assertEqual(self.json_of("complete", *fixed, "--temperature", 5, *one)["tokens"],
                             greedy)

    def test_stop_strings(self):
        fixed = ["--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 30]
        text = self.json_of("complete", *fixed)["text"]
        stop = text[10:14]
        output = self.json_of("complete", *fixed, "--stop", "not in the text", "--stop", stop)
        self.assertEqual(output["text"], text[:text.index(stop)])
        self.assertEqual(output["stop_reason"], "stop_string")

    def test_context_full(self):
        output = self.json_of("complete", "--prompt", "Once upon a time", "--context", 20,
                              "--max-tokens", 100, "--temperature", 0)
        self.assertEqual(output["stop_reason"], "context_full")
        self.assertEqual(output["timings"]["prompt_tokens"] + len(output["tokens"]), 20)


class Chat(Case):
    def answers(self, *arguments, lines):
        result = self.run_program("chat", *arguments, "--json", text="".join(lines).encode())
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_lines_from_a_pipe_are_questions(self):
        golden = GOLDEN["chat"]
        question = golden["text"].replace("[INST] ", "").replace(" [/INST]", "")
        answers = self.answers("--temperature", 0, "--max-tokens", 12,
                               lines=[question + "\n", "\n", "And then?\r\n", "No newline"])
        self.assertEqual(len(answers), 3)  # the empty line is none
        self.assertEqual(answers[0]["tokens"], golden["greedy"][:12])
        self.assertEqual(answers[0]["timings"]["prompt_tokens"], len(golden["ids"]))
        # only what is new is evaluated
        self.assertLess(answers[1]["timings"]["prompt_tokens"], len(golden["ids"]) + 12)

    def test_plain_output_is_the_answers(self):
        fixed = ["--temperature", 0, "--max-tokens", 10]
        lines = ["Tell me a story.\n", "And then?\n"]
        texts = [answer["text"] for answer in self.answers(*fixed, lines=lines)]
        result = self.run_program("chat", *fixed, text="".join(lines).encode())
        self.assertEqual(result.stdout.decode(), "".join(text + "\n" for text in texts))

    def test_system_text_takes_part(self):
        fixed = ["--temperature", 0, "--max-tokens", 5]
        plain, = self.answers(*fixed, lines=["Hello\n"])
        with_system, = self.answers(*fixed, "--system", "Be kind.", lines=["Hello\n"])
        self.assertGreater(with_system["timings"]["prompt_tokens"],
                           plain["timings"]["prompt_tokens"])

    def test_a_full_context_drops_the_oldest_and_goes_on(self):
        lines = [f"Question {i}?\n" for i in range(12)]
        answers = self.answers("--context", 90, "--max-tokens", 20, "--seed", 1, lines=lines)
        self.assertEqual(len(answers), 12)
        # Instructions that leave no room for any question are an error of the program.
        message = self.error_of("chat", "--context", 30, "--system", "word " * 100)
        self.assertIn("--system", message)

    def test_a_question_too_long_does_not_end_the_conversation(self):
        fixed = ["--context", 90, "--max-tokens", 15, "--temperature", 1, "--seed", 1]
        lines = ["Tell me a story.\n", "And then?\n", "Why?\n"]
        expected = self.answers(*fixed, lines=lines)
        long = "word " * 200 + "\n"
        first, error, *rest = self.answers(*fixed, lines=[lines[0], long, *lines[1:]])
        self.assertEqual(list(error), ["error"])
        self.assertIn("context of 90", error["error"])
        for answer, other in zip([first, *rest], expected, strict=True):
            self.assertEqual(answer["tokens"], other["tokens"])
            self.assertEqual(answer["timings"]["prompt_tokens"], other["timings"]["prompt_tokens"])
        result = self.run_program("chat", *fixed, text="".join([lines[0], long, lines[1]]).encode())
        self.assertEqual(result.stdout.decode(), "".join(a["text"] + "\n" for a in expected[:2]))
        self.assertEqual(len(re.findall("^chat: .*fit", result.stderr.decode(), re.M)), 1)

    def test_commands(self):
        fixed = ["--max-tokens", 8, "--temperature", 1, "--seed", 3]
        first, second = self.answers(*fixed, lines=["Hello\n", "Hello\n"])
        self.assertGreater(second["timings"]["prompt_tokens"], 0)
        # What /reset leaves is a new conversation: the second question is as if it were the first.
        alone, = self.answers(*fixed[:-1], 4, lines=["Hello\n"])
        self.assertNotEqual(alone["log_probabilities"], second["log_probabilities"])
        again = self.answers(*fixed, lines=["Hello\n", "/reset\n", "Hello\n"])
        self.assertEqual([a["log_probabilities"] for a in again],
                         [first["log_probabilities"], alone["log_probabilities"]])
        # Instructions stay.
        system = self.answers(*fixed, "--system", "S", lines=["Hello\n", "/reset\n", "Hello\n"])
        self.assertEqual(system[0]["timings"]["prompt_tokens"], system[1]["timings"]["prompt_tokens"])

        self.assertEqual(self.answers(*fixed, lines=["/exit\n", "Hello\n"]), [])
        result = self.run_program("chat", *fixed, text=b"/help\n/foo\n/exit now\n/save\n/\n")
        self.assertEqual(result.stdout, b"")
        told = result.stderr.decode()
        for command in ("/help", "/exit", "/reset", "/save FILE", "/save! FILE", "/load FILE", "//"):
            self.assertIn(command, told)
        errors = [line for line in told.splitlines() if line.startswith("chat: ")]
        self.assertEqual(len(errors), 4, told)
        self.assertIn("/foo; /help", errors[0])
        # A question may begin with a slash.
        slash, = self.answers(*fixed, lines=["//etc\n"])
        plain, = self.answers(*fixed, lines=["etc\n"])
        self.assertGreater(slash["timings"]["prompt_tokens"], plain["timings"]["prompt_tokens"])

    def test_a_saved_conversation_goes_on_with_the_same_text(self):
        path = self.folder / "a conversation"
        fixed = ["--context", 120, "--max-tokens", 20, "--temperature", 1, "--system", "Be kind."]
        lines = [f"Question {i}?\n" for i in range(8)]
        expected = self.answers(*fixed, "--seed", 5, lines=lines)
        for n in (0, 1, 3, 6):  # the context is full, and what is oldest dropped, before or after it
            first = self.answers(*fixed, "--seed", 5, lines=[*lines[:n], f"/save! {path} \n"])
            # Neither this seed nor these instructions count, but those of the file.
            rest = self.answers(*fixed[:-1], "Be quick.", "--seed", 99,
                                lines=["Anything.\n", f"/load {path}\n", *lines[n:]])[1:]
            self.assertEqual([a["tokens"] for a in first + rest], [a["tokens"] for a in expected])
            self.assertEqual([a["seed"] for a in rest], [a["seed"] for a in expected[n:]])

    def test_files_that_are_no_conversation_are_told_and_it_goes_on(self):
        path = self.folder / "saved"
        fixed = ["--max-tokens", 10, "--temperature", 1, "--seed", 1]
        lines = ["Hello\n", "And then?\n"]
        expected = self.answers(*fixed, lines=lines)
        self.answers(*fixed, lines=[lines[0], f"/save {path}\n"])
        good = path.read_bytes()
        dense = self.folder / "dense.gguf"
        self.run_program("quantize", "--input", MODEL, "--output", dense, "--type", "Q4_0")
        damaged = {f"byte {at}": good[:at] + bytes([good[at] ^ 1]) + good[at + 1:]
                   for at in [*range(0, 80, 7), *range(80, len(good), len(good) // 40), len(good) - 1]}
        damaged.update({f"{n} bytes": good[:n] for n in (1, 8, 9, 15, 16, 40, 100, len(good) - 1)})
        damaged["more"] = good + b"x"
        bad = [(name, self.file(name, content), "damaged|no saved", [])
               for name, content in damaged.items()]
        bad += [("empty", self.file("empty", b""), "empty", []),
                ("missing", self.folder / "missing", "missing", []),
                ("folder", self.folder, "folder", []),
                ("model", MODEL, "no saved conversation", []),
                ("other model", path, "another model", ["--model", dense]),
                ("other format", path, "--chat-format mistral-v1", ["--chat-format", "llama2"]),
                ("other cache", path, "F16", ["--kv-format", "f32"]),
                ("context", path, "larger context", ["--context", 14])]
        for name, file, error, arguments in bad:
            with self.subTest(name):
                result = self.run_program("chat", *fixed, *arguments, "--json",
                                          text=f"{lines[0]}/load {file}\n{lines[1]}".encode())
                self.assertRegex(result.stderr.decode(), f"^chat: .*({error})[^\n]*\n$")
                answers = [json.loads(line) for line in result.stdout.splitlines()]
                self.assertEqual(len(answers), 2)
                if not arguments:
                    self.assertEqual([a["tokens"] for a in answers],
                                     [a["tokens"] for a in expected])

    def test_instructions_are_blamed_only_if_there_are_any(self):
        self.assertIn("chat: an empty question has", self.error_of("chat", "--context", 8))

    def test_what_save_may_never_replace_is_told_at_once(self):
        link = self.folder / "link"
        link.symlink_to(self.file("precious", b"precious"))
        model = self.file("m.gguf", MODEL.read_bytes())  # not the one that all other tests need
        for path, words in ((link, "symbolic link"), (model, "is the input")):
            for command in ("/save", "/save!"):
                told = self.run_program("chat", "--model", model,
                                        text=f"{command} {path}\n".encode()).stderr.decode()
                self.assertIn(words, told)
                self.assertNotIn("replaces", told)

    def test_files_that_cannot_be_loaded_are_not_taken_for_models(self):
        os.mkfifo(self.folder / "pipe")
        self.file("empty", b"")
        for name, words in (("empty", "is empty"), ("pipe", "is a pipe (FIFO), not a file")):
            path = self.folder / name
            told = self.run_program("chat", text=f"/load {path}\n".encode()).stderr.decode()
            self.assertEqual(told, f"chat: '{path}' {words}\n")

    def test_saving_overwrites_nothing_unasked(self):
        path = self.file("precious", b"precious")
        model = self.file("m.gguf", MODEL.read_bytes())  # not the one that all other tests need
        fixed = ["chat", "--model", model, "--max-tokens", 3, "--seed", 1]
        result = self.run_program(*fixed, text=f"Hello\n/save {path}\n".encode())
        self.assertIn("/save! replaces", result.stderr.decode())
        self.assertEqual(path.read_bytes(), b"precious")
        special = self.folder / "special"
        special.mkdir()
        device = self.device_in(special)
        if device is None:
            with self.subTest("device"):
                self.skipTest("no device may be made here")
        for bad in filter(None, (self.folder, self.folder / "no" / "such", device, model)):
            result = self.run_program(*fixed, text=f"/save! {bad}\nHello\n".encode())
            self.assertRegex(result.stderr.decode(), f"chat: .*{re.escape(str(bad))}")
            self.assertEqual(result.stdout.count(b"\n"), 1)
        self.run_program(*fixed, text=f"Hello\n/save! {path}\n".encode())
        self.assertNotEqual(path.read_bytes(), b"precious")
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["m.gguf", "precious", "special"])

    def test_interrupt_stops_the_answer_and_not_the_program(self):
        leader, follower = pty.openpty()
        chat = subprocess.Popen(
            [self.path_of("chat"), "--max-tokens", "1000000", "--context", "30000", "--temperature",
             "5", "--threads", "1"], stdin=follower, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        os.close(follower)
        try:
            # An answer may end by itself first, so try again; then the signal comes between answers.
            for _ in range(50):
                os.write(leader, b"Tell me a long story.\n")
                self.assertTrue(chat.stdout.read(1))  # the answer has begun
                chat.send_signal(signal.SIGINT)
                while b"peak memory" not in (line := chat.stderr.readline()):
                    self.assertTrue(line, "the program ended")
                if b"cancelled" in line:
                    break
            self.assertIn(b"cancelled", line)
            os.write(leader, b"\x04")  # Ctrl-D
            chat.communicate(timeout=SECONDS)
            self.assertEqual(chat.returncode, 0)
        finally:
            chat.kill()
            chat.communicate()
            os.close(leader)


class Tokenize(Case):
    def check_vectors(self, model, path):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        self.assertGreater(len(entries), 60)
        texts = "".join(json.dumps(entry["text"]) + "\n" for entry in entries).encode()
        ids = self.run_program("tokenize", "--model", model, "--jsonl", text=texts).stdout
        self.assertEqual([json.loads(line) for line in ids.splitlines()],
                         [entry["ids"] for entry in entries])
        decoded = self.run_program("tokenize", "--model", model, "--jsonl", "--decode", text=ids).stdout
        self.assertEqual([json.loads(line) for line in decoded.splitlines()],
                         [entry["decoded"] for entry in entries])

    def test_vectors(self):
        self.check_vectors(MODEL, ROOT / "tests" / "data" / "tokenizer.vectors.jsonl")

    @unittest.skipUnless((SHARED / "tokenizer").exists(), "needs ../shared/tokenizer")
    def test_vectors_of_the_real_tokenizer(self):
        model = SHARED / "tokenizer" / "mixtral-8x7b-v1.tokenizer.model"
        self.check_vectors(model, model.with_name("mixtral-8x7b-v1.vectors.jsonl"))

    def test_whole_input(self):
        text = "Two lines,\nthe second without an end: é"
        ids = json.loads(self.run_program("tokenize", "--model", MODEL, text=text.encode()).stdout)
        with_bos = self.run_program("tokenize", "--model", MODEL, "--bos", text=text.encode())
        self.assertEqual(json.loads(with_bos.stdout), [GOLDEN["once"]["ids"][0]] + ids)
        back = self.run_program("tokenize", "--model", MODEL, "--decode", text=with_bos.stdout)
        self.assertEqual(back.stdout.decode(), text)
        self.assertEqual(json.loads(self.run_program("tokenize", "--model", MODEL).stdout), [])

    def test_bad_input_is_named(self):
        for text in (b"[1, 2", b"{}", b"[1.5]", b"[-1]", b"[99999999]", b"[\"a\"]", b"5"):
            with self.subTest(text):
                self.error_of("tokenize", "--model", MODEL, "--decode", text=text)
        message = self.error_of("tokenize", "--model", MODEL, "--jsonl", text=b'"a"\n17\n')
        self.assertIn("line 2: the line must be a JSON string", message)
        for arguments, text, words in (
                (["--decode"], b"[1, 2", "the input is not valid JSON at byte 6"),
                (["--decode"], b"[1e999]", "the input has a number that is too large"),
                (["--jsonl"], b'"a"\nb\n', "line 2: the line is not valid JSON at byte 1")):
            self.assertIn(words, self.error_of("tokenize", "--model", MODEL, *arguments, text=text))

    def test_deep_json_is_refused(self):
        deep = b"[" * 200000 + b"]" * 200000
        objects = b'[{"a":' * 100000 + b"1" + b"}]" * 100000
        for text in (deep, b"[" + deep + b"]", b"[1,%s]" % objects):
            for arguments, words in ((["--decode"], "the input must be one array of whole numbers"),
                                     (["--decode", "--jsonl"], "the line must be one array of whole"),
                                     (["--jsonl"], "the line must be a JSON string")):
                message = self.error_of("tokenize", "--model", MODEL, *arguments, text=text)
                self.assertIn(words, message)
                self.assertLess(len(message), 200)


class Gguf:
    """Writes the head of a GGUF file, version 3 (ggml/docs/gguf.md)."""

    def __init__(self):
        self.metadata, self.n_keys, self.directory, self.n_tensors, self.bytes = b"", 0, b"", 0, 0

    @staticmethod
    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def add(self, key, kind, value):
        self.metadata += self.text(key) + struct.pack("<I", kind) + value
        self.n_keys += 1

    def uint(self, key, value):
        self.add(key, 4, struct.pack("<I", value))

    def tensor(self, name, *shape, kind=2):  # Q4_0: 32 numbers in 18 bytes
        self.directory += self.text(name) + struct.pack("<I", len(shape))
        self.directory += struct.pack(f"<{len(shape)}QIQ", *shape, kind, self.bytes)
        numbers = math.prod(shape)
        self.bytes += -(-(numbers // 32 * 18 if kind == 2 else numbers * 4) // 32) * 32
        self.n_tensors += 1

    def write(self, path):
        """With zeros for numbers, which take no room on a disk."""
        head = b"GGUF" + struct.pack("<IQQ", 3, self.n_tensors, self.n_keys)
        head += self.metadata + self.directory
        head += bytes(-len(head) % 32)
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(len(head) + self.bytes)


class Inspect(Case):
    def test_llama_2_70b(self):
        gguf = Gguf()
        gguf.add("general.architecture", 8, gguf.text("llama"))
        for key, value in (("embedding_length", 8192), ("block_count", 80),
                           ("feed_forward_length", 28672), ("attention.head_count", 64),
                           ("attention.head_count_kv", 8), ("context_length", 4096)):
            gguf.uint("llama." + key, value)
        gguf.add("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))
        pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
        pieces += [f"piece{i}" for i in range(len(pieces), 32000)]
        kinds = [2, 3, 3] + [6] * 256 + [1] * (32000 - 259)
        gguf.add("tokenizer.ggml.model", 8, gguf.text("llama"))
        gguf.add("tokenizer.ggml.tokens", 9,
                 struct.pack("<IQ", 8, 32000) + b"".join(map(gguf.text, pieces)))
        gguf.add("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 32000) + bytes(4 * 32000))
        gguf.add("tokenizer.ggml.token_type", 9, struct.pack("<IQ32000i", 5, 32000, *kinds))
        gguf.tensor("token_embd.weight", 8192, 32000)
        gguf.tensor("output_norm.weight", 8192, kind=0)
        gguf.tensor("output.weight", 8192, 32000)
        for layer in range(80):
            for name, shape in (("attn_q", (8192, 8192)), ("attn_k", (8192, 1024)),
                                ("attn_v", (8192, 1024)), ("attn_output", (8192, 8192)),
                                ("ffn_gate", (8192, 28672)), ("ffn_up", (8192, 28672)),
                                ("ffn_down", (28672, 8192))):
                gguf.tensor(f"blk.{layer}.{name}.weight", *shape)
            for name in ("attn_norm", "ffn_norm"):
                gguf.tensor(f"blk.{layer}.{name}.weight", 8192, kind=0)
        path = self.folder / "llama-2-70b.gguf"
        try:
            gguf.write(path)
        except OSError as error:
            self.skipTest(f"no sparse file of {gguf.bytes >> 30} GiB here: {error}")
        report = self.json_of("inspect", "--model", path, "--context", 4096)
        self.assertEqual(report["n_parameters"], 68_976_648_192)  # Touvron et al. 2023: 70B
        memory = report["memory"]
        self.assertEqual(memory["weight_bytes"], gguf.bytes)
        cache = 80 * 8 * 128 * 2 * 4096 * 2  # layers, KV heads, head size, K and V, tokens, float16
        self.assertGreaterEqual(memory["session_bytes"], cache)
        self.assertLess(memory["session_bytes"], cache + (256 << 20))
        self.assertGreaterEqual(memory["total_bytes"], gguf.bytes + memory["session_bytes"])

    def test_report(self):
        report = self.json_of("inspect", "--model", MODEL, "--context", 1000)
        self.assertEqual(report["metadata"]["general.architecture"], "llama")
        config = report["config"]
        embedding, = (t for t in report["tensors"] if t["name"] == "token_embd.weight")
        self.assertEqual(embedding["shape"], [config["dim"], config["vocab_size"]])
        self.assertEqual(embedding["type"], "Q8_0")
        self.assertEqual(embedding["bytes"], config["dim"] * config["vocab_size"] // 32 * 34)
        total = sum(t["bytes"] for t in report["tensors"])
        self.assertEqual(report["memory"]["weight_bytes"], total)
        self.assertLess(total, MODEL.stat().st_size)
        parameters = sum(math.prod(t["shape"]) for t in report["tensors"])
        self.assertEqual(report["n_parameters"], parameters)
        experts = sum(math.prod(t["shape"]) for t in report["tensors"] if "_exps" in t["name"])
        idle = experts * (config["n_experts"] - config["n_experts_used"]) // config["n_experts"]
        idle += math.prod(embedding["shape"])  # looked up, not multiplied
        self.assertEqual(report["n_active_parameters"], parameters - idle)
        more = self.json_of("inspect", "--model", MODEL, "--context", 2000)
        kv = config["n_layers"] * 2 * config["n_kv_heads"] * config["head_size"]
        self.assertGreaterEqual(
            more["memory"]["session_bytes"] - report["memory"]["session_bytes"], 1000 * kv)
        table = self.run_program("inspect", "--model", MODEL).stdout.decode()
        for word in ("token_embd.weight", "general.architecture", "active per token", "session"):
            self.assertIn(word, table)

    def logits_and_router(self, model):
        """What inspect writes of a model, after a look at whether it agrees with itself."""
        golden = GOLDEN["dog"]
        logits_path, router_path = self.folder / "logits.f32", self.folder / "router.json"
        ids = ",".join(map(str, golden["ids"]))
        report = self.json_of("inspect", "--model", model, "--tokens", ids, "--logits",
                              logits_path, "--router", router_path, "--kv-format", "f32")
        logits = array.array("f", logits_path.read_bytes())
        if sys.byteorder == "big":
            logits.byteswap()
        self.assertEqual(len(logits), math.prod(golden["logits_shape"]))
        router = json.loads(router_path.read_text())
        config = report["config"]
        self.assertEqual(len(router), config["n_layers"] * len(golden["ids"]))
        for row in router:
            self.assertEqual(len(row["experts"]), config["n_experts_used"])
            self.assertAlmostEqual(sum(row["weights"]), 1, places=5)
        width = golden["logits_shape"][1]
        for row in report["tokens"]:
            own = logits[row["position"] * width:(row["position"] + 1) * width]
            self.assertEqual(row["best_next"], max(range(width), key=own.__getitem__))
        self.assertEqual(len(report["tokens"]), len(golden["ids"]))
        return logits, router

    def test_logits_and_router(self):
        self.logits_and_router(MODEL)

    @unittest.skipUnless((SHARED / "models").exists(), "needs ../shared/models")
    def test_logits_and_router_are_the_reference_s(self):
        golden, folder = GOLDEN["dog"], SHARED / "models" / "tiny-mixtral"
        logits, router = self.logits_and_router(folder / "gguf" / "tiny-mixtral-bf16.gguf")
        expected = array.array("f", (folder / "golden" / golden["logits_file"]).read_bytes())
        self.assertEqual(len(logits), len(expected))
        self.assertLess(max(abs(a - b) for a, b in zip(logits, expected)), 2e-3)
        for row in router:
            reference = golden["router"][row["layer"]]
            self.assertEqual(row["experts"], reference["experts"][row["position"]])
            for a, b in zip(row["weights"], reference["weights"][row["position"]]):
                self.assertAlmostEqual(a, b, delta=1e-4)

    def test_router_stats(self):
        # The figures from the choices themselves.
        golden = GOLDEN["tale"]
        text, drawing = self.file("tale.txt", golden["text"].encode()), self.folder / "stats.svg"
        stats = self.json_of("inspect", "--model", MODEL, "--kv-format", "f32", "--text",
                             golden["text"], "--router-stats", drawing)["router_stats"]
        self.assertEqual(stats, self.json_of(
            "inspect", "--model", MODEL, "--kv-format", "f32", "--text-file", text,
            "--router-stats", drawing, "--force")["router_stats"])
        router_path = self.folder / "router.json"
        self.json_of("inspect", "--model", MODEL, "--kv-format", "f32", "--tokens",
                     ",".join(map(str, golden["ids"])), "--router", router_path)
        router = json.loads(router_path.read_text())
        self.assertEqual(stats["tokens"], len(golden["ids"]))
        self.assertAlmostEqual(stats["random_first_kept"], 1 / 8)
        self.assertAlmostEqual(stats["random_any_kept"], 1 - 6 / 8 * 5 / 7)
        self.assertEqual(len(stats["layers"]), 4)
        for number, layer in enumerate(stats["layers"]):
            chosen = [row["experts"] for row in router if row["layer"] == number]
            every = [e for experts in chosen for e in experts]
            for expert, share in enumerate(layer["use"]):
                self.assertAlmostEqual(share, every.count(expert) / len(every))
            pairs = list(zip(chosen, chosen[1:]))
            self.assertAlmostEqual(layer["first_kept"],
                                   sum(a[0] == b[0] for a, b in pairs) / len(pairs))
            self.assertAlmostEqual(layer["any_kept"],
                                   sum(bool(set(a) & set(b)) for a, b in pairs) / len(pairs))
        root = xml.etree.ElementTree.parse(drawing).getroot()
        self.assertTrue(root.tag.endswith("svg"))
        cells = [e for e in root.iter() if e.tag.endswith("title")]
        self.assertEqual(len(cells), len(stats["layers"]) * 8)
        self.run_program("inspect", "--model", MODEL, "--router-stats", drawing, code=2)
        self.assertIn("no/such", self.error_of("inspect", "--model", MODEL, "--text-file", "no/such",
                                               "--router-stats", drawing, "--force"))
        dense = self.folder / "dense.gguf"
        self.run_program("bench", "--synthetic", "mistral-7b", "--layers", 1, "--type", "Q2_K",
                         "--write", dense)
        self.assertIn("dense", self.error_of("inspect", "--model", dense, "--text-file", text,
                                             "--router-stats", drawing, "--force"))

    def test_bad_tokens_and_paths(self):
        self.assertIn("99999999", self.error_of("inspect", "--model", MODEL, "--tokens", 99999999))
        self.assertIn("no/such", self.error_of("inspect", "--model", MODEL, "--tokens", 1,
                                               "--logits", "no/such/folder"))


class Score(Case):
    def test_log_likelihood_is_the_reference_s(self):
        golden = GOLDEN["tale"]
        path = self.file("text.txt", golden["text"].encode())
        output = self.json_of("score", "--model", MODEL, "--file", path)
        self.assertEqual([token["id"] for token in output["tokens"]], golden["ids"][1:])
        scores = [token["log_probability"] for token in output["tokens"]]
        self.assertAlmostEqual(-sum(scores) / len(scores), sum(golden["nll"]) / len(scores),
                               delta=0.02)
        self.assertAlmostEqual(output["perplexity"], math.exp(-sum(scores) / len(scores)), places=6)
        self.assertEqual(output["n_scored"], len(scores))
        table = self.run_program("score", "--model", MODEL, "--file", path).stdout.decode()
        self.assertEqual(len(table.splitlines()), len(scores) + 1)
        self.assertIn("perplexity", table.splitlines()[-1])

    def test_long_texts_go_in_windows(self):
        golden = GOLDEN["tale"]
        path = self.file("text.txt", golden["text"].encode())
        whole = self.json_of("score", "--model", MODEL, "--file", path)
        for context in (2, 3, 16, len(golden["ids"])):
            windows = self.json_of("score", "--model", MODEL, "--file", path, "--context", context)
            self.assertEqual([t["id"] for t in windows["tokens"]],
                             [t["id"] for t in whole["tokens"]])
            first = min(context - 1, len(whole["tokens"]))
            for i in range(first):
                self.assertAlmostEqual(windows["tokens"][i]["log_probability"],
                                       whole["tokens"][i]["log_probability"], places=3)

    def test_nothing_to_score(self):
        self.assertIn("no token", self.error_of("score", "--model", MODEL, "--file",
                                                self.file("empty.txt", b"")))


class Quantize(Case):
    def quantize(self, kind, *arguments, name="out.gguf", source=MODEL):
        path = self.folder / name
        self.run_program("quantize", "--input", source, "--output", path, "--type", kind, *arguments)
        return path

    def perplexity(self, model):
        text = self.file("text.txt", GOLDEN["tale"]["text"].encode())
        return self.json_of("score", "--model", model, "--file", text)["perplexity"]

    def test_the_file_is_a_model_that_reads_well(self):
        expected = self.perplexity(MODEL)
        for kind, size, more in (("q8_0", 1.0, 0.001), ("Q4_K_M", 0.65, 0.05), ("IQ4_XS", 0.6, 0.1)):
            with self.subTest(kind):
                path = self.quantize(kind, "--force")
                self.assertLess(path.stat().st_size, size * MODEL.stat().st_size + 1000)
                self.assertLess(abs(self.perplexity(path) / expected - 1), more)
        self.assertEqual([p.name for p in self.folder.glob("*.part")], [])

    def test_types_of_output_and_experts(self):
        path = self.quantize("Q4_K_S", "--output-tensor-type", "q8_0", "--expert-type", "Q3_K",
                             "--threads", 1)
        formats = {t["name"]: t["type"] for t in self.json_of("inspect", "--model", path)["tensors"]}
        self.assertEqual(formats["output.weight"], "Q8_0")
        self.assertEqual(formats["blk.0.ffn_up_exps.weight"], "Q3_K")
        self.assertEqual(formats["blk.0.attn_q.weight"], "Q4_K")
        pure = self.quantize("Q4_K_S", "--pure", name="pure.gguf")
        formats = {t["name"]: t["type"] for t in self.json_of("inspect", "--model", pure)["tensors"]}
        self.assertEqual({f for n, f in formats.items() if "norm" not in n and "_inp" not in n},
                         {"Q4_K"})

    def test_nothing_is_overwritten_without_force(self):
        path = self.file("out.gguf", b"precious")
        arguments = ["--input", MODEL, "--output", path, "--type", "F16"]
        self.assertIn("--force", self.error_of("quantize", *arguments))
        self.assertEqual(path.read_bytes(), b"precious")
        self.run_program("quantize", *arguments, "--force")
        self.assertGreater(path.stat().st_size, 10**7)
        copy = self.file("copy.gguf", MODEL.read_bytes())
        self.assertIn("is the input", self.error_of("quantize", "--input", copy, "--output", copy,
                                                    "--type", "F16", "--force"))
        self.assertEqual(copy.read_bytes(), MODEL.read_bytes())

    def test_failures_leave_nothing(self):
        error = self.error_of("quantize", "--input", MODEL, "--output", self.folder / "no" / "x.gguf",
                              "--type", "F16")
        self.assertIn("x.gguf", error)
        limited = subprocess.run(
            ["sh", "-c", 'ulimit -f 1000; trap "" XFSZ; exec "$@"', "sh", self.path_of("quantize"),
             "--input", MODEL, "--output", self.folder / "big.gguf", "--type", "F16"],
            capture_output=True, timeout=SECONDS)
        self.assertEqual(limited.returncode, 1, limited.stderr)
        self.assertIn(b"File too large", limited.stderr)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_importance(self):
        text = self.file("text.txt", GOLDEN["tale"]["text"].encode())
        path = self.folder / "importance.gguf"
        plain = self.json_of("score", "--model", MODEL, "--file", text)
        gathered = self.json_of("score", "--model", MODEL, "--file", text, "--importance", path)
        self.assertEqual(gathered["perplexity"], plain["perplexity"])
        without = self.perplexity(self.quantize("Q2_K_S", name="plain.gguf"))
        run = self.run_program("quantize", "--input", MODEL, "--output", self.folder / "i.gguf",
                               "--type", "Q2_K_S", "--importance", path)
        self.assertIn(b"had importance", run.stderr)
        # On the very text that it was gathered from.
        self.assertLess(abs(self.perplexity(self.folder / "i.gguf") - plain["perplexity"]),
                        abs(without - plain["perplexity"]))
        self.assertIn("text.txt", self.error_of(
            "quantize", "--input", MODEL, "--output", self.folder / "j.gguf", "--type", "Q2_K",
            "--importance", text))

    def test_progress_with_the_time_left(self):
        shown, _ = self.on_terminal("quantize", "--input", MODEL, "--output",
                                    self.folder / "x.gguf", "--type", "Q4_K_M")
        self.assertRegex(shown, rb"\d+%, \d+:\d\d left")
        self.assertIn(b"bits a weight", shown)


class InputFiles(Case):
    """What cannot be read is refused at once, with the path and the system's reason."""

    def readers(self, path):
        """The command lines that open a model at a path."""
        prompt = self.file("prompt.txt", b"Once")
        rest = {"complete": ["--prompt", "a"], "score": ["--file", prompt],
                "quantize": ["--output", self.folder / "x.gguf", "--type", "Q4_0"]}
        for name in PROGRAMS:
            yield [name, "--input" if name == "quantize" else "--model", path, *rest.get(name, [])]

    def test_models(self):
        special = self.folder / "special"
        special.mkdir()
        os.mkfifo(special / "pipe.gguf")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(special / "socket"))
        (special / "empty.gguf").touch()
        (special / "folder").mkdir()
        (special / "folder" / "b.gguf").touch()
        long = special / "/".join(["x" * 100] * 20) / "end.gguf"
        for path, words in ((special / "pipe.gguf", "pipe"), (special / "socket", "socket"),
                            ("/dev/null", "device"), (special / "empty.gguf", "empty"),
                            (special / "folder", "'b.gguf'"), ("no/caf\u00e9.gguf", "No such file"),
                            (long, "x/end.gguf': No such file"), ("", "No such file"),
                            (special / "empty.gguf" / "x", "Not a directory")):
            for command in self.readers(path):
                with self.subTest(f"{path} {command[0]}"):
                    error = self.error_of(*command)
                    self.assertIn(words, error)
                    self.assertIn(pathlib.Path(path).name, error)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["prompt.txt", "special"])

    @unittest.skipIf(os.geteuid() == 0, "the superuser may read everything")
    def test_unreadable_files(self):
        path = self.file("secret.gguf", b"x")
        path.chmod(0)
        for command in self.readers(path):
            self.assertIn("Permission denied", self.error_of(*command))

    def test_importance(self):
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        for path, word in ((pipe, "pipe"), (self.folder, "folder"), ("no/such", "No such file")):
            self.assertIn(word, self.error_of(
                "quantize", "--input", MODEL, "--output", self.folder / "x.gguf", "--type", "Q2_K",
                "--importance", path))

    def test_texts(self):
        for name, option, rest in (("complete", "--prompt-file", []),
                                   ("complete", "--grammar", ["--prompt", "a"]),
                                   ("complete", "--json-schema", ["--prompt", "a"]),
                                   ("score", "--file", ["--model", MODEL])):
            for path, word in (("no/such.txt", "No such file"), (self.folder, "Is a directory"),
                               (MODEL / "x", "Not a directory")):
                with self.subTest(f"{name} {option} {path}"):
                    error = self.error_of(name, option, path, *rest)
                    self.assertIn(word, error)
                    self.assertIn(str(path), error)

    def test_texts_may_come_through_pipes(self):
        expected = self.json_of("complete", "--prompt", "Once upon", "--temperature", 0,
                                "--max-tokens", 5)["tokens"]
        tokens = lambda *source, **options: self.json_of(
            "complete", "--prompt-file", *source, "--temperature", 0, "--max-tokens", 5,
            **options)["tokens"]
        self.assertEqual(tokens("/dev/stdin", text=b"Once upon"), expected)
        shell = subprocess.run(
            ["bash", "-c", '"$0" --prompt-file <(printf "Once upon") --temperature 0 --max-tokens 5 '
             "--json", self.bin / "complete"], capture_output=True, timeout=SECONDS)
        self.assertEqual(json.loads(shell.stdout)["tokens"], expected)


class OutputFiles(Case):
    """All programs write files in one way: complete or not at all, and never over what is to be kept."""

    def writers(self, path):
        """The command lines that write to a path."""
        text = self.file("text.txt", b"Once upon a time")
        yield ["quantize", "--input", MODEL, "--type", "Q8_0", "--output", path]
        yield ["score", "--model", MODEL, "--file", text, "--importance", path]
        yield ["inspect", "--model", MODEL, "--tokens", "1,2", "--logits", path]
        yield ["inspect", "--model", MODEL, "--tokens", "1,2", "--router", path]
        yield ["inspect", "--model", MODEL, "--text-file", text, "--router-stats", path]
        yield ["bench", "--synthetic", "mistral-7b", "--layers", 1, "--type", "Q2_K", "--write", path]

    def slow(self, output, *arguments, wait=True):
        """A run of quantize that writes and is not done for a while."""
        command = [self.path_of("quantize"), "--input", MODEL, "--output", output, "--type", "Q2_K",
                   "--threads", "1", *arguments]
        before = set(self.folder.glob("*.part"))
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.addCleanup(run.kill)
        while wait and run.poll() is None and set(self.folder.glob("*.part")) == before:
            time.sleep(0.001)
        return run

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())

    def test_existing_files_need_force_and_keep_their_mode(self):
        for mode, command in zip((0o600, 0o640, 0o666, 0o400, 0o755, 0o644),
                                 self.writers(self.folder / "out")):
            with self.subTest(command[0:1] + command[-2:-1]):
                path = self.file("out", b"precious")
                path.chmod(mode)
                self.assertIn("--force", self.error_of(*command))
                self.assertEqual(path.read_bytes(), b"precious")
                self.run_program(*command, "--force")
                self.assertNotEqual(path.read_bytes(), b"precious")
                self.assertEqual(path.stat().st_mode & 0o7777, mode)
                path.unlink()
                self.assertEqual(self.names(), ["text.txt"])
                before = os.umask(0o027)
                try:
                    self.run_program(*command)
                finally:
                    os.umask(before)
                self.assertEqual(path.stat().st_mode & 0o7777, 0o640)
                path.unlink()

    def test_what_is_no_plain_file_is_refused(self):
        special = self.folder / "special"
        special.mkdir()
        os.mkfifo(special / "pipe")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(special / "socket"))
        precious = self.file("precious", b"precious")
        (special / "link").symlink_to(precious)
        (special / "to-nothing").symlink_to("nothing")
        (special / "folder").mkdir()
        device = self.device_in(special)
        before = sorted(path.name for path in special.iterdir())
        places = [(special / "link", "symbolic link"), (special / "pipe", "pipe"),
                  (special / "socket", "socket"), (special / "folder", "folder"),
                  (special / "to-nothing", "symbolic link"), (f"{special}/", "folder"),
                  (special / "none" / "x", "No such file"), (precious / "x", "Not a directory"),
                  (device, "device"), ("", "empty"), (f"{special}/new/", "folder")]
        for number, (path, word) in enumerate(places):
            if path is None:
                with self.subTest("device"):
                    self.skipTest("no device may be made here")
                continue
            # All programs write through one class: every one is tried with a link, and one with each other place.
            commands = list(self.writers(path))
            for command in commands if number == 0 else [commands[number % len(commands)]]:
                with self.subTest(f"{path} {command[0]} {command[-2]}"):
                    error = self.error_of(*command, "--force")
                    self.assertIn(word, error)
                    self.assertIn(str(path), error)
        self.assertEqual(sorted(path.name for path in special.iterdir()), before)
        self.assertEqual(precious.read_bytes(), b"precious")

    def test_an_input_is_never_an_output(self):
        content = MODEL.read_bytes()
        model = self.file("m.gguf", content)
        # The name that a temporary file might have.
        part = self.file("out.gguf.part", content)
        self.run_program("quantize", "--input", part, "--output", self.folder / "out.gguf", "--type",
                         "F16")
        self.assertEqual(part.read_bytes(), content)
        os.link(model, self.folder / "hard.gguf")
        (self.folder / "soft.gguf").symlink_to(model)
        text = self.file("t.txt", b"Once upon")
        for command in (
                ["quantize", "--input", model, "--output", model, "--type", "F16"],
                ["quantize", "--input", model, "--output", self.folder / "hard.gguf", "--type", "F16"],
                ["quantize", "--input", model, "--output", self.folder / "soft.gguf", "--type", "F16"],
                ["quantize", "--input", self.folder / "soft.gguf", "--output", model, "--type", "F16"],
                ["score", "--model", model, "--file", text, "--importance", text],
                ["score", "--model", model, "--file", text, "--importance", model],
                ["inspect", "--model", model, "--tokens", 1, "--logits", model],
                ["inspect", "--model", model, "--text-file", text, "--router-stats", text]):
            with self.subTest(command):
                self.assertRegex(self.error_of(*command, "--force"), "input|symbolic link")
        importance = self.folder / "i.gguf"
        self.run_program("score", "--model", model, "--file", text, "--importance", importance)
        self.assertIn("input", self.error_of("quantize", "--input", model, "--output", importance,
                                             "--importance", importance, "--type", "F16", "--force"))
        self.assertEqual(model.read_bytes(), content)
        self.assertEqual(text.read_bytes(), b"Once upon")

    def test_a_file_of_a_model_folder_or_a_part_is_never_an_output(self):
        folder = self.folder / "model"
        folder.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.model", "w.dat", "q.gguf"):
            (folder / name).write_bytes(name.encode())
        os.link(folder / "model.safetensors", self.folder / "elsewhere")
        for i in (1, 2):
            self.file(f"x-0000{i}-of-00002.gguf", b"part")
        refused = [(model, output) for model in (folder, folder / "model.safetensors")
                   for output in (folder / "config.json", folder / "model.safetensors",
                                  folder / "tokenizer.model", folder / "w.dat",
                                  self.folder / "elsewhere")]
        refused.append((self.folder / "x-00001-of-00002.gguf", self.folder / "x-00002-of-00002.gguf"))
        for model, output in refused:
            with self.subTest(f"{model} {output}"):
                before = output.read_bytes()
                self.assertIn("one of its files", self.error_of(
                    "quantize", "--input", model, "--output", output, "--type", "F16", "--force"))
                self.assertEqual(output.read_bytes(), before)
        # Another result beside them may be replaced, if only the model could be read.
        self.assertNotIn("one of its files", self.error_of(
            "quantize", "--input", folder, "--output", folder / "q.gguf", "--type", "F16", "--force"))

    def test_runs_to_one_output_share_nothing(self):
        path = self.folder / "out.gguf"
        runs = [self.slow(path, "--force", wait=False) for _ in range(2)]
        runs += [self.slow(path, wait=False) for _ in range(2)]
        codes = [run.wait(SECONDS) for run in runs]
        self.assertEqual(codes[:2], [0, 0])
        # Without force, at most the first may take the place.
        self.assertLessEqual(codes[2:].count(0), 1)
        self.assertEqual(self.names(), ["out.gguf"])
        alone = self.folder / "alone.gguf"
        self.assertEqual(self.slow(alone).wait(SECONDS), 0)
        self.assertEqual(path.read_bytes(), alone.read_bytes())

    def test_an_output_that_appears_meanwhile_is_kept(self):
        run = self.slow(self.folder / "out.gguf")
        path = self.file("out.gguf", b"precious")
        self.assertEqual(run.wait(SECONDS), 1)
        self.assertEqual(path.read_bytes(), b"precious")
        self.assertEqual(self.names(), ["out.gguf"])

    def test_two_outputs_are_two_files(self):
        (self.folder / "also").symlink_to(self.folder)
        text = self.file("text.txt", b"Once upon a time")
        same = self.folder / "same"
        inspect = ["inspect", "--model", MODEL, "--tokens", "1,2", "--force"]
        for content in (None, b"precious"):
            if content:
                same.write_bytes(content)
            for other in (same, f"{self.folder}/./same", self.folder / "also" / "same"):
                for command in (["--logits", same, "--router", other],
                                ["--logits", same, "--text-file", text, "--router-stats", other],
                                ["--router", same, "--text-file", text, "--router-stats", other]):
                    with self.subTest(command):
                        self.assertRegex(self.error_of(*inspect, *command),
                                         "'[^']*same' (is given twice|and '[^']*same' are the same)")
                        self.assertEqual(same.read_bytes() if content else None, content)
        self.run_program(*inspect, "--logits", same, "--router", self.folder / "other")
        self.assertEqual(self.names(), ["also", "other", "same", "text.txt"])

    def test_file_systems_without_second_names(self):
        if subprocess.run(["sh", "-c", "strace -o /dev/null true"], capture_output=True,
                          timeout=SECONDS).returncode != 0:
            self.skipTest("there is no strace, or it may not trace")
        path = self.folder / "out"
        command = ["inspect", "--model", MODEL, "--tokens", "1,2", "--logits", path]
        # The sanitizer's search for leaks traces the process itself.
        env = {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}
        for code in ("EINVAL", "ENOSYS", "EPERM", "EOPNOTSUPP", "EIO"):
            with self.subTest(code):
                traced = subprocess.run(
                    ["strace", "-f", "-o", "/dev/null", "-e", "trace=link,linkat,renameat2", "-e",
                     f"inject=link,linkat,renameat2:error={code}", self.path_of("inspect"),
                     *map(str, command[1:])], capture_output=True, env=env, timeout=SECONDS)
                self.assertEqual(traced.returncode, code == "EIO", traced.stderr)
                self.assertEqual(self.names(), [] if code == "EIO" else ["out"])
                if code != "EIO":
                    self.assertIn("--force", self.error_of(*command))
                    path.unlink()

    def test_a_signal_ends_the_first_process_of_a_container(self):
        unshare = ["unshare", "--pid", "--fork"]
        if subprocess.run(["sh", "-c", " ".join(unshare) + " true"], capture_output=True,
                          timeout=SECONDS).returncode != 0:
            self.skipTest("there is no unshare, or it is not allowed")
        run = subprocess.Popen(
            [*unshare, self.path_of("quantize"), "--input", MODEL, "--output", self.folder / "out.gguf",
             "--type", "Q2_K", "--threads", "1"], stderr=subprocess.DEVNULL)
        self.addCleanup(run.kill)
        while run.poll() is None and not list(self.folder.glob("*.part")):
            time.sleep(0.001)
        child, = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        try:
            os.kill(int(child), signal.SIGTERM)
            self.assertEqual(run.wait(SECONDS), 128 + signal.SIGTERM)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.assertEqual(self.names(), [])

    @unittest.skipIf(os.geteuid() != 0, "only the superuser may run programs as others")
    def test_another_group_does_not_inherit_the_old_one_s_permissions(self):
        self.folder.chmod(0o777)  # with all that another user needs, who may not look where this build is
        inspect = shutil.copy(self.path_of("inspect"), self.folder / "inspect")
        model = shutil.copy(MODEL, self.folder / "m.gguf")
        # One of the old group hands on what the group may do.
        for group, others, mode in ((0, [], 0o604), (12346, [12346], 0o664)):
            path = self.file("out", b"precious")
            os.chown(path, 0, group)
            path.chmod(0o664)
            subprocess.run([inspect, "--model", model, "--tokens", "1,2", "--logits", path, "--force"],
                           check=True, capture_output=True, user=12345, group=12345,
                           extra_groups=others, timeout=SECONDS)
            self.assertEqual((path.stat().st_gid, path.stat().st_mode & 0o7777),
                             (group if others else 12345, mode))

    def test_signals_leave_nothing_and_end_the_run(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE,
                       signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU, signal.SIGXFSZ,
                       signal.SIGABRT, signal.SIGRTMIN):
            with self.subTest(number):
                run = self.slow(self.folder / "out.gguf")
                run.send_signal(number)
                self.assertEqual(run.wait(SECONDS), -number)
                self.assertEqual(self.names(), [])

    def test_an_ignored_signal_stays_ignored(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        try:
            run = self.slow(self.folder / "out.gguf")
        finally:
            signal.signal(signal.SIGHUP, before)
        run.send_signal(signal.SIGHUP)
        self.assertEqual(run.wait(SECONDS), 0)
        self.assertEqual(self.names(), ["out.gguf"])

    def test_what_a_killed_run_leaves_harms_no_later_one(self):
        run = self.slow(self.folder / "out.gguf")
        run.kill()
        run.wait(SECONDS)
        left, = self.names()
        content = (self.folder / left).read_bytes()
        self.assertRegex(left, r"^out\.gguf\.[0-9a-f]{16}\.part$")
        self.assertEqual(self.slow(self.folder / "out.gguf", wait=False).wait(SECONDS), 0)
        self.assertEqual(self.names(), sorted([left, "out.gguf"]))
        self.assertEqual((self.folder / left).read_bytes(), content)

    def test_a_full_disk_is_told_and_leaves_nothing(self):
        for command in self.writers(self.folder / "out"):
            if "--importance" in command or "--router" in command or "--router-stats" in command:
                continue  # less than the least limit
            with self.subTest(command[0]):
                for trap, code in (('trap "" XFSZ;', 1), ("", -signal.SIGXFSZ)):
                    run = subprocess.run(
                        ["bash", "-c", f'ulimit -c 0; ulimit -f 8; {trap} exec "$@"', "bash",
                         self.path_of(command[0]), *map(str, command[1:])], capture_output=True,
                        restore_signals=True, timeout=SECONDS)
                    self.assertEqual(run.returncode, code, run.stderr)
                    if code == 1:
                        self.assertIn(b"File too large", run.stderr)
                    self.assertEqual(self.names(), ["text.txt"])

    def test_long_names(self):
        for name in ("n" * 255, "\u00e9" * 127):
            path = self.folder / name
            self.run_program("inspect", "--model", MODEL, "--tokens", "1,2", "--logits", path)
            self.assertEqual(self.names(), [name])
            path.unlink()
        self.assertIn("File name too long", self.error_of(
            "inspect", "--model", MODEL, "--tokens", "1,2", "--logits", self.folder / ("n" * 256)))
        self.assertEqual(self.names(), [])


class Bench(Case):
    def test_figures(self):
        report = self.json_of("bench", "--model", MODEL, "--prompt", 20, "--generate", 5,
                              "--repeat", 3, "--profile", "--threads", 2)
        self.assertEqual((report["threads"], report["depth"], report["layers"]), (2, 0, 4))
        for limit in report["limits"].values():
            self.assertGreater(limit, 1e8)
        for part, tokens in (("prompt", 20), ("decode", 5)):
            figures = report[part]
            self.assertEqual(figures["tokens"], tokens)
            self.assertGreater(figures["least"], 0)
            self.assertLessEqual(figures["least"], figures["tokens_per_second"])
            self.assertLessEqual(figures["tokens_per_second"], figures["most"])
            self.assertGreater(figures["fraction_of_limit"], 0)
            self.assertLess(figures["fraction_of_limit"], 1.5)
            self.assertAlmostEqual(sum(figures["profile"].values()), 1)
        # Two of eight experts, and no embedding.
        sizes = {t["name"]: t["bytes"]
                 for t in self.json_of("inspect", "--model", MODEL)["tensors"]}
        experts = sum(n for name, n in sizes.items() if "_exps" in name)
        self.assertEqual(report["decode_bytes_per_token"], sum(sizes.values()) - experts * 3 // 4
                         - sizes["token_embd.weight"])
        text = self.run_program("bench", "--model", MODEL, "--prompt", 4, "--generate", 0,
                                "--depth", 30, "--repeat", 2).stdout.decode()
        self.assertIn("4 tokens at depth 30", text)
        self.assertNotIn("decode", text)
        self.assertIn("context", self.error_of("bench", "--model", MODEL, "--depth", 40000))

    def test_bf16_activations(self):
        path = self.folder / "bf16.gguf"
        self.run_program("quantize", "--input", MODEL, "--output", path, "--type", "BF16")
        prompt = ["complete", "--model", path, "--prompt", "Once upon a time", "--temperature", 0,
                  "--max-tokens", 8]
        exact = self.json_of(*prompt)
        rounded = self.json_of(*prompt, "--bf16-activations")
        self.assertEqual(rounded["tokens"], exact["tokens"])  # no near-ties among so few
        report = self.json_of("bench", "--model", path, "--bf16-activations", "--prompt", 20,
                              "--generate", 4, "--repeat", 1)
        self.assertEqual(report["prompt"]["limit"], "float32 peak")

    def test_slices_and_sessions(self):
        fixed = ["bench", "--model", MODEL, "--prompt", 30, "--generate", 8, "--repeat", 2,
                 "--slice-ms", 0.001, "--sessions", 5]  # a slice is one piece, on any machine
        report = self.json_of(*fixed)
        slices = report["slices"]
        self.assertEqual(slices["budget_seconds"], 1e-6)
        self.assertGreater(slices["slices"], 10 * 2 * 9)
        self.assertLessEqual(slices["p99_seconds"], slices["longest_seconds"])
        self.assertEqual(set(slices["speed_of_unsliced"]), {"prompt", "decode"})
        together = report["sessions"]
        self.assertEqual(together["sessions"], 5)
        self.assertGreater(together["tokens_per_second"], 0)
        text = self.run_program(*fixed, "--copy-weights").stdout.decode()
        self.assertIn("slices", text)
        self.assertIn("5 sessions", text)

    @unittest.skipUnless(sys.platform == "linux", "peak memory is measured on Linux")
    def test_memory_is_as_stated(self):
        if b"__asan_init" in (self.path_of("bench")).read_bytes():
            self.skipTest("sanitizers take memory of their own")
        path = self.folder / "synthetic.gguf"
        self.run_program("bench", "--synthetic", "mistral-7b", "--layers", 1, "--type", "Q2_K",
                         "--write", path)
        sizes = {t["name"]: t["bytes"] for t in self.json_of("inspect", "--model", path)["tensors"]}
        for options in [], ["--copy-weights"]:
            with self.subTest(options=options):
                report = self.json_of("bench", "--model", path, "--prompt", 512, "--generate", 1,
                                      "--repeat", 1, "--threads", 2, *options)
                stated = report["stated_memory_bytes"]
                # The program itself; tokens that do not occur leave their embeddings unread.
                self.assertLess(report["peak_memory_bytes"], stated * 1.02 + (16 << 20))
                self.assertGreater(report["peak_memory_bytes"],
                                   (stated - sizes["token_embd.weight"]) * 0.98)
                self.assertGreater(report["peak_memory_bytes"], report["weight_bytes"] * 0.8)

    def test_synthetic_model_is_a_file_for_others(self):
        path = self.folder / "synthetic.gguf"
        self.run_program("bench", "--synthetic", "mistral-7b", "--layers", 1, "--type", "Q2_K",
                         "--write", path)
        report = self.json_of("inspect", "--model", path)
        self.assertEqual(report["config"]["dim"], 4096)
        self.assertEqual(report["config"]["n_layers"], 1)
        self.assertEqual(report["config"]["n_kv_heads"], 8)
        kinds = {t["name"]: t["type"] for t in report["tensors"]}
        self.assertEqual(kinds["blk.0.ffn_down.weight"], "Q3_K")
        self.assertEqual(kinds["output.weight"], "Q6_K")
        self.assertIn("decode", self.json_of("bench", "--model", path, "--prompt", 0,
                                             "--generate", 2, "--repeat", 1))


class BatchServe(Case):
    def answers(self, requests, *arguments):
        lines = [r if isinstance(r, str) else json.dumps(r) for r in requests]
        result = self.run_program("batch_serve", "--copy-weights", *arguments, text="\n".join(lines).encode())
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_each_gets_what_it_gets_alone(self):
        requests = [{"id": i, "prompt": prompt, "seed": i, "max_tokens": 5 + i}
                    for i, prompt in enumerate(["Once upon a time", "A dog", "The sun was", "Lily",
                                                "One day, a", "There was a", "Tim and"])]
        together = self.answers(requests, "--parallel", 4, "--threads", 2)
        self.assertEqual(sorted(a["id"] for a in together), list(range(7)))
        for answer in together:
            self.assertEqual(answer, self.answers([requests[answer["id"]]], "--threads", 1)[0])
            self.assertLessEqual(answer["generated_tokens"], 5 + answer["id"])

    def test_prefix_rules_and_chats(self):
        answers = {a["id"]: a for a in self.answers(
            [{"id": "a", "prompt": " little dog", "temperature": 0, "max_tokens": 4},
             {"id": "b", "user": "Is it?", "choices": ["yes", "no"]},
             {"id": "c", "prompt": " cat", "regex": " [a-z]{3}\\."},
             {"id": "d", "prompt": " cat", "grammar": 'root ::= " a"{3}'},
             {"id": "e", "prompt": " cat", "json_schema": {"type": "integer", "minimum": 5}},
             {"id": "f", "prompt": " cat", "temperature": 0, "max_tokens": 50, "stop": ["."]}],
            "--prefix", "Once upon a time there was a")}
        self.assertEqual(len(answers), 6)
        expected = self.json_of("complete", "--temperature", 0, "--max-tokens", 4, "--prompt",
                                "Once upon a time there was a little dog")
        self.assertEqual(answers["a"]["text"], expected["text"])
        self.assertEqual(answers["a"]["prompt_tokens"], 2)
        self.assertIn(answers["b"]["text"], ("yes", "no"))
        self.assertRegex(answers["c"]["text"], r"^ [a-z]{3}\.$")
        self.assertEqual(answers["d"]["text"], " a a a")
        self.assertEqual(answers["d"]["stop_reason"], "grammar_end")
        self.assertGreaterEqual(int(answers["e"]["text"]), 5)
        self.assertNotIn(".", answers["f"]["text"])

    def test_bad_requests_harm_no_other(self):
        answers = self.answers(["nonsense", {"id": 1}, "[]", {"id": 2, "prompt": "a", "user": "b"},
                                {"id": 3, "prompt": "a", "regex": "("}, {"id": 4, "prompt": 5},
                                {"id": 5, "prompt": "a " * 2000}, {"id": 6, "prompt": "a",
                                                                   "temperature": -1},
                                {"id": 7, "prompt": "Once", "max_tokens": 3}, ""],
                               "--context", 100)
        self.assertEqual(len(answers), 9)
        self.assertEqual([a["id"] for a in answers if "error" not in a], [7])
        for answer in answers:
            if answer["id"] in (1, 2, 3, 4, 5, 6):
                self.assertTrue(answer["error"])


    def test_each_field_is_checked(self):
        whole = "whole number from 0 to"
        wrong = [("max_tokens", value, whole) for value in
                 (-1, 1e30, 2**32, 2**64, 2**70, 1.5, -0.5, "3", True, [3], {})]
        wrong += [("seed", value, whole) for value in (-1, 2**64, 1e30, 0.5, "1", False)]
        wrong += [("temperature", value, "number from 0 to 1000") for value in
                  (-1, -1e-9, 1001, 1e300, "0.5", True, [])]
        wrong += [("stop", value, "list of texts") for value in ("a", [1], ["a", None], {"a": "b"}, 5)]
        wrong += [("stop", ["a", ""], "not empty"), ("choices", "a", "list of texts"),
                  ("choices", ["a", 1], "list of texts"), ("regex", 5, "a text"),
                  ("grammar", ["a"], "a text"), ("json_schema", 5, "JSON schema"),
                  ("json_schema", "{}", "JSON schema"), ("json_schema", [], "JSON schema"),
                  ("prompt", ["a"], "a text"), ("user", 5, "a text")]
        requests = []
        for i, (name, value, _) in enumerate(wrong):
            request = {"id": i, "prompt": "Once", name: value}
            if name == "user":
                del request["prompt"]
            requests.append(request)
        answers = {a["id"]: a for a in self.answers(requests)}
        for i, (name, value, words) in enumerate(wrong):
            with self.subTest(f"{name} {value}"):
                self.assertIn(f'"{name}"', answers[i]["error"])
                self.assertIn(words, answers[i]["error"])
        answers = self.answers([{"id": 1, "prompt": "a", "max_token": 3},
                                {"id": 2, "prompt": "a", "x" * 1000: 3},
                                {"id": 3, "prompt": "a", "regex": "a", "choices": ["b"]}])
        for answer, words in zip(answers, ('unknown field "max_token"; a request may have id, prompt, user',
                                           '"xxx', "at most one of"), strict=True):
            self.assertIn(words, answer["error"])
            self.assertLess(len(answer["error"]), 200)
        answers = self.answers([{"id": 1}, {"id": 2, "prompt": "a", "user": "b"}, '{"id": 3, "prompt"}',
                                {"id": 4, "prompt": "a", "x" + "\u00e9" * 30: 3}])
        self.assertEqual(answers[0]["error"], 'a request must have either "prompt" or "user"')
        self.assertEqual(answers[1]["error"], 'a request must have either "prompt" or "user", not both')
        self.assertEqual(answers[2]["error"], "the line is not valid JSON at byte 19")
        self.assertIn('"x' + "\u00e9" * 19 + '..."', answers[3]["error"])

    def test_what_is_no_error(self):
        most = {"max_tokens": 2**32 - 1, "seed": 2**64 - 1, "temperature": 1000, "stop": []}
        requests = [{"id": "most", "prompt": "Once", "regex": "ab", **most},
                    {"id": "least", "prompt": "Once", "max_tokens": 0, "temperature": 0, "seed": 0},
                    {"id": "whole", "prompt": "Once", "max_tokens": 3.0, "seed": 1e3},
                    {"id": "nulls", "prompt": "Once", "user": None, "max_tokens": None, "seed": None,
                     "stop": None, "regex": None, "choices": ["x"]},
                    {"id": {"any": ["thing", None, 1.5]}, "prompt": "Once", "max_tokens": 1}]
        answers = {str(a["id"]): a for a in self.answers(requests)}
        self.assertEqual([a["error"] for a in answers.values() if "error" in a], [])
        self.assertEqual(answers["most"]["text"], "ab")
        self.assertEqual(answers["least"]["generated_tokens"], 0)
        self.assertEqual(answers["whole"]["generated_tokens"], 3)
        self.assertEqual(answers["nulls"]["text"], "x")
        self.assertIn("{'any': ['thing', None, 1.5]}", answers)

    def on_small_stack(self, lines):
        """Answers by a program whose threads all have 256 KiB of stack."""
        result = subprocess.run(["bash", "-c", 'ulimit -s 256; exec "$@"', "bash",
                                 self.bin / "batch_serve", "--threads", "2"],
                                input="\n".join(lines).encode(), capture_output=True, timeout=SECONDS)
        self.assertEqual(result.returncode, 0, result.stderr)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_deep_json_is_refused(self):
        def nested(depth):
            return "[" * depth + "]" * depth
        after = '{"id": "after", "prompt": "Once", "max_tokens": 2}'
        for lines, ids in (
                (['{"id": %s, "prompt": "a"}' % nested(50000)], [None]),
                (['{"id": 1, "prompt": "a", "json_schema": %s}' % nested(50000)], [1]),
                (['{"json_schema": %s, "id": 1, "prompt": "a"}' % ('{"a":' * 50000 + "1" + "}" * 50000)],
                 [1]),
                ([nested(50000)], [None]), (["[" * 10**6], [None]), (['{"a":' * 10**6], [None]),
                (['{"id": %s, "prompt": "a"}' % nested(128)], [None])):
            with self.subTest(lines[0][:40]):
                *refused, last = self.on_small_stack(lines + [after])
                self.assertEqual([answer["id"] for answer in refused], ids)
                for answer in refused:
                    self.assertRegex(answer["error"], "nested more than 128|not valid JSON")
                self.assertEqual((last["id"], last["generated_tokens"]), ("after", 2))
        # Up to the limit, and in texts, there may be brackets.
        depth = json.loads(nested(127))
        answers = self.on_small_stack([json.dumps(request) for request in (
            {"id": depth, "prompt": "Once", "max_tokens": 1},
            {"id": "[" * 1000, "prompt": "[{" * 300, "max_tokens": 1})])
        self.assertEqual([answer["id"] for answer in answers], [depth, "[" * 1000])
        self.assertEqual([answer.get("error") for answer in answers], [None, None])

    def test_long_lines_are_refused(self):
        limit = 1 << 24
        start, end = '{"id": "long", "prompt": "Once", "max_tokens": 1', "}"
        fits = start + " " * (limit - len(start) - len(end)) + end
        answers = self.answers([fits, fits + " ", "x" * (3 * limit),
                                {"id": "after", "prompt": "Once", "max_tokens": 1}])
        self.assertEqual(sorted(str(a["id"]) for a in answers), ["None", "None", "after", "long"])
        for answer in answers:
            if answer["id"] is None:
                self.assertIn("16 MiB", answer["error"])
            else:
                self.assertEqual(answer["generated_tokens"], 1)


class EditorComplete(Case):
    def typed(self, text, *arguments):
        return json.loads(self.run_program("editor_complete", "--json", *arguments,
                                           text=text).stdout)

    def test_suggests_for_the_last_text(self):
        text = "Once upon a time there was a little"
        expected = self.json_of("complete", "--temperature", 0, "--max-tokens", 16, "--stop", "\n",
                                "--prompt", text)["text"]
        for pause in (0, 1, 5):
            report = self.typed(text.encode(), "--typing-ms", pause)
            self.assertEqual(report["text"], text)
            self.assertEqual(report["suggestion"], expected)
            self.assertEqual(report["edits"], len(text))
            self.assertLessEqual(report["cancelled"], report["begun"])
        # At leisure, most of the text before is kept.
        report = self.typed(text.encode(), "--typing-ms", 30)
        self.assertGreater(report["prompt_tokens_kept"], report["prompt_tokens"] // 2)

    def test_edits(self):
        report = self.typed("Onkk\b\bce upon \u00e9\b\ba".encode(), "--typing-ms", 2)
        self.assertEqual(report["text"], "Once upona")
        self.assertEqual(self.typed(b"")["suggestion"], "")
        full = self.typed(b"one two three four five six seven", "--context", 5, "--typing-ms", 0)
        self.assertEqual((full["suggestion"], full["failed"] > 0), ("", True))


class JobSystem(Case):
    def test_stories(self):
        for workers in (1, 2, 7):
            result = self.run_program("job_system", "--workers", workers, "--stories", 5,
                                      "--max-tokens", 12)
            self.assertEqual(result.stdout.count(b"Once upon a time"), 5)
            self.assertIn(b"5 stories among 500 jobs", result.stderr)


class Npc(Case):
    def test_frames_and_answers(self):
        report = json.loads(self.run_program("npc", "--seconds", 3, "--json").stdout)
        self.assertEqual(report["frames"], 180)
        self.assertGreater(report["answers"], 0)
        self.assertLessEqual(report["median_ms"], report["longest_ms"])
        self.assertTrue(report["words"])
        for words in report["words"]:
            self.assertRegex(words, "^(Lily|Ben|Mia): [A-Z][a-z ,]{3,40}[.!?]$")
        text = self.run_program("npc", "--seconds", 0.2).stdout.decode()
        self.assertIn("12 frames", text)
        # There is one, at least.
        for seconds in (0.001, 1e-300):
            text = self.run_program("npc", "--seconds", seconds).stdout.decode()
            self.assertIn("1 frame:", text)

    def test_examples_are_short(self):
        for name in ("npc", "editor_complete", "batch_serve", "job_system"):
            lines = (ROOT / "examples" / f"{name}.cpp").read_text().splitlines()
            self.assertLess(len(lines), 250, name)


class OtherFormats(Case):
    def folders(self):
        base = SHARED / "models" / "tiny-mixtral"
        if not base.exists():
            self.skipTest("needs ../shared")
        return base / "gguf" / "tiny-mixtral-bf16.gguf", [
            base / "hf", base / "hf" / "model.safetensors.index.json", base / "mistral",
            base / "mistral" / "consolidated.00.pth"]

    def test_every_program_reads_folders(self):
        gguf, others = self.folders()
        prompt = ["--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 12]
        text = self.file("text.txt", b"A little dog ran home.")
        expected = self.json_of("complete", "--model", gguf, *prompt)["tokens"]
        score = self.json_of("score", "--model", gguf, "--file", text)["perplexity"]
        totals = self.json_of("inspect", "--model", gguf)
        for model in others:
            with self.subTest(model.name):
                self.assertEqual(
                    self.json_of("complete", "--model", model, "--copy-weights",
                                 *prompt)["tokens"], expected)
                self.assertEqual(
                    self.json_of("score", "--model", model, "--file", text)["perplexity"], score)
                report = self.json_of("inspect", "--model", model)
                self.assertEqual(report["config"], totals["config"])
                self.assertEqual(report["n_parameters"], totals["n_parameters"])
                self.assertEqual(sum(t["bytes"] for t in report["tensors"]),
                                 report["memory"]["weight_bytes"])
                self.assertIn("n_layers" if "mistral" in model.parts else "model_type",
                              report["metadata"])
                ids = self.run_program("tokenize", "--model", model, text=b"dog").stdout
                self.assertEqual(
                    ids, self.run_program("tokenize", "--model", gguf, text=b"dog").stdout)

    def test_a_folder_without_a_model(self):
        self.assertIn("params.json", self.error_of("inspect", "--model", self.folder))

    def test_chat_format_by_hand(self):
        text = b"Hello\n"
        fixed = ["--temperature", 0, "--max-tokens", 3, "--json"]
        counts = {
            name: json.loads(self.run_program("chat", *fixed, "--chat-format", name, "--system",
                                              "S", text=text).stdout)["timings"]["prompt_tokens"]
            for name in ("mistral-v1", "llama2")}
        self.assertGreater(counts["llama2"], counts["mistral-v1"])
        self.assertIn("[INST]", self.error_of("chat", "--chat-format", "mistral-v3", text=text))
        self.run_program("chat", "--chat-format", "alpaca", text=text, code=2)


class EmbedMinimal(Case):
    def test_program(self):
        if self.without == "embed_minimal":
            self.skipTest("embed_minimal is not built")
        self.assertLess(len((ROOT / "examples" / "embed_minimal.cpp").read_text().splitlines()), 25)
        golden = GOLDEN["once"]
        text = self.run_program("embed_minimal", MODEL, golden["text"]).stdout.decode()
        self.assertEqual(text[:40], golden["greedy_text"][:40])
        self.run_program("embed_minimal", code=2)
        result = self.run_program("embed_minimal", "no/such.gguf", "a", code=1)
        self.assertIn(b"no/such.gguf", result.stderr)


def all_tests(suite):
    """The tests of a suite and of the suites in it, in their order."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from all_tests(test)
        else:
            yield test


class Part(unittest.TestLoader):
    """Loads every n-th test from the k-th on, so that n processes share all of them."""

    def __init__(self, k, n):
        super().__init__()
        self.k, self.n = k, n

    def loadTestsFromModule(self, module, *arguments, **options):
        tests = list(all_tests(super().loadTestsFromModule(module, *arguments, **options)))
        return unittest.TestSuite(tests[self.k - 1::self.n])


def part(text):
    k, n = (int(word) for word in text.split("/"))
    if not 1 <= k <= n:
        raise ValueError(text)
    return Part(k, n)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--without", help="a program that is not there")
    parser.add_argument("--part", type=part, default=unittest.TestLoader(), metavar="K/N",
                        help="only the K-th of N parts of the tests")
    arguments, rest = parser.parse_known_args()
    Case.bin, Case.without = arguments.bin.resolve(), arguments.without
    unittest.main(argv=[__file__, *rest], testLoader=arguments.part)

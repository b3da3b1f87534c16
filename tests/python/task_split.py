"""Splits a task file in two: questions to be asked, and labelled lines for `modegpt calibrate --fisher-data`.

    python3 task_split.py $MODEGPT_DATA/tasks/arc_easy_test.jsonl --asked 400 -o FOLDER

writes FOLDER/<task>_asked.jsonl, a task file again, and FOLDER/<task>_labelled.jsonl with the right answers of all other
questions as `prompt` and `completion`, in the words in which `modegpt eval --tasks` asks them. No question is in both.
"""

import argparse
import json
import pathlib
import random


def labelled(question):
    return {
        "prompt": f"Question: {question['question']}\nAnswer:",
        "completion": " " + question["choices"][question["gold"]],
    }


def n_chars(line):
    return len(line["prompt"]) + len(line["completion"])


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} lines in {path}")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", type=pathlib.Path, help="a PIQA or ARC file: `question`, `choices`, `gold`")
parser.add_argument("--asked", type=int, default=400, help="questions kept for testing [400]")
parser.add_argument("--longest", type=int, default=200, help="characters of a labelled line, longer ones are left out [200]")
parser.add_argument("--seed", type=int, default=0, help="of the shuffle [0]")
parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="folder")
args = parser.parse_args()

task = args.file.name.rsplit("_", 1)[0]
assert task in ("piqa", "arc_easy", "arc_challenge"), f"`{args.file.name}` asks in other words than PIQA and ARC"
questions = [json.loads(line) for line in args.file.read_text(encoding="utf-8").splitlines() if line.strip()]
random.Random(args.seed).shuffle(questions)
asked, rest = questions[: args.asked], questions[args.asked :]
assert rest, f"all {len(questions)} questions are asked, none is left"
# Some questions are there twice, with other choices.
known = {question["question"].strip().lower() for question in asked}
lines = [labelled(question) for question in rest if question["question"].strip().lower() not in known]
args.out.mkdir(parents=True, exist_ok=True)
write(args.out / f"{task}_asked.jsonl", asked)
write(args.out / f"{task}_labelled.jsonl", [line for line in lines if n_chars(line) <= args.longest])

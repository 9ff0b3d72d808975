"""`hope evaluate --suite=NAME`: questions to a trained model, their table and picture."""

import statistics
import time
from pathlib import Path

from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, config_table
from hope_jax.commands.trained_model import load_model_and_step
from hope_jax.data.json_lines import add_json_line, read_json_lines
from hope_jax.data.whole_file import write_whole
from hope_jax.data.whole_folder import check_writable
from hope_jax.evaluation.suites import SUITES
from hope_jax.runs.checkpoint_reader import run_and_step
from hope_jax.settings import as_values, read_settings


def run_suite(
    name: str, workdir: str, output: str | None, text: str | None, changes: list[str]
) -> None:
    """Asks what has not been asked of a checkpoint, and writes the table.

    Args:
      name: of the suite.
      workdir: folder of the run, or of one of its checkpoints in place of the newest.
      output: folder of the answers; None for one of the suite's name in the run's.
      text: prose to hide things in; None for what the suite makes.
      changes: settings, such as `lengths=1024,4096`.

    Raises:
      ValueError: for a suite, kind or setting that is none.
    """
    if name not in SUITES:
        raise ValueError(f"--suite={name} is none; there are {', '.join(SUITES)}")
    title, cls, make = SUITES[name]
    config = change_settings(cls, ConfigDict(as_values(cls())), changes)
    suite = make(read_settings(cls, config.to_dict()), text)
    run, _ = run_and_step(workdir)
    folder = Path(output or Path(run) / name)
    path = folder / "answers.jsonl"
    if output is not None:
        check_writable(path, "--output")
    (model, params, tokenizer), step = load_model_and_step(workdir)
    # What was asked of another checkpoint, in another text or by another suite, is another answer.
    marks = {"step": step, **suite.marks}
    ours = lambda: [
        line
        for _, line in read_json_lines(path)
        if line.keys() >= marks.keys() and all(line[key] == marks[key] for key in marks)
    ]
    done = set(map(suite.question_of, ours()))
    left = [one for one in suite.questions if one not in done]
    asked = len(suite.questions)
    print(f"{title}: {asked} questions, {asked - len(left)} answered before")
    folder.mkdir(parents=True, exist_ok=True)
    shares, spoken = [], time.monotonic()
    for count, line in enumerate(suite.ask(model, params, tokenizer, left), 1):
        add_json_line(path, {**line, **marks})
        shares.append(line["share"])
        if time.monotonic() - spoken > 10 or count == len(left):
            spoken = time.monotonic()
            print(
                f"{count} of {len(left)}: {suite.progress(line)}, "
                f"{100 * statistics.fmean(shares):.1f}% found so far",
                flush=True,
            )
    wanted = set(suite.questions)
    lines = [line for line in ours() if suite.question_of(line) in wanted]
    table, picture = suite.table(lines), folder / suite.picture
    shown = config_table(cls, config).strip()
    write_whole(folder / "results.md", f"{table}\nStep {step} of {run}.\n\n```\n{shown}\n```\n")
    suite.draw(lines, picture)
    print(f"{table}\nanswers in {path}, picture in {picture}")

"""`hope evaluate --suite=NAME`: questions to a trained model, their table and picture."""

import statistics
import time
import zlib
from pathlib import Path

from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, config_table
from hope_jax.commands.trained_model import load_model_and_step
from hope_jax.data.json_lines import add_json_line, read_json_lines
from hope_jax.data.whole_file import write_whole
from hope_jax.data.whole_folder import check_writable
from hope_jax.evaluation.heat_map import draw_heat_map
from hope_jax.evaluation.probe import (
    ProbeSettings,
    answers_table,
    ask,
    question_of,
    questions_of,
)
from hope_jax.evaluation.probes import PROBES
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
    if name not in PROBES:
        raise ValueError(f"--suite={name} is none; there are {', '.join(PROBES)}")
    probe = PROBES[name]
    config = change_settings(ProbeSettings, ConfigDict(as_values(ProbeSettings())), changes)
    settings: ProbeSettings = read_settings(ProbeSettings, config.to_dict())
    questions = questions_of(probe, settings)
    run, _ = run_and_step(workdir)
    folder = Path(output or Path(run) / name)
    path = folder / "answers.jsonl"
    if output is not None:
        check_writable(path, "--output")
    (model, params, tokenizer), step = load_model_and_step(workdir)
    # What was asked of another checkpoint, or in another text, is another answer.
    marks = {
        "step": step,
        "text": zlib.crc32(text.encode()) if text else None,
        "seed": settings.seed,
    }
    ours = lambda: [
        line for _, line in read_json_lines(path) if all(line[key] == marks[key] for key in marks)
    ]
    done = set(map(question_of, ours()))
    left = [one for one in questions if one not in done]
    print(
        f"{probe.title}: {len(questions)} questions, {len(questions) - len(left)} answered before"
    )
    folder.mkdir(parents=True, exist_ok=True)
    shares, spoken = [], time.monotonic()
    for count, line in enumerate(ask(probe, settings, model, params, tokenizer, left, text), 1):
        add_json_line(path, {**line, **marks})
        shares.append(line["share"])
        if time.monotonic() - spoken > 10 or count == len(left):
            spoken = time.monotonic()
            speed = line["length"] / max(line["seconds"], 1e-3)
            print(
                f"{count} of {len(left)}: {line['kind']}, {line['length']:,} tokens, "
                f"{100 * statistics.fmean(shares):.1f}% found so far, {speed:,.0f} tokens/s",
                flush=True,
            )
    lines = [line for line in ours() if question_of(line) in set(questions)]
    table = answers_table(probe, settings, lines)
    shown = config_table(ProbeSettings, config).strip()
    write_whole(folder / "results.md", f"{table}\nStep {step} of {run}.\n\n```\n{shown}\n```\n")
    draw_heat_map(lines, probe.title, folder / "heat_map.png")
    print(f"{table}\nanswers in {path}, picture in {folder / 'heat_map.png'}")

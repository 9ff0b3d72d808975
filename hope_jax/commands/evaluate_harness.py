"""`hope evaluate --harness=TASK,TASK`: tasks of the lm-evaluation-harness."""

import json
from pathlib import Path

from hope_jax.commands.trained_model import load_model
from hope_jax.data.whole_file import write_whole
from hope_jax.runs.checkpoint_reader import run_and_step


def run_harness(
    tasks: str,
    workdir: str,
    output: str | None,
    folder: str | None,
    shots: int | None,
    limit: int | None,
    segment: int,
) -> None:
    """Asks the tasks' questions, and prints the harness's table.

    Args:
      tasks: their names, with commas between them.
      workdir: folder of the run, or of one of its checkpoints in place of the newest.
      output: folder for `harness.json`; None for the run's.
      folder: of task files of your own.
      shots: worked examples in front of each question; None for the task's own number.
      limit: questions of each task at most; None for all.
      segment: tokens of a call.

    Raises:
      ValueError: if the harness is not installed, or a task is not known.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table

        from hope_jax.evaluation.harness import HarnessModel
    except ModuleNotFoundError as error:
        raise ValueError(f"--harness needs {error.name}: pip install 'hope_jax[eval]'") from error
    manager = TaskManager(include_path=folder)
    names = tasks.split(",")
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise ValueError(f"--harness has {unknown[0]!r}, which is no task of the harness's")
    model = HarnessModel(*load_model(workdir), segment=segment)
    results = simple_evaluate(
        model, tasks=names, num_fewshot=shots, limit=limit, task_manager=manager
    )
    assert results is not None  # as on a process that is not the first
    kept = {name: results[name] for name in ("results", "n-shot", "versions", "n-samples")}
    path = Path(output or run_and_step(workdir)[0]) / "harness.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(kept, indent=2, default=str) + "\n")
    print(f"{make_table(results)}\nkept in {path}")

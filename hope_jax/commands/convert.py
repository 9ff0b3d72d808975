"""Makes a run of a checkpoint in another format, or such a checkpoint of a run.

    hope convert --from_llama=FOLDER --workdir=DIR --config=experiments/stacked_llama.py
    hope convert --workdir=DIR --to_llama=FOLDER
    hope convert --workdir=DIR --to_safetensors=FOLDER
    hope convert --from_safetensors=FOLDER --workdir=NEW
    hope convert --workdir=DIR --to_hub=FOLDER

The first makes a run in which nothing has been trained yet: generate, evaluate and inspect with it at
once, or train it with `hope train --workdir=DIR`. The config says all but the sizes of
the model; with `model.in_context` the pre-trained MLPs become levels that learn while they read. The
checkpoint's tokenizer and small files are copied into the run, and out again by the second. The others
write and read any model, to the bit, with its config and tokenizer; `--to_hub` adds a model card.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, define_config_flags, read_config
from hope_jax.commands.convert_safetensors import export_safetensors, import_safetensors
from hope_jax.commands.first_checkpoint import check_no_run, write_first_checkpoint
from hope_jax.commands.trained_model import load_model, load_run_config
from hope_jax.data.tokenizers import (
    COMPANIONS,
    check_vocabulary,
    copy_tokenizer,
    load_tokenizer,
    tokenizer_file,
)
from hope_jax.data.whole_folder import whole_folder
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.llama import check_llama, read_llama, read_llama_config, write_llama
from hope_jax.runs.checkpoint_reader import run_and_step
from hope_jax.runs.fetch import fetch_run
from hope_jax.training.config import RunConfig, whole_config

# Folder in a run of what the checkpoint held besides weights, its config first.
KEPT = "llama"
_SMALL = ("config.json", "tokenizer.json", "tokenizer.model")
# Settings of the model that a checkpoint does not speak of.
_OWN = (
    "attention_sinks",
    "attention_window",
    "cms_connection",
    "cms_levels",
    "cms_order",
    "dtype",
    "in_context",
    "loss_chunk",
    "param_dtype",
    "remat",
)


def import_llama(
    folder: str, workdir: str, config: ConfigDict, told: Callable[[str], None] = lambda line: None
) -> None:
    """Makes a run at step 0 whose parameters are those of a Llama checkpoint.

    Args:
      folder: of the checkpoint; its tokenizer.json, or else its tokenizer.model, becomes the run's
        tokenizer. If it has neither, the config names one.
      workdir: folder of the run, or its address in a bucket.
      config: of the run. Of its model, what does not follow from the checkpoint is kept: levels,
        in-context learning, window, dtypes and the like.
      told: is given what the user should know.

    Raises:
      ValueError: if the checkpoint cannot be read, or the folder holds another run.
    """
    check_no_run(workdir)
    own = {name: value for name, value in config.model.to_dict().items() if name in _OWN}
    model_config = read_llama_config(folder, **own)
    window, longest = model_config.attention_window, read_llama_config(folder).attention_window
    if window < longest and not model_config.attention_sinks:
        told(
            f"attention was trained to see {longest:,} tokens and is cut to {window:,}: a text's first "
            f"token gets out of sight, which costs such models more than all else that does; "
            f"model.attention_sinks=1 keeps it in sight"
        )
    named = config.data.tokenizer != "bytes" and not any(_tokenizers(folder))
    tokenizer = config.data.tokenizer if named else str(tokenizer_file(folder))
    check_vocabulary(load_tokenizer(tokenizer), model_config.vocab_size, tokenizer)
    model, params = LanguageModel(model_config), read_llama(folder, model_config)
    tokens = jnp.zeros((1, 2), jnp.int32)
    # What only in-context learning has begins as in any model.
    fresh = jax.jit(lambda key: _rest(nn.unbox(model.init(key, tokens)["params"]), params))
    params = {**jax.tree.map(jnp.asarray, params), **fresh(jax.random.key(config.seed))}

    config = ConfigDict(config.to_dict())
    config.model = ConfigDict(json.loads(json.dumps(vars(model_config), default=dict)))
    config.data.tokenizer = tokenizer  # of which the run keeps a copy
    write_first_checkpoint(workdir, config, params, lambda run: _keep(Path(folder), run / KEPT))


def _keep(folder: Path, kept: Path) -> None:
    """Copies what a checkpoint holds besides its weights."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in (*_SMALL, *COMPANIONS):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, kept / name)


def export_llama(workdir: str, folder: str) -> None:
    """Writes a run's model, with its tokenizer, as a checkpoint in Hugging Face's format.

    Args:
      workdir: folder of the run, or of one of its checkpoints in place of the newest.
      folder: to write; it must be empty or not there.

    Raises:
      ValueError: if there is no run, its model is no Llama, or the folder cannot be written.
    """
    run, _ = run_and_step(workdir)
    config = load_run_config(run)
    check_llama(LanguageModelConfig.from_config_dict(config.model))
    with whole_folder(folder, "--to_llama") as aside:
        model, params, tokenizer = load_model(workdir)
        kept = Path(run) / KEPT
        like = kept if (kept / "config.json").is_file() else None
        write_llama(
            aside,
            model.config,
            params,
            bos_id=tokenizer.before[0] if tokenizer.before else None,
            end_ids=tokenizer.end_ids,
            like=like,
        )
        copy_tokenizer(config.data.tokenizer, aside)
        for name in (*_SMALL[1:], *COMPANIONS) if like else ():
            if (kept / name).is_file() and not (aside / name).exists():
                shutil.copyfile(kept / name, aside / name)


def _tokenizers(folder: str) -> list[Path]:
    return [path for name in _SMALL[1:] if (path := Path(folder) / name).is_file()]


def _rest(all_params: Any, given: Any) -> Any:
    return {name: value for name, value in all_params.items() if name not in given}


# Flags of which one is given, and what they say of themselves.
_WAYS = {
    "from_llama": "Folder of a checkpoint to make a run of.",
    "to_llama": "Folder to write the run's model to as a checkpoint.",
    "from_safetensors": "Folder that --to_safetensors or --to_hub has written, to make a run of.",
    "to_safetensors": "Folder to write the run's model, config and tokenizer to.",
    "to_hub": "The same, with a model card.",
}
UNEXPECTED = (
    "folders are given as --workdir=DIR and one of --" + "=FOLDER, --".join(_WAYS) + "=FOLDER"
)


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string(
        "workdir", None, "Folder of the run, or its address in a bucket.", required=True
    )
    for name, meaning in _WAYS.items():
        flags.DEFINE_string(name, None, meaning)


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    ways = [name for name in _WAYS if given[name].value]
    if len(ways) != 1:
        raise ValueError("give one of --" + ", --".join(_WAYS))
    if given.from_llama and given.config is None:
        raise ValueError("--from_llama needs --config, such as experiments/stacked_llama.py")
    if given.from_llama:
        config = change_settings(RunConfig, read_config(given.config), given.set)
        import_llama(given.from_llama, given.workdir, whole_config(config, print), print)
        print(
            f"made a run in {given.workdir}; sample from it with\n"
            f'  hope generate --workdir={given.workdir} --prompt="Once upon a time"'
        )
    elif given.from_safetensors:
        import_safetensors(given.from_safetensors, given.workdir)
        print(f"made a run in {given.workdir}")
    elif given.to_safetensors or given.to_hub:
        folder = given.to_hub or given.to_safetensors
        export_safetensors(
            fetch_run(given.workdir), folder, f"--{ways[0]}", card=bool(given.to_hub)
        )
        print(
            f"wrote the model to {folder}; make a run of it with\n"
            f"  hope convert --from_safetensors={folder} --workdir=NEW"
        )
        if given.to_hub:
            print(
                f"before you publish it, say in {folder}/README.md what it may be used for: a line "
                f"such as license: apache-2.0 at the top"
            )
    else:
        export_llama(fetch_run(given.workdir), given.to_llama)
        print(
            f"wrote a checkpoint in Hugging Face's format to {given.to_llama}; read it with\n"
            f'  transformers.AutoModelForCausalLM.from_pretrained("{given.to_llama}")'
        )

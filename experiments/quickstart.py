"""A small Hope model, byte level, on the source files of the running Python's standard library.

    hope train --config=experiments/quickstart.py --workdir=runs/quickstart

Some four minutes on two CPU cores, to 2.03 bits per byte on a tenth of the
validation part (on the whole of it a 3-gram has 2.49, a 4-gram 2.03).

Variants of the same parameter count: `quickstart.py:hope_attention`, `quickstart.py:transformer`, and
`quickstart.py:learning`, Hope-Attention whose last block goes on learning while it reads.
"""

from ml_collections import ConfigDict, config_dict

from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import match_parameter_count


def get_config(variant: str = "hope") -> ConfigDict:
    """Returns the config of a variant."""
    hope = dict(
        vocab_size=256,  # every byte is a token
        width=128,  # of the residual stream
        num_layers=2,
        num_heads=4,
        mlp_width=256,  # hidden width of each MLP of the chain
        sequence_layer="titans",
        cms_levels=2,  # MLPs in the chain of each block
        cms_connection="sequential",  # or "independent", "nested"
        attention_window=512,  # tokens that attention sees, in the variants that have it
        # Matrix memories learn two to three times as many bytes a second on a CPU as the residual MLPs
        # that are the default ("mlp").
        titans=dict(network="matrix", memory_chunk=64, others_chunk=64, initial_alpha=0.999),
    )
    attention = {**hope, "sequence_layer": "attention", "num_heads": 4, "titans": {}}
    # Every setting of learning in context; without one of them its default holds.
    in_context = dict(
        objective="next_token",  # or "local", which needs no pass through the model
        chunks=(64, 512),  # tokens after which each level changes, fastest first
        optimizer="sgd",  # or "momentum", "dgd"
        step_size=1.0,  # of all levels, or one for each
        learned_step=True,  # whether training tunes it
        momentum=0.9,  # of "momentum"
        decay=0.0,  # towards the slow weights
        blocks=1,  # how many of the last blocks adapt
    )
    variants = {
        "hope": hope,
        "hope_attention": attention,
        "transformer": {**attention, "cms_levels": 1},
        "learning": {**attention, "in_context": in_context},
    }
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(variants)}")
    model = variants[variant]
    if variant != "hope":
        model["mlp_width"] = match_parameter_count(
            LanguageModelConfig.from_config_dict(model), LanguageModelConfig.from_config_dict(hope)
        ).mlp_width

    config = ConfigDict()
    config.seed = 0  # of initial weights and of the data's order
    config.steps = 700
    config.accumulate = 1  # micro-batches a step
    config.model = ConfigDict(model)
    if variant == "learning":
        # Inner steps through which the outer gradient goes; None is all.
        config.model.in_context.gradient_steps = config_dict.placeholder(int)

    config.data = ConfigDict()
    config.data.files = ""  # pattern such as 'corpus/**/*.txt'; '' is the standard library
    config.data.tfds = ""  # or the name of a TFDS data set
    config.data.tokens = ""  # or a folder that `hope tokenize` has written
    config.data.tokenizer = "bytes"  # or a SentencePiece .model or tokenizers .json file
    config.data.validation_fraction = 0.1  # share of documents held out
    config.data.sequence_length = 2048 if variant == "learning" else 512
    config.data.batch_size = 2 if variant == "learning" else 8
    # Whether memories return to their initial state where a document begins. Exact, and a third
    # slower; files are far longer than a sequence here, so that few sequences hold a boundary.
    config.data.reset_documents = False

    config.optimizer = ConfigDict()
    config.optimizer.name = "m3"  # see hope_jax/training/optimizer.py
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_steps = 20
    config.optimizer.final_fraction = 0.05  # of the learning rate, at the last step
    config.optimizer.clip_norm = 1.0  # 0 for none
    config.optimizer.weight_decay = 0.01  # of matrices
    config.optimizer.arguments = ConfigDict()  # further arguments of the optimiser
    config.optimizer.periods = (
        ConfigDict()
    )  # such as {"level_1": 8}: that level moves every 8 steps

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1 is all that are left
    config.mesh.fsdp = 1  # devices that split batch and parameters
    config.mesh.tensor = 1  # devices that split heads and hidden widths
    config.mesh.processes = 1  # hosts of the launch
    config.mesh.expect_devices = 0  # fail if another number is seen; 0 for any

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 100  # steps
    config.checkpoint.keep = 2  # newest ones that stay

    config.evaluate = ConfigDict()
    config.evaluate.every = 100  # steps
    config.evaluate.batches = 10  # of validation in between
    config.evaluate.final_batches = 40  # of validation at the end, evenly spread; 0 for all
    config.evaluate.ngram_orders = (3, 4)  # n-gram models to compare with at the end
    config.evaluate.prompt = "def "
    config.evaluate.sample_tokens = 300  # of the sample at the end; 0 for none

    config.log = ConfigDict()
    config.log.every = 10  # steps
    return config

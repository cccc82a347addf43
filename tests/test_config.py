"""Configurations refuse what cannot work, in a sentence, and survive the way through JSON."""

import dataclasses
import json
import math

import pytest

from bwds import PRESETS, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (ModelConfig, {"sparsity": 1.0}, r"sparsity is 1\.0; .* at least 0 and less than 1"),
        (ModelConfig, {"sparsity": -0.1}, r"sparsity is -0\.1"),
        (ModelConfig, {"sparsity": math.nan}, r"sparsity is nan"),
        (ModelConfig, {"hidden_size": 100}, r"hidden_size 100 is not a multiple of block_size 128"),
        (ModelConfig, {"hidden_size": 0}, r"hidden_size is 0; it must be at least 1"),
        (ModelConfig, {"num_layers": 0}, r"num_layers is 0"),
        (ModelConfig, {"gate_rank": 0}, r"gate_rank is 0"),
        (ModelConfig, {"cell": "gru"}, r"cell is 'gru'; it must be one of lstm, qrnn"),
        (ModelConfig, {"method": "sparse"}, r"method is 'sparse'; it must be one of"),
        (ModelConfig, {"gate_activation": "gelu"}, r"gate_activation is 'gelu'"),
        (ModelConfig, {"gate_scope": "row"}, r"gate_scope is 'row'"),
        (ModelConfig, {"dtype": "float16"}, r"dtype is 'float16'"),
        (ModelConfig, {"implementation": "cuda"}, r"implementation is 'cuda'"),
        (ModelConfig, {"dropout": 1.0}, r"dropout is 1\.0"),
        (ModelConfig, {"dropout_input": -0.5}, r"dropout_input is -0\.5"),
        (ModelConfig, {"dropout_hidden": math.nan}, r"dropout_hidden is nan"),
        (ModelConfig, {"embedding_dropout": 1.0}, r"embedding_dropout is 1\.0; .* at least 0 and less than 1"),
        (ModelConfig, {"weight_dropout": 1.5}, r"weight_dropout is 1\.5"),
        (DataConfig, {"batch_size": 0}, r"batch_size is 0"),
        (DataConfig, {"sequence_length": 0}, r"sequence_length is 0"),
        (DataConfig, {"eval_batch_size": 0}, r"eval_batch_size is 0"),
        (DataConfig, {"vocab_limit": 2}, r"vocab_limit is 2; it must be at least 3"),
        (OptimConfig, {"name": "adam"}, r"optimiser name is 'adam'"),
        (OptimConfig, {"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        (OptimConfig, {"learning_rate": math.inf}, r"learning_rate is inf"),
        (OptimConfig, {"learning_rate": 1e39}, r"learning_rate is 1e\+39; it must be positive and less than 3\.4e38"),
        (OptimConfig, {"clip_norm": 0.0}, r"clip_norm is 0\.0"),
        (OptimConfig, {"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        (OptimConfig, {"weight_decay": math.inf}, r"weight_decay is inf; it must be finite"),
        (OptimConfig, {"plateau_factor": 0.0}, r"plateau_factor is 0\.0"),
        (OptimConfig, {"name": "sgd", "transition_steps": 0}, r"transition_steps is 0; it must be at least 1"),
        (OptimConfig, {"transition_steps": 5}, r"transition_steps is 5 and the optimiser is adamw"),
        (OptimConfig, {"transition_begin": -1}, r"transition_begin is -1"),
        (OptimConfig, {"decay_rate": 1.5}, r"decay_rate is 1\.5; it must be above 0 and at most 1"),
        (ModelConfig, {"init_bound": 0.0}, r"init_bound is 0\.0; it must be positive and finite"),
        (ModelConfig, {"init_bound": math.inf}, r"init_bound is inf"),
        (OptimConfig, {"activation_penalty": -1.0}, r"activation_penalty is -1\.0; it must be at least 0"),
        (OptimConfig, {"temporal_activation_penalty": math.nan}, r"temporal_activation_penalty is nan"),
        (
            OptimConfig,
            {"temporal_activation_penalty": math.inf},
            r"temporal_activation_penalty is inf; it must be finite",
        ),
        (OptimConfig, {"ema_decay": 1.0}, r"ema_decay is 1\.0; it must be at least 0 and less than 1"),
        (TrainConfig, {"steps": -1}, r"steps is -1"),
        (TrainConfig, {"seed": -1}, r"seed is -1"),
        (TrainConfig, {"sparsity_schedule": "linear"}, r"sparsity_schedule is 'linear'"),
        (TrainConfig, {"sparsity_initial": 1.0}, r"sparsity_initial is 1\.0"),
        (TrainConfig, {"sparsity_every": 0}, r"sparsity_every is 0"),
        (TrainConfig, {"sparsity_range": (0.5, 0.5)}, r"sparsity_range is 0\.5 to 0\.5; .* take model\.sparsity"),
        (TrainConfig, {"sparsity_range": (0.5, 1.0)}, r"sparsity_range is 0\.5 to 1\.0; .* end below 1"),
        (TrainConfig, {"sparsity_range": (-0.1, 0.5)}, r"sparsity_range is -0\.1 to 0\.5; it must begin at 0 or more"),
        (TrainConfig, {"sparsity_range": (math.nan, 0.5)}, r"sparsity_range is nan to 0\.5"),
        (TrainConfig, {"sparsity_range": (0.1, 0.2, 0.3)}, r"sparsity_range is \(0\.1, 0\.2, 0\.3\); .* two numbers"),
        (TrainConfig, {"sparsity_range": 0.5}, r"sparsity_range is 0\.5; it must be two numbers"),
        (TrainConfig, {"sparsity_range": ("0.1", "0.5")}, r"sparsity_range is '0\.1'; it must be one number"),
        (
            ModelConfig,
            {"gate_activation": "softmax", "gate_normalization": "none"},
            r"gate_normalization is 'none' and gate_activation 'softmax'.* take 'mean'",
        ),
        (ModelConfig, {"magnitude_unit": "row"}, r"magnitude_unit is 'row'"),
        (ModelConfig, {"gate_source": "oracle"}, r"gate_source is 'oracle'"),
        (ModelConfig, {"method": "static-block", "sparsity": 0.9}, r"12 blocks a side can have 0, 0\.5, 0\.6667,"),
        (ModelConfig, {"method": "static-block", "hidden_size": 100}, r"100 is not a multiple of block_size 128"),
        (
            ModelConfig,
            {"method": "magnitude", "magnitude_unit": "block", "hidden_size": 100},
            r"100 is not a multiple of block_size 128",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_value_out_of_range_is_refused(section, options, message):
    with pytest.raises(ValueError, match=message):
        section(**options)


@pytest.mark.parametrize("method", ["dense", "magnitude"])
def test_a_model_without_blocks_needs_none_that_divides_it(method):
    assert ModelConfig(method=method, hidden_size=100).hidden_size == 100


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({}, {"sparsity_begin": 0.5}, r"sparsity_begin is 0\.5 and sparsity_end 0\.5; both are fractions"),
        ({}, {"sparsity_begin": -0.1}, r"sparsity_begin is -0\.1"),
        ({}, {"sparsity_end": 1.1}, r"sparsity_end 1\.1"),
        ({}, {"sparsity_end": math.nan}, r"sparsity_end nan"),
        ({}, {"steps": 2}, r"steps is 2; the sparsity would have to rise between step 1 and step 1"),
        ({"sparsity": 0.5}, {"sparsity_initial": 0.6}, r"sparsity_initial is 0\.6, above model.sparsity 0\.5"),
        ({"method": "static-block"}, {}, r"'cubic'; static-block keeps the same blocks"),
        ({"method": "magnitude"}, {"sparsity_schedule": "constant"}, r"'constant'; magnitude pruning needs the cubic"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_schedule_that_cannot_be_kept_is_refused(model, train, message):
    with pytest.raises(ValueError, match=message):
        Config(model=ModelConfig(**model), train=TrainConfig(**{"sparsity_schedule": "cubic", **train}))


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({"method": "dense"}, {}, r"sparsity_range is 0\.3 to 0\.9 and the method 'dense'; only a dynamic model"),
        ({"method": "magnitude"}, {}, r"the method 'magnitude'"),
        ({}, {"sparsity_schedule": "cubic"}, r"sparsity_range is 0\.3 to 0\.9 and sparsity_schedule 'cubic'"),
    ],
)
def test_a_range_of_sparsities_that_no_step_can_have_is_refused(model, train, message):
    with pytest.raises(ValueError, match=message):
        Config(model=ModelConfig(**model), train=TrainConfig(sparsity_range=(0.3, 0.9), **train))


def test_an_older_name_of_an_option_is_read():
    config = PRESETS["ptb-awd-lstm"]
    text = config.to_json()
    assert config.optim.temporal_activation_penalty > 0
    assert Config.from_json(text.replace("temporal_activation_penalty", "slowness_penalty")) == config


def test_a_range_of_sparsities_is_the_same_from_json():
    config = Config(train=TrainConfig(sparsity_range=(0, 0.9)))
    assert config.train.sparsity_range == (0.0, 0.9)
    assert Config.from_json(config.to_json()) == config


def test_who_follows_the_schedule():
    rising = lambda method, schedule: (  # noqa: E731
        Config(model=ModelConfig(method=method), train=TrainConfig(sparsity_schedule=schedule)).rising_sparsity
    )
    assert [rising(m, None) for m in ("dynamic", "dense", "static-block", "magnitude")] == [False, False, False, True]
    assert [rising(m, "cubic") for m in ("dynamic", "dense", "magnitude")] == [True, False, True]
    assert not rising("dynamic", "constant")


@pytest.mark.parametrize("name", PRESETS)
def test_json_gives_the_same_configuration(name):
    assert Config.from_json(PRESETS[name].to_json()) == PRESETS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", "not valid JSON"),
        (lambda c: "[]", "exactly the sections"),
        (lambda c: json.dumps({k: c[k] for k in ("model", "data")}), "exactly the sections"),
        (lambda c: json.dumps(c | {"model": 3}), "Section 'model' of the configuration is not an object"),
        (lambda c: json.dumps(c | {"model": {"width": 3}}), "unknown options: width"),
        (
            lambda c: json.dumps(c | {"model": {"hidden_size": "wide"}}),
            "hidden_size is 'wide'; it must be a whole number",
        ),
        (lambda c: json.dumps(c | {"model": {"sparsity": 2}}), "sparsity is 2"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_broken_json_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_json(change(dataclasses.asdict(PRESETS["quick"])))


def test_the_papers_setting():
    config = PRESETS["ptb-lstm"]
    assert (config.model.hidden_size, config.model.num_layers, config.model.block_shape) == (1536, 2, (128, 128))
    assert (config.model.dropout, config.data.batch_size, config.data.sequence_length) == (0.65, 128, 35)
    assert (config.optim.name, config.optim.learning_rate, config.optim.clip_norm) == ("sgd", 20.0, 0.25)
    assert not config.model.tied_softmax
    # 40 epochs of 929,589 tokens.
    assert config.train.steps == 40 * ((929_589 - 1) // 128 // 35)


def test_the_papers_presets_have_none_of_the_later_regularisation():
    for name in ("ptb-lstm", "ptb-qrnn", "wikitext2-lstm"):
        model, optim = PRESETS[name].model, PRESETS[name].optim
        assert (model.dropout_input, model.dropout_hidden, model.locked_dropout) == (None, None, False)
        assert (model.embedding_dropout, model.weight_dropout) == (0.0, 0.0)
        assert (optim.activation_penalty, optim.temporal_activation_penalty, optim.ema_decay) == (0.0, 0.0, 0.0)


def test_the_setting_of_awd_lstm():
    config = PRESETS["ptb-awd-lstm"]
    model, optim = config.model, config.optim
    assert (model.num_layers, model.hidden_size, model.locked_dropout, model.tied_softmax) == (3, 1152, True, True)
    assert (model.dropout, model.dropout_input, model.dropout_hidden) == (0.4, None, 0.25)
    assert (model.embedding_dropout, model.weight_dropout) == (0.1, 0.5)
    assert model.gate_activation == "softplus"
    assert (optim.name, optim.learning_rate, optim.clip_norm, optim.weight_decay) == ("sgd", 30.0, 0.25, 1.2e-6)
    assert (optim.activation_penalty, optim.temporal_activation_penalty) == (2.0, 1.0)
    assert optim.ema_decay > 0
    # 500 epochs of 929,589 tokens.
    assert config.train.steps == 500 * ((929_589 - 1) // 20 // 70)

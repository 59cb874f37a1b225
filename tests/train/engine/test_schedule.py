"""The learning rate over the steps."""

import pytest

from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.schedule import ScheduleConfig, learning_rate_factor, peak_learning_rate


def factors(num_steps: int, **settings: object) -> list[float]:
    config = ScheduleConfig.model_validate(settings)
    return [learning_rate_factor(config, step, num_steps) for step in range(num_steps)]


def test_warmup_in_steps_and_in_fractions_agree() -> None:
    assert factors(10, warmup=4, decay="constant") == factors(10, warmup=0.4, decay="constant")
    assert factors(10, warmup=4, decay="constant") == [0.25, 0.5, 0.75] + [1.0] * 7


def test_linear_decay_starts_late_and_never_wastes_a_step() -> None:
    assert factors(10, warmup=0, decay="linear", decay_start=6) == pytest.approx(
        [1.0] * 7 + [0.75, 0.5, 0.25]
    )
    assert min(factors(100, decay="linear")) > 0


def test_cosine_decay_comes_down_to_final() -> None:
    values = factors(1000, warmup=0, decay="cosine", decay_start=0, final=0.1)
    assert values[0] == 1.0
    assert values[500] == pytest.approx(0.55)
    assert values[-1] == pytest.approx(0.1, abs=1e-4)
    assert values == sorted(values, reverse=True)


def test_no_steps_to_decay_in() -> None:
    assert factors(3, warmup=0, decay="linear", decay_start=100) == [1.0] * 3


def test_auto_rate_falls_with_the_root_of_the_latents() -> None:
    config = OptimizerConfig()
    assert peak_learning_rate(config, 2**14) == pytest.approx(2e-4)
    assert peak_learning_rate(config, 2**16) == pytest.approx(1e-4)
    assert peak_learning_rate(OptimizerConfig(learning_rate=0.1), 2**16) == 0.1

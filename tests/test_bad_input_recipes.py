"""Bad input to the recipes; the style of test_bad_input.py."""

import jax
import jax.numpy as jnp
import pytest

import adamx
from adamx import recipes
from tests.test_bad_input import _check

SCHEDULE = lambda step: 1e-3  # noqa: E731
SCHEDULED = ("finetune_transformer", "pretrain_llm", "vision")

# (recipe, argument, value, exception, what the message must contain, in any order)
BAD = [
    *[
        case
        for recipe in SCHEDULED
        for case in [
            (recipe, "total_steps", 0, ValueError, "`total_steps` >= 1 0"),
            (recipe, "total_steps", 99.5, ValueError, "`total_steps` whole 99.5"),
            (recipe, "total_steps", None, TypeError, "`total_steps` None"),
            (recipe, "learning_rate", SCHEDULE, TypeError, "`learning_rate` peak own"),
            (recipe, "learning_rate", -1e-3, ValueError, "`learning_rate` >= 0 -0.001"),
            (recipe, "warmup", 1.0, ValueError, "`warmup` [0, 1) 1.0 share"),
            (recipe, "warmup", 100, ValueError, "`warmup` < total_steps (100) 100"),
            (recipe, "weight_decay", -0.1, ValueError, "`weight_decay` >= 0 -0.1"),
            (recipe, "max_norm", -1.0, ValueError, "`max_norm` >= 0 -1.0"),
        ]
    ],
    ("pretrain_llm", "end_share", 1.5, ValueError, "`end_share` [0, 1] 1.5 peak"),
    ("pretrain_llm", "end_share", 3e-5j, TypeError, "`end_share`"),
    ("pretrain_llm", "b2", 1.0, ValueError, "`b2` [0, 1) 1.0"),
    ("pretrain_llm", "eps", -1.0, ValueError, "`eps` >= 0 -1.0"),
    ("pretrain_llm", "nu_dtype", 8, TypeError, "`nu_dtype` 8"),
    ("finetune_transformer", "eps", -1.0, ValueError, "`eps` >= 0 -1.0"),
    ("vision", "model", "cnn", ValueError, "`model` 'vit' 'resnet' 'cnn'"),
    ("prototype", "learning_rate", -1.0, ValueError, "`learning_rate` -1.0"),
    ("prototype", "max_norm", "1", TypeError, "`max_norm` '1'"),
    ("prototype", "weight_decay", -0.1, ValueError, "`weight_decay` -0.1"),
    ("rl", "learning_rate", SCHEDULE, TypeError, "`learning_rate` own schedule"),
    ("rl", "total_steps", 0, ValueError, "`total_steps` >= 1 0"),
    ("rl", "max_norm", -0.5, ValueError, "`max_norm` -0.5"),
    ("rl", "eps", -1.0, ValueError, "`eps` -1.0"),
    ("sparse_embeddings", "tables", None, TypeError, "`tables` None prototype"),
    ("sparse_embeddings", "tables", "(", ValueError, "`tables` '(' expression"),
    ("sparse_embeddings", "tables", ["a"], TypeError, "`tables` string"),
    ("sparse_embeddings", "weight_decay", -1.0, ValueError, "`weight_decay` -1.0"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda c: f"{c[0]}-{c[1]}")
def test_construction(case):
    recipe, name, value, exception, expected = case
    kwargs = {"total_steps": 100} if recipe in SCHEDULED else {}
    kwargs[name] = value
    _check(lambda: getattr(recipes, recipe)(**kwargs), exception, expected)


def test_the_decay_of_resnets():
    make = lambda: recipes.vision(  # noqa: E731
        total_steps=9, model="resnet", weight_decay=-1e-4
    )
    _check(make, ValueError, "`weight_decay` >= 0 -0.0001")


@pytest.mark.parametrize("recipe", SCHEDULED)
def test_the_length_must_be_told(recipe):
    _check(getattr(recipes, recipe), TypeError, "total_steps")
    traced = lambda n: getattr(recipes, recipe)(total_steps=n).init(1.0)  # noqa: E731
    _check(lambda: jax.jit(traced)(9), TypeError, "`total_steps` traced outside")


def test_tables_that_are_not_there():
    tx = recipes.sparse_embeddings(tables="embedings")
    params = {"embeddings": jnp.ones((2, 2)), "head": jnp.ones(2)}
    _check(lambda: tx.init(params), ValueError, "`tables` 'embedings' 'embeddings'")


def test_params_are_needed_for_a_decay():
    tx = recipes.pretrain_llm(total_steps=9)
    params = jnp.ones((2, 2))
    _check(lambda: tx.update(params, tx.init(params)), ValueError, "`params` decay")
    assert adamx.recipes is recipes

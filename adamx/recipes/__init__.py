"""Recipes: one transformation for a whole task, with the numbers of the literature.

    tx = adamx.recipes.pretrain_llm(3e-4, total_steps=100_000)

A recipe is a point to start from, not an optimum. Each docstring shows its chain of
public pieces written out, to be copied and changed; with float32 gradients the two are
equal bit for bit (between the stages of a recipe, 16-bit gradients are float32). Each
number has its source beside the argument; "our choice" where there is none. A peak is
for the batch size of its source: search the rate, first of all, where yours differs.

Around a recipe go `guard`, `accumulate`, `master_weights`. They are not inside: what
they cost depends on how the step is written (`adamx.fused`). In `with_hyperparams`,
total_steps and warmup stay as given: static=("total_steps", "warmup").

`prototype`, `finetune_transformer`, `pretrain_llm`, `vision`, `rl`,
`sparse_embeddings`: `python -m adamx recipes` says when to pick which.
"""

from adamx.recipes._embeddings import sparse_embeddings as sparse_embeddings
from adamx.recipes._general import prototype as prototype
from adamx.recipes._general import rl as rl
from adamx.recipes._transformers import finetune_transformer as finetune_transformer
from adamx.recipes._transformers import pretrain_llm as pretrain_llm
from adamx.recipes._vision import vision as vision

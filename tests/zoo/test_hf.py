"""A sample of the Hugging Face types, one per way of building models; run.py measures all of them."""

import pytest
from check import check

hf = pytest.importorskip("hf", reason="needs transformers")

SAMPLE = ["llama (clm)", "gpt2 (clm)", "bert (mlm)", "t5 (seq2seq)", "vit (image)", "mixtral (clm)", "bloom (clm)"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers' own
@pytest.mark.parametrize("name", SAMPLE)
def test_type_is_captured_exactly(name):
    (each,) = [each for each in hf.types() if each.name == name]
    model, inputs = hf.build(each)
    row = check(name, model, (), inputs)
    assert not row.error
    assert (row.exact, row.gradients, row.names, row.solved) == (True, True, True, True)

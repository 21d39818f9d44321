"""New static embeddings: the same texts and seed give the same model, so that later runs can resume."""

from __future__ import annotations

import torch

from training.utils.model_utils import make_static_model


def test_the_same_texts_and_seed_give_the_same_model(groups):
    texts = [text for group in groups for key, text in group.items() if key != "topic"]
    one, other = (make_static_model(iter(texts), 16, 2000, seed=3) for _ in range(2))
    assert one[0].tokenizer.to_str() == other[0].tokenizer.to_str()
    assert torch.equal(one[0].embedding.weight, other[0].embedding.weight)
    assert not torch.equal(
        one[0].embedding.weight, make_static_model(iter(texts), 16, 2000, seed=4)[0].embedding.weight
    )


def test_pieces_do_not_depend_on_vowel_signs_and_case():
    model = make_static_model(["كتب الولد الدرس", "The Boy wrote"], 8, 200, seed=1)
    encode = model[0].tokenizer.encode
    assert encode("كَتَبَ الوَلَدُ الدَّرسَ").ids == encode("كتب الولد الدرس").ids
    assert encode("كتـــب").ids == encode("كتب").ids
    assert encode("the boy WROTE").ids == encode("The Boy wrote").ids
    assert encode("漢").tokens[-1] == "[UNK]"

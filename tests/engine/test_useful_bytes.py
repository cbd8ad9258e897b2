from tinyserve_viz.core.config import ModelConfig
from tinyserve_viz.engine.useful_bytes import copy_bytes, move_bytes

MODEL = ModelConfig(num_layers=3, num_heads=8, num_kv_heads=2, head_dim=64)
ROW = 2 * 64 * 2  # bytes of one token's keys


def test_a_copy_reads_and_writes_k_and_v_of_its_tokens_and_a_box_a_block() -> None:
    assert copy_bytes(MODEL, 20, 2, 1) == 2 * (2 * 20 * ROW + 2 * 2 * ROW)
    assert copy_bytes(MODEL, 20, 2, 3) == 3 * copy_bytes(MODEL, 20, 2, 1)


def test_a_move_empties_the_box_that_it_leaves_too() -> None:
    assert move_bytes(MODEL, 32, 2, 3) == copy_bytes(MODEL, 32, 2, 3) + 3 * 2 * 2 * ROW

"""Prefix-shared rows by hand: two pairs, one with a third completion, as padded rows and as one row."""

from __future__ import annotations

import pytest
import torch

from handbook_ext.policies.packing import NO_COMPLETION, EncodedGroup, EncodedPair, PackedRows, may_attend, pack

PAD = 99
LONG = EncodedPair(prompt=[1, 2, 3], chosen=[4, 5], rejected=[6], explore=[7, 8])
SHORT = EncodedPair(prompt=[11], chosen=[12], rejected=[13, 14])


@pytest.fixture
def rows() -> PackedRows:
    return pack([LONG, SHORT], pad_id=PAD)


def test_a_pairs_completions_are_distinct_and_its_length_counts_each_once() -> None:
    assert LONG.completions == [[4, 5], [6], [7, 8]]
    assert (LONG.explore_index, len(LONG)) == (2, 8)
    for explore, index in ((None, NO_COMPLETION), ([12], 0), ([13, 14], 1)):
        pair = EncodedPair(SHORT.prompt, SHORT.chosen, SHORT.rejected, explore)
        assert pair.completions == [[12], [13, 14]]
        assert (pair.explore_index, len(pair)) == (index, 4)
    assert LONG.reference == (0.0, 0.0, 0.0)
    group = EncodedGroup([1, 2], [[3], [4, 5], [6, 7, 8]])
    assert (len(group), group.explore_index) == (8, NO_COMPLETION)


def test_padded_rows_by_hand(rows: PackedRows) -> None:
    """Positions go on behind the prompt for each completion anew; parts tell prompt (0) and completions (1, 2, 3)."""
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [11, 12, 13, 14, PAD, PAD, PAD, PAD]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4], [0, 1, 1, 2, 0, 0, 0, 0]]
    assert rows.pair.tolist() == [[0] * 8, [1, 1, 1, 1, -1, -1, -1, -1]]
    assert rows.part.tolist() == [[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 2, 2, 0, 0, 0, 0]]
    assert rows.padding_share == 4 / 16


def test_each_target_is_predicted_by_the_token_before_it_in_its_own_completion(rows: PackedRows) -> None:
    """The first token of a completion is predicted by the last one of the prompt: 3 at place 2, and 11 at place 8 + 0."""
    assert rows.targets.tolist() == [4, 5, 6, 7, 8, 12, 13, 14]
    assert rows.predictors.tolist() == [2, 3, 2, 2, 6, 8, 8, 10]
    assert rows.input_ids.flatten()[rows.predictors].tolist() == [3, 4, 3, 3, 7, 11, 11, 13]
    assert rows.owner.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert rows.completion_tokens.tolist() == [2, 1, 2, 1, 2]


def test_pairs_say_which_completions_are_theirs(rows: PackedRows) -> None:
    assert (rows.chosen.tolist(), rows.rejected.tolist(), rows.explore.tolist()) == ([0, 3], [1, 4], [2, NO_COMPLETION])
    explored = pack([SHORT, EncodedPair([1], [2], [3], explore=[2])], pad_id=PAD)
    assert explored.explore.tolist() == [NO_COMPLETION, 2]


def test_one_row_holds_all_pairs_with_positions_of_their_own() -> None:
    rows = pack([LONG, SHORT], pad_id=PAD, one_row=True)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 0, 1, 1, 2]]
    assert rows.pair.tolist() == [[0] * 8 + [1] * 4]
    assert rows.predictors.tolist() == [2, 3, 2, 2, 6, 8, 8, 10]
    assert rows.padding_share == 0


def test_a_token_sees_the_prompt_and_its_own_completion_up_to_itself(rows: PackedRows) -> None:
    visible = [[2, 1, 0], [3, 2, 1, 0], [4, 3, 2, 1, 0], [5, 2, 1, 0], [6, 2, 1, 0], [7, 6, 2, 1, 0]]
    mask = may_attend(rows)
    assert mask.shape == (2, 1, 8, 8)
    for query, keys in zip(range(2, 8), visible, strict=True):
        assert mask[0, 0, query].nonzero().flatten().tolist() == sorted(keys)
    # Padding sees itself alone, and no token sees padding.
    assert mask[1, 0, 4:].tolist() == [[place == query for place in range(8)] for query in range(4, 8)]
    assert mask[1, 0, :4, 4:].sum() == 0


def test_in_one_row_no_pair_sees_another() -> None:
    mask = may_attend(pack([LONG, SHORT], pad_id=PAD, one_row=True))[0, 0]
    assert torch.equal(mask[:8, :8], may_attend(pack([LONG], pad_id=PAD))[0, 0])
    assert torch.equal(mask[8:, 8:], may_attend(pack([SHORT], pad_id=PAD))[0, 0])
    assert mask[8:, :8].sum() == 0


def test_a_cut_keeps_some_rows_as_wide_as_their_longest(rows: PackedRows) -> None:
    cut = rows.cut(slice(1, 2))
    assert cut.input_ids.tolist() == [[11, 12, 13, 14]]
    assert (cut.positions.tolist(), cut.pair.tolist(), cut.part.tolist()) == ([[0, 1, 1, 2]], [[1] * 4], [[0, 1, 2, 2]])
    assert torch.equal(cut.owner, rows.owner)
    assert rows.cut(slice(0, 2)).input_ids.shape == (2, 8)


def test_rows_move_to_a_device_whole(rows: PackedRows) -> None:
    moved = rows.to("meta")
    assert {name: (each.device.type, each.shape) for name, each in vars(moved).items()} == {
        name: ("meta", each.shape) for name, each in vars(rows).items()
    }


def test_rows_in_whole_blocks_are_padded_to_a_multiple() -> None:
    plain, blocks = (pack([LONG, SHORT], pad_id=PAD, one_row=True, multiple_of=size) for size in (1, 32))
    assert blocks.input_ids.shape[1] % 32 == 0
    assert 0 < blocks.input_ids.shape[1] - plain.input_ids.shape[1] < 32
    assert torch.equal(blocks.predictors, plain.predictors)
    assert bool((blocks.pair[:, plain.pair.shape[1] :] == -1).all())

from meinst.ops.points import make_points


def test_points_are_the_middles_of_their_cells_row_by_row() -> None:
    points, strides = make_points([(2, 3), (1, 1)], [8, 16])
    # (j * stride + stride // 2, i * stride + stride // 2)
    expected = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8]]
    assert points.tolist() == expected
    assert strides.tolist() == [8] * 6 + [16]


def test_odd_strides_round_down() -> None:
    points, _ = make_points([(1, 2)], [5])
    assert points.tolist() == [[2, 2], [7, 2]]

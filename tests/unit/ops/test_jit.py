import numpy as np

from meinst.ops.jit import compiled, compiled_sums


def test_compiled_gives_the_same_result() -> None:
    def kernel(n: int) -> int:
        return n * n + 1

    assert compiled(kernel)(7) == 50


def test_kernel_that_cannot_be_cached_still_runs() -> None:
    # numba has no cache folder for a function without a file.
    namespace: dict[str, object] = {}
    exec("def kernel(n):\n    return 2 * n", namespace)
    assert compiled(namespace["kernel"])(21) == 42  # type: ignore[type-var]


def test_reordered_sums_are_repeatable() -> None:
    def kernel(values: np.ndarray) -> float:
        total = np.float32(0)
        for index in range(values.size):
            total += values[index]
        return total

    values = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    total = compiled_sums(kernel)(values)
    assert total == compiled_sums(kernel)(values.copy())
    assert abs(total - values.sum(dtype=np.float64)) < 1e-4

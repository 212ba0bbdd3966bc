from meinst.ops.jit import compiled


def test_compiled_gives_the_same_answer() -> None:
    def kernel(n: int) -> int:
        return n * n + 1

    assert compiled(kernel)(7) == 50


def test_a_kernel_whose_code_cannot_be_kept_still_runs() -> None:
    # numba finds no folder for a function that comes from no file.
    namespace: dict[str, object] = {}
    exec("def kernel(n):\n    return 2 * n", namespace)
    assert compiled(namespace["kernel"])(21) == 42  # type: ignore[type-var]

from meinst.engine.quantise import Layer, kept_in_float


def chain(*kinds: str) -> dict[str, Layer]:
    """Layers one after the other, each named by its kind and place: "Conv 1"."""
    names = [f"{kind} {place}" for place, kind in enumerate(kinds)]
    return {
        name: Layer(name.split()[0], names[place - 1 : place] if place else [])
        for place, name in enumerate(names)
    }


def test_first_and_last_convs_and_norms_stay_in_float() -> None:
    layers = chain("Conv", "Relu", "Conv", "Conv", "Conv", "GroupNormalization", "Conv", "Sigmoid")
    assert kept_in_float(layers, ["Sigmoid 7"]) == [
        "Conv 0",
        "Conv 2",
        "Conv 3",
        "GroupNormalization 5",
        "Conv 6",
    ]


def test_every_output_has_its_own_last_conv() -> None:
    layers = chain("Conv", "Conv", "Conv", "Conv", "Conv", "Conv")
    layers["scale"] = Layer("Multiply", ["Conv 5", "constant"])
    layers["constant"] = Layer("Constant", [])
    layers["other"] = Layer("GroupConvolution", ["Conv 4"])
    layers["joined"] = Layer("Concat", ["scale", "other"])
    kept = kept_in_float(layers, ["joined", "Conv 3"])
    assert kept[:3] == ["Conv 0", "Conv 1", "Conv 2"]
    assert sorted(kept[3:]) == ["Conv 3", "Conv 5", "other"]


def test_what_only_tells_a_size_is_not_last() -> None:
    layers = chain("Conv", "Conv", "Conv", "Conv", "Conv", "Conv")
    layers["size"] = Layer("ShapeOf", ["Conv 4"])
    layers["shaped"] = Layer("Reshape", ["Conv 5", "size"])
    assert kept_in_float(layers, ["shaped"])[3:] == ["Conv 5"]


def test_a_conv_that_is_first_and_last_is_named_once() -> None:
    assert kept_in_float(chain("Conv"), ["Conv 0"]) == ["Conv 0"]

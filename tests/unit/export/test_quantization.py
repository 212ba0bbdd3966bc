from meinst.export.quantization import Layer, float_layers


def chain(*kinds: str) -> dict[str, Layer]:
    """A sequence of layers, named by their kind and position: "Conv 1"."""
    names = [f"{kind} {place}" for place, kind in enumerate(kinds)]
    return {
        name: Layer(name.split()[0], names[place - 1 : place] if place else [])
        for place, name in enumerate(names)
    }


def test_first_and_last_convs_and_norms_stay_in_float() -> None:
    layers = chain("Conv", "Relu", "Conv", "Conv", "Conv", "GroupNormalization", "Conv", "Sigmoid")
    assert float_layers(layers, ["Sigmoid 7"]) == [
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
    kept = float_layers(layers, ["joined", "Conv 3"])
    assert kept[:3] == ["Conv 0", "Conv 1", "Conv 2"]
    assert sorted(kept[3:]) == ["Conv 3", "Conv 5", "other"]


def test_layers_that_only_compute_a_shape_are_ignored() -> None:
    layers = chain("Conv", "Conv", "Conv", "Conv", "Conv", "Conv")
    layers["size"] = Layer("ShapeOf", ["Conv 4"])
    layers["shaped"] = Layer("Reshape", ["Conv 5", "size"])
    assert float_layers(layers, ["shaped"])[3:] == ["Conv 5"]


def test_conv_that_is_first_and_last_is_listed_once() -> None:
    assert float_layers(chain("Conv"), ["Conv 0"]) == ["Conv 0"]

"""Models as OpenVINO and ONNX graphs."""

"""What an ONNX graph is: exported, read from a file, looked over for what TensorRT will do to it."""

"""The libraries that run a bundle's graphs: ONNX Runtime or OpenVINO on the CPU, ONNX Runtime or TensorRT on a GPU."""

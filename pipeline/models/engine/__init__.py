"""Frozen passes on a CPU: networks that are not trained run by ONNX Runtime, which is faster there than PyTorch.

In reading order: `graph` (a network as an ONNX graph without weights, in the cache), `session` (a graph with weights,
run on images), `passes` (who computes a frozen pass: ONNX Runtime, or the network itself), `frozen_part` (training
above a part that is frozen), `onnx_file` (a classifier as one file).
"""

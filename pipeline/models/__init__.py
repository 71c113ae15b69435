"""Networks: a timm body under a new head, cut and frozen by layer group, saved, and exported.

In reading order: `weights` (timm's architectures and where weights are), `hub` (weights from timm's hub), `weight_file`
(what files of weights hold), `body`, `network`, `layer_groups`, `cut` (a network in two halves), `facts` and
`checkpoint` (a network on disk), `engine` (ONNX, and frozen networks run by it), `activations` and `views` (stores of
activations), `classifier` (pictures in, probabilities out).
"""

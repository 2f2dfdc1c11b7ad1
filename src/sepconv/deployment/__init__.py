"""A trained network as a file that runs elsewhere: ONNX or torch.export, in fp32 or int8, and what it costs there."""
